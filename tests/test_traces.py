"""Measured traces: PyTorch's profiler, ONNX Runtime's profile and our own exports as timelines."""

import gzip
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from frontends import load_model
from frontends.traces import document, load_steps, load_trace
from frontends.traces.names import kind_of_kernel, product_flop
from hardware import SpecError, load_platform
from opgraph import Plan, Workload, simulate, trace

TRACES = Path(__file__).parents[1] / "validation" / "traces"
CAPTURES = sorted(TRACES.glob("*.json.gz"))


def op(name, ts, dur, *, tid=1, dims=None, external=None, cat="cpu_op", **args):
    known = {"External id": external, "Input Dims": dims} | args
    args = {key: value for key, value in known.items() if value is not None}
    return {"ph": "X", "cat": cat, "name": name, "pid": 9, "tid": tid, "ts": ts, "dur": dur,
            "args": args}  # fmt: skip


def note(name, ts, dur, tid=1):
    return op(name, ts, dur, tid=tid, cat="user_annotation")


def write(path, events, **head):
    text = json.dumps({"schemaVersion": 1, **head, "traceEvents": events})
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


LINEAR = [[2, 3, 4], [5, 4], []]


@pytest.fixture
def host(tmp_path):
    """Two steps of a linear layer and an activation on the host, and a third."""
    events = []
    for index, (start, slow) in enumerate([(100, 1), (300, 2), (500, 2)]):
        events += [
            note(f"ProfilerStep#{index}", start, 100),
            note("mlp", start + 5, 90),
            op("aten::linear", start + 10, 40 * slow, dims=LINEAR),
            op("aten::matmul", start + 11, 38, dims=LINEAR),
            op("aten::mm", start + 12, 30 * slow, dims=[[6, 4], [4, 5]]),
            op("aten::silu", start + 10 + 40 * slow, 8),
        ]
    events.insert(3, op("aten::copy_", 99, 0.5))
    return write(tmp_path / "host.json", events)


def test_operators_of_a_step_without_those_they_call(host):
    first, second, third = load_steps(host)
    assert [event.name for event in first.events] == ["linear", "silu"]
    assert [event.kind for event in first.events] == ["gemm", "activation"]
    assert first.time == pytest.approx(100e-6)
    assert [float(event.starts[0]) for event in first.events] == pytest.approx([10e-6, 50e-6])
    assert first.events[0].work.flop == 2 * 6 * 4 * 5
    assert first.events[0].block == "mlp"
    assert second.events[0].time == pytest.approx(80e-6)
    assert third.name == "ProfilerStep"


def test_the_median_of_steps_that_are_alike(host):
    timeline = load_trace(host)
    assert timeline.source["steps"] == "3 of 3"
    assert timeline.events[0].time == pytest.approx(80e-6)
    assert all(event.provenance == "measured" for event in timeline.events)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("made", ["host", "device"])
def test_the_order_of_events_in_the_file_is_no_matter(request, tmp_path, made, seed):
    path = request.getfixturevalue(made)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt") as file:
        events = json.load(file)["traceEvents"]
    shuffled = [events[i] for i in np.random.default_rng(seed).permutation(len(events))]
    before, after = load_trace(path), load_trace(write(tmp_path / "shuffled.json", shuffled))
    assert after.to_frame().equals(before.to_frame())
    assert after.time == before.time


def test_a_step_that_differs_is_left_out(tmp_path):
    steps = [[note("step", at, 90), op("aten::mm", at + 1, 10 + at / 100)] for at in (0, 100, 200)]
    steps[0].append(op("aten::compiles", 40, 30))
    timeline = load_trace(write(tmp_path / "t.json", [e for step in steps for e in step]))
    assert timeline.source["steps"] == "2 of 3"
    assert [event.name for event in timeline.events] == ["mm"]
    assert timeline.events[0].time == pytest.approx(11.5e-6)


