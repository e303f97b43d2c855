"""Mixture of experts: which experts are touched, by how many rows, on which chip; and the bytes."""

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontends import Precision, load_model
from hardware import SpecError, load_platform
from opgraph import Plan, Workload, simulate
from opgraph.experts import Combine, GroupedEinsum
from opgraph.passes import shard
from opgraph.routing import imbalance, popularity, touched_experts
from opgraph.sizes import Sizes, Split
from opgraph.tensor import Tensor

experts_topk = st.integers(1, 512).flatmap(
    lambda experts: st.tuples(st.just(experts), st.integers(1, min(experts, 32)))
)
skews = st.floats(0, 4)
tokens = st.integers(1, 10**6)
deals = st.sampled_from([1, 2, 4, 8])


@given(experts_topk, skews)
def test_chances_add_up_to_the_experts_of_a_token(pair, skew):
    experts, topk = pair
    chances = popularity(experts, topk, skew)
    assert chances.sum() == pytest.approx(topk)
    assert np.all((chances >= 0) & (chances <= 1 + 1e-12))
    assert np.all(np.diff(chances) <= 1e-12)


@given(experts_topk, skews, tokens)
def test_a_step_touches_between_topk_and_all_its_rows_can_reach(pair, skew, count):
    experts, topk = pair
    touched = touched_experts(experts, topk, skew, 1, count)
    slack = 1e-6 * experts
    assert topk - slack <= touched <= min(experts, topk * count) + slack


