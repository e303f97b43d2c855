"""What measures: captures of PyTorch and ONNX Runtime, chips and kernels measured in place."""

import statistics
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from frontends.traces import load_trace
from hardware import SpecError, load_chip, load_platform
from opgraph.kernels import kernel_chip
from validation import extras, machine, microbenchmarks
from validation.capture import Step, capture
from validation.chipmeter import MeasuredChip
from validation.compare import compare
from validation.datasets import load
from validation.machine import Machine
from validation.microbenchmarks import EFFORTS, KERNELS, Effort
from validation.replay import predict, step_of
from validation.sessions import capture_onnx, read_sizes
from validation.stopwatch import Stopwatch
from validation.tables import DATASETS

needs_torch = pytest.mark.skipif(find_spec("transformers") is None, reason="needs opgraph[torch]")
needs_onnx = pytest.mark.skipif(
    find_spec("onnxruntime") is None or find_spec("onnx") is None, reason="needs onnxruntime, onnx"
)
MEASUREMENTS = Path(__file__).parents[1] / "validation" / "measurements" / "epyc-zen5-core"
THIS = Machine("cpu", "A Processor", 2, 3e9, 2**34, 2**25, "Linux", "torch 2", "2026-01-01")


def test_a_measured_chip_is_a_chip_file(tmp_path):
    made = MeasuredChip(THIS, {"bf16": 4.57e11, "fp16": 2.8e10}, 1.01e11, 3.7e10, 1.9e-6)
    path = tmp_path / "mine.toml"
    path.write_text(made.toml("mine"))
    chip = load_chip(str(path))
    assert chip.name == "mine"
    assert chip.peak("bf16") == pytest.approx(4.57e11)
    assert chip.peak("fp32") == chip.vector == pytest.approx(1.01e11)
    assert chip.memory_bandwidth == pytest.approx(3.7e10)
    assert chip.memory_capacity == pytest.approx(2**34)
    assert kernel_chip(chip).cache.capacity == 2**25
    assert (chip.cores, chip.clock) == (2, 3e9)
    assert "2026-01-01" in chip.source
    assert "1.9 us" in path.read_text()


def test_names_that_no_file_may_have_are_refused():
    made = MeasuredChip(THIS, {"bf16": 1e12}, 1e11, 1e10, 1e-6)
    with pytest.raises(SpecError, match="is not a name"):
        made.toml("my chip!")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("device", EFFORTS)
def test_kernels_have_shapes_worth_a_fit(kernel, device):
    """Enough shapes that fit the effort, none twice, small and large ones among them."""
    table, effort = KERNELS[kernel], EFFORTS[device]
    fitting = [shape for shape in table.shapes() if table._fits(shape, effort)]
    assert len(fitting) == len(set(fitting))
    assert all(len(shape) == len(table.columns) for shape in fitting)
    assert len(fitting) >= 20
    bytes_ = [table.work(*shape)[1] for shape in fitting]
    assert max(bytes_) > 100 * min(bytes_)


@pytest.mark.parametrize(
    ("kernel", "op", "dtype"),
    [("gemm", "gemm", "bf16"), ("attention_prefill", "attention_prefill", "bf16"),
     ("attention_decode", "attention_decode", "bf16"), ("vector", "quantise", "fp8")],
)  # fmt: skip
def test_committed_tables_are_what_calibration_reads(kernel, op, dtype):
    path = MEASUREMENTS / f"{kernel}.csv"
    columns = list(pd.read_csv(path, nrows=1).columns)
    table = KERNELS[kernel]
    assert columns == [*dict(table.constants), *table.columns, "latency"]
    sample = load(DATASETS[op], kernel_chip(load_chip("h200-sxm")), dtype, source=path)
    assert len(sample.measured) >= 50


def test_committed_tables_keep_to_physics():
    """No product is faster than the chip's peak, nor than the cache moves its weights."""
    frame = pd.read_csv(MEASUREMENTS / "gemm.csv")
    chip = load_chip(str(MEASUREMENTS.parents[1] / "traces" / "epyc-zen5-core.toml"))
    rate = 2 * frame["m"] * frame["n"] * frame["k"] / (frame["latency"] * 1e-3)
    assert rate.max() < 1.02 * chip.peak("bf16")
    large = frame[frame["n"] * frame["k"] * 2 > 4 * chip.cache.capacity / 8]
    moved = 2 * large["n"] * large["k"] / (large["latency"] * 1e-3)
    assert moved.max() < 1.02 * chip.memory_bandwidth


def test_without_torch_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(SpecError, match=r"torch is needed for this: pip install 'opgraph\[torch\]"):
        machine.this_machine()


@pytest.mark.parametrize(
    "word", ["batch", "batch=", "=1", "batch=-1", "batch=1.5", "b=9" + "9" * 40]
)
def test_sizes_are_names_with_numbers(word):
    with pytest.raises(SpecError, match="a size is given as batch_size=1"):
        read_sizes([word])


def test_sizes_by_name():
    assert read_sizes(["batch_size=2", "past=0"]) == {"batch_size": 2, "past": 0}


@needs_torch
def test_operands_lie_apart_in_the_pool_and_come_round():
    watch = Stopwatch()
    x, weight = watch.operands(0, (4, 8), (16, 8))
    assert x.shape == (4, 8)
    assert weight.data_ptr() == x.data_ptr() + x.nbytes
    again = watch.operands(1, (4, 8), (16, 8))[0]
    assert again.data_ptr() == weight.data_ptr() + weight.nbytes
    large = (1 << 14, 1 << 13)
    assert watch.operands(0, large)[0].data_ptr() == watch.operands(2, large)[0].data_ptr()
    with pytest.raises(SpecError, match="do not fit"):
        watch.operands(0, (1 << 15, 1 << 14))


