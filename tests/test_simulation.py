"""Simulate: against closed forms written from the models' dimensions, loops, and invariants."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from strategies import graphs

from frontends import load_model
from hardware import Platform, SpecError, collective, load_platform
from opgraph.cost import Calibrated, Efficiency, Host
from opgraph.graph import Block, Graph
from opgraph.memory import Reserve, peak_activations
from opgraph.offload import Offload
from opgraph.passes import shard
from opgraph.plan import Plan
from opgraph.report import Report
from opgraph.simulation import simulate
from opgraph.sizes import Sizes
from opgraph.tensor import Tensor
from opgraph.workload import Workload

BF16 = 2  # bytes


def close(value: Any, rel: float = 1e-6, abs: float = 0.0) -> Any:
    """Approximately *value*, relative to itself: times are far below pytest's absolute 1e-12."""
    return pytest.approx(value, rel=rel, abs=abs)


@cache
def dgx() -> Platform:
    return load_platform("dgx-h100")


@cache
def sixteen() -> Platform:
    return load_platform("dgx-h100:2")


@dataclass(frozen=True)
class Dense:
    """The dimensions of a decoder, from its config.json on the hub."""

    name: str
    layers: int
    model: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    norms: int = 2  # of the model's width in each layer
    head_norms: int = 0  # of a head's width in each layer
    tied: bool = False
    window: int = 0  # of every other layer

    @property
    def kv_positions(self) -> Callable[[int], int]:
        """Positions in all layers' caches at a context."""

        def positions(context: int) -> int:
            if not self.window:
                return self.layers * context
            return self.layers // 2 * (context + min(context, self.window))

        return positions

    def weights(self, tp: int) -> int:
        """Bytes on one of *tp* chips: norms whole, at least one KV head, the rest divided."""
        kv = max(self.kv_heads // tp, 1) * self.head_dim
        heads, ffn = self.heads // tp * self.head_dim, self.ffn // tp
        matrices = self.model * (heads + 2 * kv) + heads * self.model + 3 * self.model * ffn
        norms = self.norms * self.model + self.head_norms * self.head_dim
        ends = (1 if self.tied else 2) * self.vocab // tp * self.model + self.model
        return BF16 * (self.layers * (matrices + norms) + ends)

    def kv_cache(self, tp: int, batch: int, context: int) -> int:
        """Bytes on one of *tp* chips."""
        kv = max(self.kv_heads // tp, 1) * self.head_dim
        return 2 * batch * self.kv_positions(context) * kv * BF16


LLAMA = Dense("llama-3.1-8b", 32, 4096, 14336, 32, 8, 128, 128256)
SIX = (
    LLAMA,
    Dense("llama-3.1-70b", 80, 8192, 28672, 64, 8, 128, 128256),
    Dense("llama-3.1-405b", 126, 16384, 53248, 128, 8, 128, 128256),
    Dense("qwen3-32b", 64, 5120, 25600, 64, 8, 128, 151936, head_norms=2),
    Dense("mistral-large", 88, 12288, 28672, 96, 8, 128, 32768),
    Dense("gemma-2-27b", 46, 4608, 36864, 32, 16, 128, 256000, norms=4, tied=True, window=4096),
)

six = pytest.mark.parametrize("dims", SIX, ids=lambda dims: dims.name)


# --- closed forms ---------------------------------------------------------------------------


def llama_step(
    dims: Dense, platform: Platform, tp: int, batch: int, context: int, seq: int = 1
) -> float:
    """Seconds of a step of a Llama: every operator's longer of bytes and flop, and the links."""
    chip = platform.chip
    bandwidth, matrix, vector = chip.memory_bandwidth, chip.peak("bf16"), chip.vector
    tokens, width, head_dim = batch * seq, dims.model, dims.head_dim
    heads, kv_heads = dims.heads // tp, max(dims.kv_heads // tp, 1)
    ffn, vocab = dims.ffn // tp, dims.vocab // tp
    row = tokens * width * BF16

    def longer(flop: float, nbytes: float, peak: float = vector) -> float:
        return max(flop / peak, nbytes / bandwidth)

    def product(rows: int, k: int, n: int) -> float:
        return longer(2 * rows * k * n, (rows * k + k * n + rows * n) * BF16, matrix)

    def exchange(kind: str, nbytes: float) -> float:
        return float(collective(kind, nbytes, platform.spans(tp)).time) if tp > 1 else 0.0

    # a query at position i sees i keys: the last seq of 1 … context
    pairs = sum(range(context - seq + 1, context + 1))
    # queries in and results out; keys and values of all positions in, of the new ones out
    attention = longer(
        batch * heads * pairs * 4 * head_dim,
        (2 * tokens * heads + 2 * batch * (context + seq) * kv_heads) * head_dim * BF16,
        matrix,
    )
    turned = tokens * (heads + kv_heads) * head_dim
    # sum with the residual, square, accumulate, scale, weight; two in and two out
    norm = longer(5 * tokens * width, 4 * row + width * BF16)
    layer = (
        product(tokens, width, (heads + 2 * kv_heads) * head_dim)
        + longer(3 * turned, 2 * turned * BF16)
        + attention
        + product(tokens, heads * head_dim, width)
        + exchange("all_reduce", row)
        + norm
        + product(tokens, width, 2 * ffn)
        # exponential, sum, quotient, product, and the product with the gate
        + longer(5 * tokens * ffn, 3 * tokens * ffn * BF16)
        + product(tokens, ffn, width)
        + exchange("all_reduce", row)
        + norm
    )
    stem = (
        # an index of 4 bytes for each row; of the rows a chip finds its share
        longer(0, tokens * 4 + row / tp + row)
        + exchange("all_reduce", row)
        + longer(4 * tokens * width, 2 * row + width * BF16)
    )
    # of each sequence the last position; logits of 2 bytes, a token of 4
    whole = batch * dims.vocab
    head = (
        longer(0, 2 * batch * width * BF16)
        + product(batch, width, vocab)
        + exchange("all_gather", whole * BF16)
        + longer(5 * whole, whole * BF16 + batch * 4)
    )
    return stem + dims.layers * layer + head


def llama_tpot(dims: Dense, platform: Platform, tp: int, workload: Workload) -> float:
    """The mean of all decode steps, one after the other."""
    first, last = workload.prompt + 1, workload.prompt + workload.output - 1
    steps = [
        llama_step(dims, platform, tp, workload.batch, c)
        for c in range(first, max(first, last) + 1)
    ]
    return sum(steps) / len(steps)


LOADS = [
    Workload(),
    Workload(batch=1, prompt=1, output=1),
    Workload(batch=32, prompt=100, output=2),
    Workload(batch=700, prompt=37, output=64),  # products are compute-bound
]


@pytest.mark.parametrize("workload", LOADS, ids=str)
@pytest.mark.parametrize("tp", [1, 2, 4, 8, 16])
def test_llama_by_hand(tp, workload):
    report = simulate(load_model("llama-3.1-8b"), sixteen(), Plan(tp=tp), workload)
    batch, prompt = workload.batch, workload.prompt
    prefill = llama_step(LLAMA, sixteen(), tp, batch, prompt, prompt)
    assert report.tpot == close(llama_tpot(LLAMA, sixteen(), tp, workload), rel=1e-9)
    assert report.ttft == close(prefill, rel=1e-9)


@pytest.mark.parametrize("name", ["dgx-a100", "dgx-h200", "dgx-b200", "mi300x-platform"])
def test_llama_by_hand_on_other_machines(name):
    platform, workload = load_platform(name), Workload(batch=48, prompt=300, output=20)
    dims = SIX[1]
    report = simulate(load_model(dims.name), platform, Plan(tp=8), workload)
    assert report.tpot == close(llama_tpot(dims, platform, 8, workload), rel=1e-9)


def test_what_follows_from_the_times():
    workload = Workload(batch=24, prompt=500, output=11)
    report = simulate(load_model("llama-3.1-8b"), dgx(), Plan(tp=2, dp=2), workload)
    # the first token comes with the prefill, ten more follow
    assert report.latency == close(report.ttft + 10 * report.tpot, rel=1e-15)
    assert report.throughput == close(24 * 11 / report.latency, rel=1e-15)
    assert report.throughput_per_chip == close(report.throughput / 4, rel=1e-15)
    assert report.decode_throughput == close(24 / report.tpot, rel=1e-15)
    assert report.num_chips == 4


def test_copies_of_the_model_share_the_batch():
    # 24 sequences on 4 copies: each does what one does with 6
    model = load_model("llama-3.1-8b")
    copies = simulate(model, dgx(), Plan(tp=2, dp=4), Workload(batch=24))
    single = simulate(model, dgx(), Plan(tp=2), Workload(batch=6))
    assert (copies.ttft, copies.tpot) == (single.ttft, single.tpot)
    assert copies.memory == single.memory
    assert copies.throughput == close(4 * single.throughput, rel=1e-12)
    # one more makes one copy longer, and that is the step's time
    uneven = simulate(model, dgx(), Plan(tp=2, dp=4), Workload(batch=25))
    assert uneven.tpot == simulate(model, dgx(), Plan(tp=2), Workload(batch=7)).tpot


# --- the mean over the growing context ------------------------------------------------------


def mean_step_by_step(report: Report) -> float:
    first = report.point.workload.prompt + 1
    last = report.point.workload.prompt + max(report.point.workload.output - 1, 1)
    return float(np.mean([report.point.step_time("decode", c) for c in range(first, last + 1)]))


def crossing(dims: Dense, context: int) -> Platform:
    """A chip on which attention is bound by memory before *context* and by compute after."""
    bandwidth = dgx().chip.memory_bandwidth
    flop = dims.heads * 4 * dims.head_dim * context
    nbytes = (2 * dims.heads + 2 * (context + 1) * dims.kv_heads) * dims.head_dim * BF16
    return dgx().with_chip(peak={"bf16": flop / nbytes * bandwidth})


def test_the_mean_is_exact_where_attention_turns_from_memory_to_compute():
    workload = Workload(batch=8, prompt=5, output=60)
    platform = crossing(LLAMA, 31)
    report = simulate(load_model("llama-3.1-8b"), platform, Plan(), workload)
    limits = {
        context: report.point.timeline("decode", context).nx.nodes["layer.attention"]["limiter"]
        for context in (20, 50)
    }
    assert limits == {20: "memory", 50: "compute"}  # the case is what it is meant to be
    assert report.tpot == close(llama_tpot(LLAMA, platform, 1, workload), rel=1e-9)
    # and the straight line between the ends is not the answer
    ends = [llama_step(LLAMA, platform, 1, 8, context) for context in (6, 64)]
    assert abs(np.mean(ends) / report.tpot - 1) > 1e-9


@pytest.mark.parametrize("name", ["gemma-2-27b", "gemma-3-27b", "mistral-7b"])
@pytest.mark.parametrize(("batch", "output"), [(1, 300), (200, 40)])
def test_the_mean_is_exact_where_windows_fill_up(name, batch, output):
    model = load_model(name)
    window = next(n for dim, n in model.numbers.items() if dim.startswith("window"))
    workload = Workload(batch=batch, prompt=window - output // 3, output=output)
    report = simulate(model, dgx(), Plan(tp=2), workload)
    assert report.tpot == close(mean_step_by_step(report), rel=1e-11)


def test_the_mean_is_exact_where_chunks_end_at_both_ends_and_in_the_middle():
    # attention starts anew after each chunk: the first, the middle and the last step are alike
    model, chunk = load_model("llama-4-scout"), 8192
    workload = Workload(batch=16, prompt=chunk, output=2 * chunk + 2)
    report = simulate(model, load_platform("dgx-h200"), Plan(tp=8), workload)
    steps = report.point.step_time("decode", chunk + np.arange(1.0, 2 * chunk + 2))
    first, middle, last = steps[0], steps[chunk], steps[-1]
    assert first - middle == close(middle - last, rel=1e-3)
    assert report.tpot == close(np.mean(steps), rel=1e-9)


@settings(max_examples=15)
@given(
    prompt=st.integers(1, 300),
    output=st.integers(1, 120),
    batch=st.integers(1, 600),
    peak=st.floats(1e12, 1e15),
)
def test_the_mean_is_that_of_all_steps(prompt, output, batch, peak):
    model = dense("gemma2", sliding_window=64)
    platform = dgx().with_chip(peak={"bf16": peak})
    workload = Workload(batch=batch, prompt=prompt, output=output)
    report = simulate(model, platform, Plan(tp=2), workload)
    assert report.tpot == close(mean_step_by_step(report), rel=1e-11)


@settings(max_examples=10)
@given(st.lists(st.integers(1, 200), min_size=2, max_size=4), st.integers(1, 40))
def test_the_mean_of_an_array_is_that_of_each_point(prompts, output):
    model = dense("gemma2", sliding_window=64)
    together = simulate(model, dgx(), Plan(), Workload(prompt=np.array(prompts), output=output))
    for tpot, prompt in zip(together.tpot, prompts, strict=True):
        alone = simulate(model, dgx(), Plan(), Workload(prompt=prompt, output=output))
        assert tpot == close(alone.tpot, rel=1e-12)


@cache
def dense(kind: str, **changes: Any) -> Any:
    config = {
        "model_type": kind,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "vocab_size": 1000,
        "tie_word_embeddings": False,
    }
    return load_model({**config, **changes})


# --- arrays ---------------------------------------------------------------------------------

FIGURES: dict[str, Callable[[Report], Any]] = {
    "ttft": lambda r: r.ttft,
    "tpot": lambda r: r.tpot,
    "latency": lambda r: r.latency,
    "throughput": lambda r: r.throughput,
    "per chip": lambda r: r.throughput_per_chip,
    "decode": lambda r: r.decode_throughput,
    "weights": lambda r: r.memory.weights,
    "kv cache": lambda r: r.memory.kv_cache,
    "activations": lambda r: r.memory.activations,
    "capacity": lambda r: r.memory.capacity,
    "spare": lambda r: r.memory.spare,
    "fits": lambda r: r.fits,
    "chips": lambda r: r.num_chips,
}


def assert_points_agree(
    report: Report, alone: Callable[..., Report], shape: tuple[int, ...]
) -> None:
    assert report.point.shape == shape
    assert report.ttft.shape == report.tpot.shape == shape
    for index in itertools.product(*map(range, shape)):
        one = alone(*index)
        for name, figure in FIGURES.items():
            value = np.broadcast_to(figure(report), shape)[index]
            assert value == close(figure(one), rel=1e-12), (name, index)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gemma-2-27b"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_grid_is_a_loop_over_its_points(name, seed):
    draw = np.random.default_rng(seed)
    model = load_model(name)
    bandwidth = draw.uniform(1e12, 9e12, (2, 1, 1))
    peak = draw.uniform(1e13, 1e15, (3,))
    capacity = draw.uniform(1e9, 9e10, (2, 1, 1))
    batch = draw.integers(1, 400, (2, 1))
    tp = np.array([2, 4, 8])
    prompt = draw.integers(1, 6000, (2, 2, 1))
    output = draw.integers(1, 500, (2, 3))

    def machine(b: Any, p: Any, c: Any) -> Platform:
        return dgx().with_chip(memory_bandwidth=b, peak={"bf16": p}, memory_capacity=c)

    def alone(i: int, j: int, k: int) -> Report:
        return simulate(
            model,
            machine(float(bandwidth[i, 0, 0]), float(peak[k]), float(capacity[i, 0, 0])),
            Plan(tp=int(tp[k])),
            Workload(batch=int(batch[j, 0]), prompt=int(prompt[i, j, 0]), output=int(output[j, k])),
        )

    workload = Workload(batch=batch, prompt=prompt, output=output)
    report = simulate(model, machine(bandwidth, peak, capacity), Plan(tp=tp), workload)
    assert_points_agree(report, alone, (2, 2, 3))


def test_a_grid_with_one_chip_in_it_is_a_loop_over_its_points():
    # the prompt is short, so that logits and what is gathered of them are the peak
    model, tp = load_model("llama-3.1-8b"), np.array([1, 2])
    workload = Workload(batch=64, prompt=1, output=2)
    report = simulate(model, dgx(), Plan(tp=tp), workload)
    assert_points_agree(
        report, lambda i: simulate(model, dgx(), Plan(tp=int(tp[i])), workload), (2,)
    )


def test_times_of_a_grid_with_one_chip_in_it():
    model, tp, dp = load_model("llama-3.1-8b"), np.array([1, 2, 8]), np.array([[1], [4]])
    platform = load_platform("dgx-h100:4")
    report = simulate(model, platform, Plan(tp=tp, dp=dp), Workload(batch=9))
    for i, j in itertools.product(range(2), range(3)):
        plan = Plan(tp=int(tp[j]), dp=int(dp[i, 0]))
        one = simulate(model, platform, plan, Workload(batch=9))
        assert report.ttft[i, j] == close(one.ttft, rel=1e-12)
        assert report.tpot[i, j] == close(one.tpot, rel=1e-12)


@pytest.mark.parametrize("shape", [(70_000,), (3, 40_000), (40_000, 1)])
def test_tiles_do_not_show(shape):
    # more points than a tile holds: the first, the last and those around its edge
    model = dense("llama")
    batch = np.arange(1, int(np.prod(shape)) + 1).reshape(shape)
    report = simulate(model, dgx(), Plan(), Workload(batch=batch, prompt=20, output=8))
    flat = report.tpot.ravel()
    assert np.all(np.diff(flat) >= 0)
    for place in (0, 1, (1 << 15) - 1, 1 << 15, len(flat) - 1):
        one = simulate(model, dgx(), Plan(), Workload(batch=place + 1, prompt=20, output=8))
        assert flat[place] == close(one.tpot, rel=1e-12)


def test_a_point_of_a_grid_is_its_simulation():
    model, batch = load_model("llama-3.1-8b"), np.array([[1], [7]])
    platform = dgx().with_chip(memory_bandwidth=np.array([1e12, 2e12, 3e12]))
    report = simulate(model, platform, Plan(tp=2), Workload(batch=batch))
    one = simulate(model, dgx().with_chip(memory_bandwidth=3e12), Plan(tp=2), Workload(batch=7))
    assert json.dumps(report.at(1, 2).to_dict()) == json.dumps(one.to_dict())
    for index in [(0,), (2, 0), (0, 0, 0), (0.5, 0)]:
        with pytest.raises(SpecError):
            report.at(*index)
    with pytest.raises(SpecError, match="single design point"):
        one.at(0)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_timelines_of_a_grid_are_those_of_its_points(phase):
    # batches on both sides of where products turn from memory to compute
    model, batch = load_model("gemma-2-27b"), np.array([1, 64, 2000])
    report = simulate(model, dgx(), Plan(tp=4), Workload(batch=batch, prompt=50, output=9))
    together = getattr(report, phase)
    for i in range(3):
        alone = getattr(report.at(i), phase)
        assert together.time[i] == close(alone.time, rel=1e-12)
        shares = {name: np.broadcast_to(s, (3,))[i] for name, s in together.limiter_shares.items()}
        assert {n: s for n, s in shares.items() if s} == close(alone.limiter_shares, rel=1e-9)
        for many, one in zip(together.events, alone.events, strict=True):
            assert np.broadcast_to(many.time, (3,))[i] == close(one.time, rel=1e-12)
            assert np.broadcast_to(many.slack, (3,))[i] == close(one.slack, abs=1e-15)
            assert np.broadcast_to(many.work.flop, (3,))[i] == one.work.flop


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32, np.float64])
def test_arrays_of_other_types_mean_the_same(dtype):
    model = dense("llama")
    numbers = np.array([1, 2, 4], dtype)
    report = simulate(model, dgx(), Plan(tp=numbers), Workload(batch=numbers * 3, prompt=numbers))
    for tpot, n in zip(report.tpot, (1, 2, 4), strict=True):
        one = simulate(model, dgx(), Plan(tp=n), Workload(batch=3 * n, prompt=n))
        assert tpot == close(one.tpot, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint64])