def test_without_annotations_the_whole_trace_is_one_step(tmp_path):
    events = [op("aten::mm", 10, 5), op("aten::mm", 30, 5, tid=2)]
    timeline = load_trace(write(tmp_path / "t.json", events))
    assert timeline.name == "trace"
    assert timeline.time == pytest.approx(25e-6)
    assert len(timeline.events) == 2


def test_annotations_of_a_small_part_are_no_steps(tmp_path):
    events = [note("detail", 0, 2), op("aten::mm", 0, 1), op("aten::mm", 10, 50)]
    assert load_trace(write(tmp_path / "t.json", events)).name == "trace"


def test_several_steps_need_a_choice(tmp_path):
    events = [note("prefill", 0, 10), op("aten::mm", 1, 5), note("decode", 20, 10),
              op("aten::mm", 21, 3)]  # fmt: skip
    path = write(tmp_path / "t.json", events)
    assert load_trace(path, "decode").events[0].time == pytest.approx(3e-6)
    with pytest.raises(SpecError, match=r"'prefill', 'decode'.*step='prefill'"):
        load_trace(path)
    with pytest.raises(SpecError, match="did you mean 'decode'"):
        load_trace(path, "decod")


def kernel(name, ts, dur, *, stream=7, cat="kernel", **args):
    return op(name, ts, dur, tid=stream, cat=cat, device=0, stream=stream, **args) | {"pid": 0}


@pytest.fixture
def device(tmp_path):
    """One step on a GPU as Kineto writes it: the launch has the thread and the correlation id."""
    events = [
        note("decode", 0, 100),
        note("layer", 5, 80),
        op("aten::linear", 10, 20, dims=LINEAR, external=1),
        op("aten::mm", 12, 15, dims=[[6, 4], [4, 5]], external=2),
        op("cudaLaunchKernel", 14, 3, cat="cuda_runtime", correlation=71, external=2),
        op("aten::silu", 40, 10),
        op("cudaLaunchKernel", 43, 3, cat="cuda_runtime", correlation=72),
        kernel("void cutlass::gemm<float>(Params)", 60, 30, external=2),
        kernel("splitKreduce_kernel", 90, 4, correlation=71, external=2),
        kernel("void silu_kernel<at::BFloat16>()", 95, 6, correlation=72, external=1),
        kernel("ncclDevKernel_AllReduce_Sum", 96, 9, stream=20, correlation=99),
        kernel("Memcpy DtoH (Device -> Pinned)", 110, 2, cat="gpu_memcpy", stream=7),
    ]
    return write(tmp_path / "gpu.json.gz", events, deviceProperties=[{"id": 0, "name": "H200"}])


def test_kernels_are_tied_to_operators(device):
    timeline = load_trace(device)
    found = [(event.name, event.kind, event.stream, event.block) for event in timeline.events]
    assert found == [
        ("linear: cutlass::gemm", "gemm", "compute", "layer"),  # by the id of the inner aten::mm
        ("linear: splitKreduce_kernel", "gemm", "compute", "layer"),
        ("silu: silu_kernel", "activation", "compute", "layer"),  # by its launch, not its id
        ("ncclDevKernel_AllReduce_Sum", "all_reduce", "communication", ""),  # nobody's
    ]
    # of an operator's kernels the longest has its FLOP: they are counted once
    assert [event.work.flop for event in timeline.events] == [240, 0, 0, 0]
    # from the first kernel's start to the last one's end; the copy comes after the step
    assert timeline.time == pytest.approx((105 - 60) * 1e-6)
    assert float(timeline.events[0].starts[0]) == 0
    assert timeline.source["device"] == "H200"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sm90_xmma_gemm_bf16bf16_bf16f32", "gemm"), ("nvjet_tst_128x256_64x4", "gemm"),
     ("flash_fwd_splitkv_kernel", "attention"), ("cudnn_generated_fort_native_sdpa", "elementwise"),
     ("ncclDevKernel_AllGather_RING_LL", "all_gather"), ("Memset (Device)", "copy"),
     ("vllm::rms_norm_kernel", "norm"), ("vectorized_elementwise_kernel", "elementwise")],
)  # fmt: skip
def test_kinds_of_kernels_by_name(name, kind):
    assert kind_of_kernel(name) == kind