@given(experts_topk, tokens)
def test_skew_touches_fewer(pair, count):
    experts, topk = pair
    found = [touched_experts(experts, topk, skew, 1, count) for skew in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert np.all(np.diff(found) <= 1e-6 * experts)


@given(experts_topk, skews, tokens)
def test_more_tokens_touch_no_fewer(pair, skew, count):
    few, many = (touched_experts(*pair, skew, 1, n) for n in (count, 2 * count))
    assert many >= few - 1e-9 * pair[0]


@given(experts_topk, skews, deals)
def test_the_busiest_chip_has_at_least_the_mean_and_at_most_all(pair, skew, chips):
    experts, topk = pair
    factor = imbalance(experts, topk, skew, chips)
    assert 1 - 1e-9 <= factor <= chips + 1e-9
    assert imbalance(experts, topk, 0.0, chips) == 1


def test_touched_by_counting_all_choices():
    """4 experts, 2 per token, 2 tokens: all 36 pairs of choices."""
    choices = [{a, b} for a in range(4) for b in range(a)]
    union = [len(first | second) for first, second in product(choices, repeat=2)]
    assert len(union) == comb(4, 2) ** 2
    assert touched_experts(4, 2, 0.0, 1, 2) == pytest.approx(sum(union) / len(union))


def test_touched_of_deepseek_v3_on_eight_chips():
    """Batch 32, 256 experts over 8 chips: 32·(1 − (1 − 8/256)³²), as in arXiv 2507.15465."""
    assert touched_experts(256, 8, 0.0, 8, 32) == pytest.approx(20.4, abs=0.05)


def test_skew_by_hand():
    """Zipf's law with exponent 1 over 3 experts: 6/11, 3/11, 2/11; of 2 chips one has 6 + 2."""
    assert popularity(3, 1, 1.0) == pytest.approx(np.array([6, 3, 2]) / 11)
    assert imbalance(3, 1, 1.0, 2) == pytest.approx(2 * 8 / 11)
    # two per token: 12/11 is more than certain, the rest is for the others: 3/5, 2/5
    assert popularity(3, 2, 1.0) == pytest.approx([1, 0.6, 0.4])


@given(experts_topk)
def test_arrays_and_scalars_agree(pair):
    skew, chips, count = np.array([0.0, 1.0])[:, None, None], np.array([1, 4])[:, None], [1, 9, 99]
    array = touched_experts(*pair, skew, chips, np.array(count))
    factor = imbalance(*pair, skew, chips)
    for (i, s), (j, n), (k, t) in product(
        enumerate((0.0, 1.0)), enumerate((1, 4)), enumerate(count)
    ):
        assert array[i, j, k] == pytest.approx(touched_experts(*pair, s, n, t), rel=1e-12)
        assert factor[i, j, 0] == pytest.approx(imbalance(*pair, s, n), rel=1e-12)


def grouped(dtype="fp8"):
    rows = Tensor.of("rows", "batch seq topk model", dtype)
    weight = Tensor.of("w", "experts model ffn", dtype, "weight")
    bias = Tensor.of("b", "experts ffn", dtype, "weight")
    pattern = "batch seq topk model, experts model ffn -> batch seq topk ffn"
    return GroupedEinsum(name="up", inputs=(rows, weight, bias), pattern=pattern)


SIZES = {"batch": 16, "seq": 1, "topk": 4, "model": 64, "experts": 32, "ffn": 128}


def test_grouped_product_by_hand():
    """16 tokens × 4 rows; a bias is one sum more for each result; one byte per number."""
    work = grouped().work(Sizes({**SIZES, "skew": 0.0}))
    touched = 32 * (1 - (1 - 4 / 32) ** 16)
    assert work.flop == 64 * 128 * (2 * 64 + 1)
    assert work.read == pytest.approx(64 * 64 + touched * (64 + 1) * 128)
    assert work.written == 64 * 128


def test_grouped_product_on_four_chips():
    """A chip has a quarter of the experts and of the rows, and sees every token."""
    splits = {"experts": Split(("ep",)), "topk": Split((), "share")}
    layout = {"experts": ("ep",), "topk": ("ep",)}
    rows, weight, bias = (tensor.laid_out(layout) for tensor in grouped().inputs)
    part = GroupedEinsum(
        name="up", inputs=(rows, weight, bias), pattern=grouped().pattern, layout=layout
    )
    sizes = Sizes({**SIZES, "skew": 0.0}, {}, {"ep": 4}, splits)
    whole = grouped().work(Sizes({**SIZES, "skew": 0.0}))
    work = part.work(sizes)
    assert work.flop * 4 == pytest.approx(whole.flop)
    assert work.read * 4 == pytest.approx(whole.read)
    skewed = part.work(Sizes({**SIZES, "skew": 1.0}, {}, {"ep": 4}, splits))
    assert skewed.flop / work.flop == pytest.approx(imbalance(32, 4, 1.0, 4))


PRECISION = Precision(weights="fp8", activations="fp8", kv_cache="fp8")


@pytest.mark.parametrize("batch", [1, 4, 128])
def test_experts_of_mixtral_by_hand(batch):
    """All tensors one byte: rows of 4096, 8 experts of 14336, two per token."""
    point = simulate(
        load_model("mixtral-8x7b", precision=PRECISION),
        load_platform("dgx-h100"),
        workload=Workload(batch=batch, prompt=1, output=2),
    ).point
    sizes = point.sizes("decode", 2)
    ops = {op.name: op for op, _ in point.graph("decode").operators}
    touched, rows = 8 * (1 - (1 - 2 / 8) ** batch), 2 * batch
    work = ops["layer.experts_gate_up"].work(sizes)
    assert work.flop == 2 * rows * 4096 * 28672
    assert work.read == pytest.approx(rows * 4096 + touched * 4096 * 28672)
    assert work.written == rows * 28672
    assert ops["layer.router"].flop(sizes) == 2 * batch * 8 * 4096
    assert isinstance(ops["layer.combine"], Combine)
    assert ops["layer.combine"].flop(sizes) == 2 * rows * 4096


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen1.5-moe-a2.7b", "llama-4-scout"])
def test_shared_and_routed_experts_share_one_all_reduce(name):
    graph = shard(load_model(name).decode, Plan(tp=4))
    block = max(graph.blocks, key=lambda block: block.count)
    sums = [op.name for op in block.operators if op.kind == "all_reduce"]
    mixers = [op for op in block.operators if op.kind == "attention"]
    assert len(sums) == 2 * len(mixers)
    assert sum(name.endswith("experts_sum.all_reduce") for name in sums) == len(mixers)


def test_skew_slows_no_step_on_one_chip_and_reads_less():
    model, platform = load_model("qwen3-30b-a3b"), load_platform("dgx-h200")
    times = [
        simulate(model, platform, workload=Workload(batch=16, output=2, skew=skew)).tpot
        for skew in (0, 0.8, 2)
    ]
    assert times == sorted(times, reverse=True)


def test_skew_may_be_an_array():
    model, platform = load_model("mixtral-8x7b"), load_platform("dgx-h200")
    skew = np.array([0.0, 1.0])
    together = simulate(model, platform, Plan(tp=2), Workload(batch=4, output=8, skew=skew)).tpot
    apart = [
        simulate(model, platform, Plan(tp=2), Workload(batch=4, output=8, skew=s)).tpot
        for s in skew.tolist()
    ]
    assert together == pytest.approx(apart, rel=1e-12)


@pytest.mark.parametrize("skew", [-0.1, 4.1, float("nan"), float("inf"), True, "1", np.array([5])])
def test_a_skew_out_of_range_is_refused(skew):
    with pytest.raises(SpecError, match=r"skew=.*from 0"):
        Workload(skew=skew)


def test_active_parameters_of_mixtral():
    """All but the experts, and two of eight of those."""
    model = load_model("mixtral-8x7b")
    experts = 32 * 8 * 3 * 4096 * 14336
    assert model.num_active_parameters == model.num_parameters - experts * 6 // 8