def test_arrays_of_narrow_or_unsigned_types_mean_the_same(dtype):
    model = load_model("llama-3.1-8b")
    report = simulate(model, dgx(), Plan(tp=np.array([2, 4], dtype)), Workload())
    assert report.tpot[1] == close(simulate(model, dgx(), Plan(tp=4)).tpot, rel=1e-12)


def test_a_single_precision_array_is_computed_with_in_double():
    model = load_model("llama-3.1-8b")
    platform = dgx().with_chip(memory_bandwidth=np.array([1e12, 2e12], np.float32))
    report = simulate(model, platform, Plan(), Workload())
    assert report.tpot[1] == close(report.at(1).tpot, rel=1e-12)


# --- memory ---------------------------------------------------------------------------------


@six
@pytest.mark.parametrize("tp", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(("batch", "prompt", "output"), [(1, 2048, 256), (33, 6000, 100)])
def test_weights_and_kv_cache_by_hand(dims, tp, batch, prompt, output):
    workload = Workload(batch=batch, prompt=prompt, output=output)
    memory = simulate(load_model(dims.name), sixteen(), Plan(tp=tp), workload).memory
    assert memory.weights == close(dims.weights(tp), rel=1e-9)
    blocks = -(-(prompt + output) // 16)  # a sequence has whole blocks of 16 tokens
    assert memory.kv_cache == close(dims.kv_cache(tp, batch, 16 * blocks), rel=1e-9)


@six
def test_parameters_and_kv_bytes_by_hand(dims):
    model = load_model(dims.name)
    assert model.num_parameters * BF16 == dims.weights(1)
    assert model.num_active_parameters == model.num_parameters
    assert model.kv_bytes_per_token == 2 * dims.layers * dims.kv_heads * dims.head_dim * BF16


def liveness(graph: Graph, sizes: Sizes) -> float:
    """The most bytes alive at any operator of *graph* written out, by looking at each of them."""
    operators = [op for op, _ in graph.unroll().operators]
    storage = {tensor.name: tensor.name for tensor in graph.inputs}
    nbytes = {tensor.name: tensor.nbytes(sizes) for tensor in graph.inputs}
    first = dict.fromkeys(storage, 0)
    last: dict[str, int] = {}
    for index, op in enumerate(operators):
        for position, tensor in enumerate(op.outputs):
            if op.in_place:
                source = op.activations[min(position, len(op.activations) - 1)].name
                storage[tensor.name] = storage[source]
            else:
                storage[tensor.name] = tensor.name
                nbytes[tensor.name], first[tensor.name] = tensor.nbytes(sizes), index
                last[tensor.name] = index
        for tensor in op.activations:
            last[storage[tensor.name]] = index
    return max(
        sum(size for name, size in nbytes.items() if first[name] <= i <= last.get(name, -1))
        for i in range(len(operators))
    )


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3"])
@pytest.mark.parametrize("tp", [1, 4])
@pytest.mark.parametrize(("batch", "seq"), [(1, 1), (3, 100), (50, 1)])
def test_peak_activations_are_those_of_the_written_out_graph(kind, tp, batch, seq):
    model, plan = dense(kind, sliding_window=64), Plan(tp=tp)
    graph = shard(model.prefill, plan)
    sizes = plan.bind({**model.numbers, "batch": batch, "seq": seq, "context": seq}, graph.derived)
    assert peak_activations(graph, sizes) == close(liveness(graph, sizes), rel=1e-12)


def test_peak_activations_of_a_chain_by_hand():
    from opgraph.operator import Activation

    def step(name: str, source: Tensor, dims: str) -> Activation:
        return Activation(name=name, inputs=(source,), dims=dims)

    x = Tensor.of("x", "batch", "bf16")
    wide = step("wide", x, "batch wide")
    narrow = step("narrow", wide.outputs[0], "batch")
    graph = Graph("chain", (Block("only", (wide, narrow)),), (x,)).check()
    # while the wide one is written x is still there, while it is read the narrow one is already
    sizes = Sizes({"batch": 5, "wide": 10})
    assert peak_activations(graph, sizes) == (5 + 5 * 10) * 2


@given(graphs(most=4))
def test_peak_activations_of_any_graph(source):
    note(str(source))
    sizes = Sizes({"batch": 1})
    assert peak_activations(source, sizes) == liveness(source, sizes)


def test_what_passes_by_a_block_stays_in_memory():
    from strategies import graph, toy

    source = graph(
        Block("a", (toy("x", "in0"),)),
        Block("b", (toy("p", "in1"), toy("q", "p"), toy("r", "p", "q"))),
        Block("c", (toy("end", "x", "r"),)),
        inputs=("in0", "in1"),
    )
    # 2 bytes each: at r there are p, q, r and x; everywhere else three at most
    assert peak_activations(source, Sizes({"batch": 1})) == 4 * 2


def test_what_each_repetition_reads_stays_in_memory():
    from strategies import graph, toy

    body = (toy("a", "x", "in0"), toy("b", "a"), toy("c", "b"), toy("d", "c", "a", "b"))
    source = graph(
        Block("first", (toy("x", "in1"),)),
        Block("layer", body, 3, (("in0", "d"),)),
        inputs=("in0", "in1"),
    )
    # at d: a, b, c, d and, for the next repetition, x
    assert peak_activations(source, Sizes({"batch": 1})) == 5 * 2


def test_a_model_fits_exactly_when_its_bytes_do():
    workload = Workload(batch=4)
    model = load_model("llama-3.1-8b")
    need = simulate(model, dgx(), Plan(), workload).memory.total
    enough = simulate(model, dgx().with_chip(memory_capacity=need), Plan(), workload)
    short = simulate(model, dgx().with_chip(memory_capacity=need - 1e9), Plan(), workload)
    assert enough.fits is True
    assert enough.memory.spare == 0
    assert short.fits is False
    assert short.memory.spare == close(-1e9)
    assert "1 GB too much" in short.verdict
    assert "too much" in str(short)
    many = np.array([need - 1, need, need + 1])
    report = simulate(model, dgx().with_chip(memory_capacity=many), Plan(), workload)
    assert list(report.fits) == [False, True, True]


# --- invariants -----------------------------------------------------------------------------


def better(one: Report, other: Report) -> bool:
    """Whether *one* is nowhere slower than *other*, but for rounding."""
    rounding = 1 + 1e-12
    return bool(
        np.all(one.ttft <= other.ttft * rounding) and np.all(one.tpot <= other.tpot * rounding)
    )


loads = st.builds(
    Workload,
    batch=st.integers(1, 2000),
    prompt=st.integers(1, 3000),
    output=st.integers(1, 500),
)
plans = st.builds(Plan, tp=st.sampled_from([1, 2, 4, 8]), dp=st.sampled_from([1, 2]))


@settings(max_examples=20)
@given(loads, plans, st.floats(1.0, 8.0))
def test_a_faster_machine_is_never_slower(workload, plan, factor):
    model, machine = dense("gemma2", sliding_window=512), sixteen()
    before = simulate(model, machine, plan, workload)
    chip, link = machine.chip, machine.levels[0].link
    faster = [
        machine.with_chip(memory_bandwidth=chip.memory_bandwidth * factor),
        machine.with_chip(peak={"bf16": chip.peak("bf16") * factor}),
        machine.with_chip(vector=chip.vector * factor),
        machine.with_link("node", bandwidth=link.bandwidth * factor),
        machine.with_link("node", latency=link.latency / factor),
    ]
    assert all(better(simulate(model, other, plan, workload), before) for other in faster)


@settings(max_examples=20)
@given(loads, plans, st.integers(1, 50))
def test_more_to_do_never_takes_less(workload, plan, more):
    model = dense("gemma2", sliding_window=512)
    before = simulate(model, sixteen(), plan, workload)
    grown = [
        Workload(batch=workload.batch + more, prompt=workload.prompt, output=workload.output),
        Workload(batch=workload.batch, prompt=workload.prompt + more, output=workload.output),
    ]
    for other in grown:
        after = simulate(model, sixteen(), plan, other)
        assert better(before, after)
        assert after.memory.kv_cache >= before.memory.kv_cache
        assert after.memory.activations >= before.memory.activations
    longer = Workload(batch=workload.batch, prompt=workload.prompt, output=workload.output + more)
    after = simulate(model, sixteen(), plan, longer)
    assert after.ttft == before.ttft
    assert after.tpot >= before.tpot * (1 - 1e-12)


@settings(max_examples=20)
@given(loads, plans, st.floats(0.25, 4.0))
def test_a_machine_twice_as_fast_in_everything_takes_half(workload, plan, factor):
    model, machine = dense("llama"), sixteen()
    chip = machine.chip
    scaled = machine.with_chip(
        memory_bandwidth=chip.memory_bandwidth * factor,
        peak={"bf16": chip.peak("bf16") * factor},
        vector=chip.vector * factor,
    )
    for level in machine.levels:
        scaled = scaled.with_link(
            level.name, level.link.bandwidth * factor, level.link.latency / factor
        )
    before, after = (simulate(model, m, plan, workload) for m in (machine, scaled))
    assert after.ttft * factor == close(before.ttft, rel=1e-12)
    assert after.tpot * factor == close(before.tpot, rel=1e-12)


@pytest.mark.parametrize("tp", [1, 8])
def test_twice_the_layers_take_twice_the_time_but_for_the_ends(tp):
    # with t(L) = ends + L · layer: t(2L) − t(L) = t(3L) − t(2L)
    times, weights, caches = [], [], []
    for layers in (6, 12, 18):
        report = simulate(dense("llama", num_hidden_layers=layers), sixteen(), Plan(tp=tp))
        times.append(report.tpot)
        weights.append(report.memory.weights)
        caches.append(report.memory.kv_cache)
    assert times[2] - times[1] == close(times[1] - times[0], rel=1e-9)
    assert weights[2] - weights[1] == weights[1] - weights[0] > 0
    assert caches[1] == 2 * caches[0]


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_collapsed_layers_take_what_written_out_ones_take(tp):
    report = simulate(load_model("llama-3.1-8b"), dgx(), Plan(tp=tp), Workload(batch=16))
    from opgraph.cost import Machine
    from opgraph.timeline import predict

    for phase, context in (("prefill", 2048), ("decode", 2176)):
        whole = report.point.timeline(phase, context)
        graph, sizes = report.point.graph(phase).unroll(), report.point.sizes(phase, context)
        machine = Machine(dgx(), Plan(tp=tp))
        written_out = predict(phase, graph, sizes, machine, report.point.cost)
        assert written_out.time == close(whole.time, rel=1e-12)
        assert [e.name for e in written_out.events] == [e.name for e in whole.unroll().events]
        starts = [[float(e.starts[0]) for e in t.events] for t in (written_out, whole.unroll())]
        assert starts[0] == close(starts[1], abs=1e-12 * whole.time)


def test_a_neutral_calibration_is_the_ideal():
    args = (load_model("llama-3.1-8b"), dgx(), Plan(tp=4), Workload(batch=9))
    ideal, neutral = simulate(*args), simulate(*args, cost=Calibrated())
    assert (ideal.ttft, ideal.tpot) == (neutral.ttft, neutral.tpot)


def test_an_efficiency_and_an_overhead_by_hand():
    # of a step only products: at half of the bandwidth each takes twice as long, and 5 µs more
    args = (load_model("llama-3.1-8b"), dgx(), Plan(), Workload(batch=1))
    model = Calibrated({"gemm": Efficiency(memory=0.5, overhead=5e-6)})
    ideal, slow = simulate(*args), simulate(*args, cost=model)
    products = [e for e in ideal.decode.events if e.kind == "gemm"]
    assert {e.limiter for e in products} == {"memory"}
    more = sum((e.time + 5e-6) * e.count for e in products)
    assert slow.decode.time == close(ideal.decode.time + more, rel=1e-12)


def test_shares_of_limiters_add_up():
    report = simulate(load_model("llama-3.1-8b"), dgx(), Plan(tp=8), Workload(batch=16))
    for timeline in (report.prefill, report.decode):
        assert sum(timeline.limiter_shares.values()) == close(1.0)
        assert sum(row["share"] for row in timeline.rows()) == close(1.0)  # one chain
    path = report.decode.critical_path()
    assert (path["time_us"] * path["count"]).sum() == close(report.decode.time * 1e6)


SCRIPT = """
import json
from frontends import load_model
from hardware import load_platform
from opgraph import Plan, Workload, simulate
report = simulate(load_model("llama-3.1-8b"), load_platform("dgx-h100"), Plan(tp=2), Workload())
print(json.dumps(report.to_dict()))
"""


def test_two_processes_answer_the_same_bytes():
    root = str(Path(__file__).parent.parent)
    answers = [
        subprocess.run(  # noqa: S603
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("1", "4711")
    ]
    assert answers[0] == answers[1]
    assert json.loads(answers[0])["num_chips"] == 2


# --- what is refused ------------------------------------------------------------------------

BAD: dict[str, Any] = {
    "zero": 0,
    "negative": -3,
    "nan": float("nan"),
    "infinite": float("inf"),
    "a truth": True,
    "a text": "8",
    "nothing": None,
    "a fraction": 2.5,
    "a whole float": 2.0,
    "complex": 1j,
    "a list": [1, 2],
    "an array with zero": np.array([1, 0]),
    "an array with a fraction": np.array([1.0, 2.5]),
    "an array with nan": np.array([1.0, np.nan]),
    "an array with infinity": np.array([1.0, np.inf]),
    "an array below zero": np.array([1, -2]),
    "an empty array": np.array([]),
    "an array of truths": np.array([True, True]),
    "an array of objects": np.array([1, 2], object),
    "an array of texts": np.array(["1"]),
    "an array of complex": np.array([1 + 0j]),
}

MESSY: dict[str, Any] = {
    "a large array of zeros": np.zeros((40, 30)),
    "a large array of truths": np.ones((40, 30), bool),
    "two lines": "8\n8",
    "a long text": "8" * 100_000,
}


def one_line(error: pytest.ExceptionInfo[SpecError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def every_field() -> Iterator[tuple[type, str]]:
    yield from ((Workload, name) for name in ("batch", "prompt", "output"))
    yield from ((Plan, name) for name in ("tp", "dp"))


fields = pytest.mark.parametrize(
    ("make", "name"), list(every_field()), ids=lambda value: getattr(value, "__name__", value)
)


@fields
@pytest.mark.parametrize("value", list(BAD.values()), ids=list(BAD))
def test_a_number_that_is_none_is_refused_by_name(make, name, value):
    with pytest.raises(SpecError) as error:
        make(**{name: value})
    assert one_line(error).startswith(f"{name}=")


def messy() -> Iterator[Any]:
    for make, name in ((Workload, "prompt"), (Plan, "tp")):
        for label, value in MESSY.items():
            yield pytest.param(make, name, value, id=f"{name}: {label}")


@pytest.mark.parametrize(("make", "name", "value"), list(messy()))
def test_a_message_is_one_line_whatever_was_given(make, name, value):
    with pytest.raises(SpecError) as error:
        make(**{name: value})
    one_line(error)


@pytest.mark.parametrize("name", ["batch", "prompt", "output"])
@pytest.mark.parametrize("value", [2**40 + 1, 10**30, np.array([1, 2**41])], ids=str)
def test_a_size_beyond_reason_is_refused(name, value):
    with pytest.raises(SpecError) as error:
        Workload(**{name: value})
    assert one_line(error).startswith(f"{name}=")


@pytest.mark.parametrize(
    "give",
    [lambda n: Workload(batch=n), lambda n: simulate(dense("llama"), dgx(), Plan(tp=n))],
    ids=["Workload", "Plan"],
)
def test_a_number_of_thousands_of_digits_is_refused(give):
    with pytest.raises(SpecError) as error:
        give(10**5000)
    one_line(error)


@pytest.mark.parametrize("values", [np.int64(4), np.array(4), np.uint8(4)], ids=repr)
def test_numpy_numbers_are_numbers(values):
    assert Workload(batch=values).batch == 4


def test_numpy_numbers_are_numbers_for_plans():
    assert Plan(tp=np.int64(4)).num_chips == 4


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(tp=3), ["tp=3", "32 heads", "1, 2, 4, 8, 16, 32"]),
        (Plan(tp=16), ["tp=16 needs 16 chips", "dgx-h100 has 8"]),
        (Plan(tp=4, dp=4), ["tp=4 × dp=4 needs 16 chips", "dgx-h100 has 8"]),
        (Plan(tp=np.array([1, 2, 3])), ["tp=3", "32 heads"]),
        (Plan(tp=np.array([1, 64])), ["tp=64 needs 64 chips", "dgx-h100 has 8"]),
        (Plan(tp=10**12), ["needs 1000000000000 chips"]),
    ],
    ids=str,
)
def test_a_plan_that_does_not_fit_is_refused_by_name(plan, words):
    with pytest.raises(SpecError) as error:
        simulate(load_model("llama-3.1-8b"), dgx(), plan)
    message = one_line(error)
    assert all(word in message for word in words), message


def test_kv_heads_that_neither_divide_nor_are_divided_are_refused():
    # 12 heads on 4 chips are 3 each, but 6 KV heads are neither 4 parts nor a part of 4
    model = dense("llama", num_attention_heads=12, num_key_value_heads=6)
    with pytest.raises(SpecError, match="tp=4 does not divide the 6 kv_heads"):
        simulate(model, dgx(), Plan(tp=4))


def test_degrees_whose_product_overflows_are_refused():
    with pytest.raises(SpecError, match="chips"):
        simulate(dense("llama"), dgx(), Plan(tp=np.array([4]), dp=np.array([2**62])))


def test_arrays_that_do_not_broadcast_are_refused_by_name():
    with pytest.raises(SpecError) as error:
        simulate(dense("llama"), dgx(), Plan(), Workload(batch=np.ones(3), prompt=np.ones(4)))
    assert "(3,)" in one_line(error)


def test_arrays_of_the_plan_that_do_not_broadcast_are_refused_too():
    with pytest.raises(SpecError, match=r"\(3,\) and \(4,\)"):
        simulate(dense("llama"), dgx(), Plan(tp=np.ones(3), dp=np.ones(4)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda: (dense("llama"), dgx(), Workload(), Plan()), ["plan must be", "Workload(batch=1"]),
        (lambda: (dense("llama"), dgx(), Plan(), Plan()), ["workload must be", "Plan(tp=1"]),
        (lambda: (dgx(), dense("llama")), ["model must be", "load_model"]),
        (lambda: (dense("llama"), "dgx-h100"), ["platform must be", "'dgx-h100'"]),
        (lambda: ("llama-3.1-8b", dgx()), ["model must be", "'llama-3.1-8b'"]),
    ],
)
def test_arguments_in_another_ones_place_are_refused(arguments, words):
    with pytest.raises(SpecError) as error:
        simulate(*arguments())
    message = one_line(error)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (lambda: Plan(layers=5), "layers=5: must be numbers"),
        (lambda: Plan(layers="ab", pp=2), "layers='ab': must be numbers"),
        (lambda: Plan(order=None), "order=None: must be axes"),
        (lambda: Plan(sp=2), "sp=2: must be True or False"),
        (lambda: Offload(weights="all"), "weights is 'all', but must be from 0 to 1"),
        (lambda: Offload(kv_cache=True), "kv_cache is True"),
        (lambda: Offload(tier=3), "tier is 3, but must be a name"),
        (lambda: Host(per_step="slow"), "per_step is 'slow', but must be seconds"),
        (lambda: Host(per_operator=[1e-6]), r"per_operator is \[1e-06\]"),
        (lambda: Reserve(share="some"), "share is 'some', but must be from 0 to below 1"),
    ],
)
def test_a_setting_of_another_kind_is_refused(setting, message):
    with pytest.raises(SpecError, match=message):
        setting()