@pytest.mark.parametrize(
    ("name", "shapes"),
    [("mm", [(6, 4), (4, 5)]), ("addmm", [(6, 4), (4, 5)]), ("bmm", [(3, 6, 4), (3, 4, 5)]),
     ("matmul", [(2, 3, 6, 4), (2, 3, 4, 5)]), ("matmul", [(2, 3, 6, 4), (4, 5)])],
)  # fmt: skip
def test_flop_of_products_are_those_of_numpy(name, shapes):
    first, second = (np.ones(shape) for shape in shapes)
    # a product with a sum over k for each number of the result
    assert product_flop(name, shapes) == 2 * (first @ second).size * first.shape[-1]


def test_shapes_that_tell_nothing_give_no_flop():
    assert product_flop("mm", [(6, 4), (3, 5)]) == 0
    assert product_flop("linear", [(6, 4)]) == 0


def node(name, kind, ts, dur, inputs=(), outputs=()):
    args = {"op_name": kind, "input_type_shape": [{"float": list(s)} for s in inputs],
            "output_type_shape": [{"float": list(s)} for s in outputs],
            "provider": "CPUExecutionProvider"}  # fmt: skip
    return {"cat": "Node", "ph": "X", "pid": 1, "tid": 1, "ts": ts, "dur": dur,
            "name": f"{name}_kernel_time", "args": args}  # fmt: skip


def session(name, ts, dur):
    return {"cat": "Session", "ph": "X", "pid": 1, "tid": 1, "ts": ts, "dur": dur, "name": name,
            "args": {}}  # fmt: skip


def test_onnx_runtime_has_a_step_for_each_run(tmp_path):
    runs = []
    for start, slow in ((1000, 3), (2000, 1), (3000, 1)):
        runs += [
            node("/layers.0/q_proj/MatMul", "MatMul", start + 10, 50 * slow, [(1, 6, 4)],
                 [(1, 6, 5)]),  # the weight was packed in advance and is not among the inputs
            node("/layers.0/attn", "GroupQueryAttention", start + 300, 20, [(1, 6, 5)], []),
            {"cat": "Node", "name": "/layers.0/q_proj/MatMul_fence_before", "ts": 1, "dur": 0},
            session("SequentialExecutor::Execute", start + 5, 400),
            session("model_run", start, 500),
        ]  # fmt: skip
    path = tmp_path / "profile.json"
    path.write_text(json.dumps([session("session_initialization", 1, 900), *runs]))
    timeline = load_trace(path)
    assert timeline.name == "model_run"
    assert timeline.source["steps"] == "3 of 3"
    assert [event.kind for event in timeline.events] == ["gemm", "attention"]
    assert timeline.events[0].name == "/layers.0/q_proj/MatMul"
    assert timeline.events[0].time == pytest.approx(50e-6)
    assert timeline.events[0].work.flop == 2 * 6 * 4 * 5


@pytest.mark.parametrize(("model", "tp"), [("llama-3.1-8b", 1), ("mixtral-8x7b", 2)])
def test_our_own_exports_come_back(tmp_path, model, tp):
    made = simulate(load_model(model), load_platform("dgx-h100"), Plan(tp=tp), Workload(batch=3))
    path = tmp_path / "own.json.gz"
    trace.save(path, [made.prefill, made.decode])
    for before, after in zip((made.prefill, made.decode), load_steps(path), strict=True):
        kept = [event for event in before.events if event.time > 0]
        assert after.name == before.name
        assert after.time == pytest.approx(before.time, abs=1e-9)
        assert len(after.events) == len(kept)
        by_name = {event.name: event for event in after.events}
        for event in kept:
            read = by_name[event.name]
            for name in ("kind", "block", "stream", "limiter", "algorithm", "count"):
                assert getattr(read, name) == getattr(event, name)
            # both ends are rounded to a nanosecond
            assert read.time == pytest.approx(event.time, abs=2.1e-9)
            assert read.starts == pytest.approx(event.starts, abs=2.1e-9)
            assert read.work.flop == event.work.flop