@needs_torch
def test_times_are_medians_after_warming_up(monkeypatch):
    ticks = iter([0, 5, 10, 11, 20, 22, 30, 39, 40, 43])
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    turns = []
    watch = Stopwatch(budget=0.0, least=5)
    assert watch.seconds(turns.append) == statistics.median([5, 1, 2, 9, 3])
    assert turns == list(range(7))


@needs_torch
@pytest.mark.parametrize("device", ["tpu", "cuda"])
def test_devices_that_are_not_there_are_refused(device):
    import torch

    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SpecError, match=r"no device 'tpu'|no NVIDIA GPU"):
        Stopwatch(device)


@needs_torch
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_run_and_answer_rows(kernel, monkeypatch):
    monkeypatch.setattr("validation.stopwatch.POOL_BYTES", 72 * 2**20)
    monkeypatch.setattr(microbenchmarks, "VOCABULARIES", (3200, 4000))
    effort = Effort(1e8, 2**20, 6)
    rows = list(KERNELS[kernel].rows(Stopwatch(budget=0.0, least=1), effort))
    assert 1 <= len(rows) <= effort.rows
    for row in rows:
        assert list(row) == [*dict(KERNELS[kernel].constants), *KERNELS[kernel].columns, "latency"]
        assert 0 < row["latency"] < 1e3


@needs_torch
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_is_that_of_the_formula(queries, groups):
    """Softmax of scaled products with a causal mask, written out."""
    import torch

    batch, heads, size, context = 2, 4, 8, queries if queries > 1 else 7
    query = torch.randn(batch, heads, queries, size, dtype=torch.float64)
    key, value = torch.randn(2, batch, groups, context, size, dtype=torch.float64)
    wide_key, wide_value = (x.repeat_interleave(heads // groups, 1) for x in (key, value))
    scores = query @ wide_key.transpose(-1, -2) / size**0.5
    hidden = torch.ones(queries, context).triu(context - queries + 1).bool()
    wanted = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ wide_value
    torch.testing.assert_close(microbenchmarks.attend(query, key, value), wanted)


@needs_torch
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_captured_step_matches_its_prediction(tmp_path, phase):
    step = Step(model="qwen2.5-0.5b", phase=phase, batch=2, tokens=12, layers=2, vocab=64)
    path = capture(step, tmp_path, repeats=1, traced=2)
    assert path.name == f"qwen2.5-0.5b-2layers-{phase}-2x12.json.gz"
    measured = load_trace(path)
    assert step_of(measured.source) == step
    assert measured.source["steps"] == "2 of 2"
    assert float(measured.source["step_ms"]) > 0
    found = compare(measured, predict(step, load_platform("h200-sxm:1")))
    products = [row for row in found.rows if row.kind == "gemm"]
    assert [row.count for row in products] == 2 * [3, 1, 2, 1] + [1]
    # biases of qwen2.5's projections are in the prediction's FLOP
    assert all(row.work == pytest.approx(1, rel=0.01) for row in products)
    assert {"model.layers.0.mlp.down_proj", "lm_head"} <= {e.block for e in measured.events}


@needs_torch
@pytest.mark.parametrize("model", ["mamba2-2.7b", "deepseek-v2-lite"])
def test_models_with_another_cache_are_refused(tmp_path, model):
    step = Step(model=model, phase="prefill", tokens=8, layers=1, vocab=64)
    with pytest.raises(SpecError, match=f"{model} is no decoder that caches keys"):
        capture(step, tmp_path, repeats=1, traced=1)


@needs_torch
def test_windows_shorter_than_the_step_are_refused(tmp_path):
    step = Step(model="gemma-3-1b", phase="prefill", tokens=600, layers=1, vocab=64)
    with pytest.raises(SpecError, match="attends within 512 tokens"):
        capture(step, tmp_path, repeats=1, traced=1)


@pytest.fixture
def mlp(tmp_path):
    """A product and an activation of a symbolic number of rows, as an ONNX file."""
    onnx = pytest.importorskip("onnx")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = make.make_tensor("w", kind, (16, 8), [0.5] * 128)
    graph = make.make_graph(
        [make.make_node("MatMul", ["x", "w"], ["y"], name="up"),
         make.make_node("Sigmoid", ["y"], ["z"], name="act")],
        "mlp", [make.make_tensor_value_info("x", kind, ["rows", 16])],
        [make.make_tensor_value_info("z", kind, ["rows", 8])], [weight],
    )  # fmt: skip
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)
    path = tmp_path / "mlp.onnx"
    onnx.save(model, path)
    return path


@needs_onnx
def test_onnx_files_are_profiled(mlp, tmp_path):
    path = capture_onnx(mlp, tmp_path, {"rows": 5}, repeats=3)
    assert path == tmp_path / "mlp.profile.json"
    timeline = load_trace(path)
    assert timeline.name == "model_run"
    assert timeline.source["steps"] == "4 of 4"
    up = next(event for event in timeline.events if event.name == "up")
    assert up.kind == "gemm"
    assert up.work.flop == 2 * 5 * 16 * 8
    assert (tmp_path / "mlp.optimized.onnx").exists()


@needs_onnx
def test_sizes_that_are_missing_are_named(mlp, tmp_path):
    with pytest.raises(SpecError, match=r"input 'x' has the size 'rows': give --size rows=N.*row"):
        capture_onnx(mlp, tmp_path, {"row": 5})


@needs_onnx
def test_files_that_onnx_runtime_refuses(tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"nonsense")
    with pytest.raises(SpecError, match=r"bad.onnx: ONNX Runtime refuses it") as error:
        capture_onnx(path, tmp_path, {})
    assert "\n" not in str(error.value)