def test_settings_may_be_numpy_numbers():
    assert Offload(weights=np.float32(0.5)).is_used
    assert Host(per_step=np.int64(0)).per_step == 0


def test_a_cost_model_that_does_not_exist_names_the_nearest():
    with pytest.raises(SpecError, match="no cost model 'ideel'; did you mean 'ideal'"):
        simulate(dense("llama"), dgx(), cost="ideel")


def test_the_largest_sizes_still_give_finite_times():
    most = 2**40
    workload = Workload(batch=most, prompt=most, output=most)
    report = simulate(load_model("llama-3.1-8b"), dgx(), Plan(tp=8), workload)
    assert np.isfinite(report.ttft)
    assert np.isfinite(report.tpot)
    assert report.fits is False


def test_a_grid_as_a_table_is_its_points_one_by_one():
    bandwidth, batch = np.array([2e12, 4e12, 8e12])[:, None], np.array([1, 16])
    model = load_model("llama-3.1-8b")
    swept = dgx().with_chip(memory_bandwidth=bandwidth).with_link(latency=np.array([1e-6, 2e-6]))
    report = simulate(model, swept, Plan(tp=2), Workload(batch=batch, output=16))
    frame = report.to_frame()
    assert list(frame.columns)[:3] == ["chip.memory.0.bandwidth", "levels.0.link.latency", "batch"]
    assert len(frame) == 6
    for row in frame.to_dict("records"):
        chip = dgx().with_chip(memory_bandwidth=row["chip.memory.0.bandwidth"])
        platform = chip.with_link(latency=row["levels.0.link.latency"])
        work = Workload(batch=int(row["batch"]), output=16)
        one = simulate(model, platform, Plan(tp=2), work).to_dict()
        for key in ("ttft_ms", "tpot_ms", "throughput_tokens_per_s", "memory_GB_per_chip"):
            assert row[key] == close(one[key], rel=1e-12)
        assert (row["fits"], row["num_chips"]) == (one["fits"], 2)