def test_timelines_beside_each_other_come_back(tmp_path):
    made = simulate(load_model("llama-3.1-8b"), load_platform("dgx-h100"))
    path = tmp_path / "both.json"
    trace.save(path, [made.prefill, made.decode], beside=True)
    assert trace.check(path)
    first, second = load_steps(path)
    assert float(first.events[0].starts[0]) == float(second.events[0].starts[0])
    assert (first.name, second.name) == ("prefill", "decode")


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_committed_captures_load(path):
    timeline = load_trace(path)
    assert timeline.name == timeline.source["phase"]
    products = [event for event in timeline.events if event.kind == "gemm"]
    layers = int(timeline.source["layers"]) or 28
    assert len(products) == 7 * layers + 1  # q k v o gate up down, and the head
    assert all(event.work.flop > 0 for event in products)
    busy = sum(event.time for event in timeline.events)
    assert 0.5 * timeline.time < busy <= timeline.time * (1 + 1e-9)


def test_byte_order_marks_and_spaces_are_no_harm(tmp_path):
    text = json.dumps({"traceEvents": [op("aten::mm", 1, 2)]}, indent=4)
    path = tmp_path / "t.json"
    path.write_bytes(b"\xef\xbb\xbf\n " + text.encode())
    assert load_trace(path).events[0].time == pytest.approx(2e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000])
def test_windows_of_any_size_read_the_same(tmp_path, monkeypatch, size):
    """Values end anywhere in a window: in a number, a word, between two bytes of a letter."""
    events = [op(f"aten::μ{i}", i * 1.25 + 1e3, 0.125 * i, dims=[[i, 10**i]]) for i in range(9)]
    path = write(tmp_path / "t.json", events, note="größer", count=12345)
    monkeypatch.setattr(document, "_CHUNK", size)
    read = document.Document(path)
    assert list(read) == events
    assert read.head == {"schemaVersion": 1, "note": "größer", "count": 12345}


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Half a gigabyte of trace, of which little is operators, in under 200 MB more."""
    path = tmp_path / "large.json.gz"
    stack = json.dumps(op("python: forward", 1, 1, cat="python_function", stack="x" * 3000))
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write('{"traceEvents": [')
        file.write(json.dumps(op("aten::mm", 1, 2)))
        for _ in range(160):
            file.write("," + ",".join(itertools.repeat(stack + " " * 20, 1000)))
        file.write("]}")
    # the file repeats itself far more than a real one
    code = (
        "import resource, sys; from frontends.traces import document, load_trace;"
        "document.LARGEST_RATIO = 10**6;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "print(len(load_trace(sys.argv[1]).events));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    out = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    count, grown = map(int, out.stdout.split())
    assert count == 1
    assert grown < 200_000  # kB


GOOD = op("aten::mm", 1, 2)
HOSTILE = {
    "empty": b"",
    "spaces": b"  \n ",
    "no object": b"42",
    "text": b"operators, I think",
    "no events": b'{"schemaVersion": 1}',
    "empty list": b"[]",
    "empty events": b'{"traceEvents": []}',
    "events are a number": b'{"traceEvents": 3}',
    "an event is a number": b'{"traceEvents": [3]}',
    "an event is null": b"[null]",
    "cut off in an event": json.dumps([GOOD]).encode()[:-20],
    "cut off after an event": json.dumps([GOOD]).encode()[:-1],
    "cut off in the head": b'{"schemaVersion": ',
    "no comma": b"[" + json.dumps(GOOD).encode() * 2 + b"]",
    "no colon": b'{"traceEvents" []}',
    "NaN duration": json.dumps([GOOD | {"dur": float("nan")}]).encode(),
    "infinite duration": json.dumps([GOOD | {"dur": float("inf")}]).encode(),
    "infinite in digits": json.dumps([GOOD]).replace('"dur": 2', '"dur": 1e999').encode(),
    "negative duration": json.dumps([GOOD | {"dur": -1}]).encode(),
    "a century": json.dumps([GOOD | {"dur": 1e300}]).encode(),
    "duration of text": json.dumps([GOOD | {"dur": "2"}]).encode(),
    "duration is true": json.dumps([GOOD | {"dur": True}]).encode(),
    "no duration": json.dumps([{k: v for k, v in GOOD.items() if k != "dur"}]).encode(),
    "no start": json.dumps([{k: v for k, v in GOOD.items() if k != "ts"}]).encode(),
    "start is null": json.dumps([GOOD | {"ts": None}]).encode(),
    "digits without end": b'[{"ph": "X", "cat": "cpu_op", "ts": ' + b"9" * 5000 + b', "dur": 1}]',
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "nested in an event": b'[{"ph": "X", "args": ' + b"[" * 100_000,
    "one long text": b'["' + b"x" * 9 * 2**20,
    "many entries": json.dumps({str(i): i for i in range(2000)}).encode(),
    "not UTF-8": b'[{"name": "\xff\xfe"}]',
    "binary": bytes(range(256)) * 10,
    "cut gzip": gzip.compress(json.dumps([GOOD] * 1000).encode())[:60],
    "spoilt gzip": gzip.compress(json.dumps([GOOD]).encode())[:-6] + b"spoilt",
    "gzip bomb": gzip.compress(b"[" + b" " * 64 * 2**20),
    "gzip of nothing": gzip.compress(b""),
    "nothing that computes": json.dumps([GOOD | {"cat": "python_function"}]).encode(),
    "sessions without nodes": json.dumps([session("model_run", 1, 2)]).encode(),
    "nodes without sessions": json.dumps([node("a", "MatMul", 1, 2)]).encode(),
    "node without time": json.dumps([node("a", "MatMul", 1, None)]).encode(),
    "own without steps": json.dumps(
        {"opgraph": {"simulated": True}, "traceEvents": [GOOD | {"args": {"dur_ns": 3}}]}
    ).encode(),
    "own without lengths": json.dumps(
        {"opgraph": {"simulated": True}, "traceEvents": [GOOD]}
    ).encode(),
    "own with NaN": json.dumps(
        {"opgraph": {"simulated": True}, "traceEvents": [GOOD | {"args": {"dur_ns": None}}]}
    ).encode(),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_get_one_clear_error(tmp_path, case):
    path = tmp_path / "hostile.json"
    path.write_bytes(HOSTILE[case])
    with pytest.raises(SpecError) as error:
        load_trace(path)
    message = str(error.value)
    assert "\n" not in message
    assert "hostile.json" in message
    assert len(message) < 300


@pytest.mark.parametrize("name", ["missing.json", ".", "nul\0.json"])
def test_what_is_no_file_is_refused(tmp_path, name):
    with pytest.raises(SpecError, match="trace"):
        load_trace(tmp_path / name)


@pytest.mark.parametrize(
    "event",
    [
        {"ph": "X"},
        {"ph": "X", "cat": "cpu_op", "ts": 1, "dur": 2},
        {"ph": "X", "cat": "cpu_op", "ts": 1, "dur": 2, "name": None, "pid": {}, "tid": [1]},
        {"cat": "cpu_op", "ts": 1, "dur": 2, "name": "aten::mm", "args": None},
        op("aten::mm", 1, 2, dims="all"),
        op("aten::mm", 1, 2, dims=[[-3, 4], [4, 2]]),
        op("aten::mm", 1, 2, dims=[[True, 4], [4.5, 2]]),
        op("aten::mm", 1, 2, dims=[[2**80, 4], [4, 2**80]]),
        op("k", 1, 2, cat="kernel", correlation={"a": 1}),
        op("launch", 1, 2, cat="cuda_runtime", correlation=[1]),
        {"ph": "i", "name": "an instant"},
        {"ph": 7},
    ],
)
def test_missing_fields_are_no_harm(tmp_path, event):
    timeline = load_trace(write(tmp_path / "t.json", [op("aten::mm", 10, 5), event]))
    assert timeline.time > 0