def test_a_single_point_is_a_row_without_inputs():
    report = simulate(load_model("llama-3.1-8b"), dgx())
    (row,) = report.to_frame().to_dict("records")
    answer = report.to_dict()
    assert all(row[key] == answer[key] for key in row)


def test_one_token_has_no_time_per_output_token():
    one, two = (
        str(simulate(load_model("llama-3.1-8b"), dgx(), workload=Workload(output=output)))
        for output in (1, 2)
    )
    assert "TPOT       – (the prefill makes the only token)" in one
    assert "–" not in two


def test_skewed_choices_need_experts():
    skewed = Workload(skew=np.array([0.0, 1.0]))
    assert simulate(load_model("mixtral-8x7b"), dgx(), Plan(tp=8), skewed).ttft.shape == (2,)
    with pytest.raises(SpecError, match=r"skew=1: llama-3\.1-8b has no experts"):
        simulate(load_model("llama-3.1-8b"), dgx(), workload=skewed)


@pytest.mark.parametrize("make", [lambda v: Plan(tp=v), lambda v: Workload(batch=v)])
def test_a_list_is_told_of_arrays(make):
    with pytest.raises(SpecError, match=r"or an array: np\.array\(\[1, 2\]\)"):
        make([1, 2])


def test_a_timeline_prints_as_a_line():
    report = simulate(load_model("llama-3.1-8b"), dgx())
    assert str(report.decode) == "decode: 4.57 ms, 14 operators (h100-sxm, ideal)"
    swept = simulate(load_model("llama-3.1-8b"), dgx(), workload=Workload(batch=np.array([1, 900])))
    assert str(swept.decode).startswith("decode: 4.57 ms to ")


def test_memory_of_an_array_of_plans_has_its_shape_even_if_they_are_alike():
    same = simulate(load_model("llama-3.1-8b"), dgx(), Plan(tp=4, pp=np.array([2, 2])))
    one = simulate(load_model("llama-3.1-8b"), dgx(), Plan(tp=4, pp=2))
    assert same.memory.total.tolist() == [one.memory.total] * 2
    assert same.fits.tolist() == [True, True]
