"""Adapters, pruned caches, windows: what they add and what they save, by hand."""

import numpy as np
import pytest

from frontends import Lora, Variant, load_model
from hardware import SpecError, load_platform
from opgraph import Plan, Workload, simulate
from opgraph.sizes import Sizes

NAME = "llama-3.1-8b"
PLATFORM = load_platform("dgx-h100")
# in and out of the projections of a layer: q k v, out, gate up, down
PROJECTIONS = [(4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)]


def adapted(**lora):
    return load_model(NAME, variant=Variant(lora=Lora(**lora)))


def test_adapters_have_the_parameters_of_two_thin_matrices():
    plain = load_model(NAME).num_parameters
    each = 32 * sum(16 * (a + b) for a, b in PROJECTIONS)
    assert adapted(rank=16, count=5).num_parameters - plain == 5 * each
    attention = 32 * sum(16 * (a + b) for a, b in PROJECTIONS[:2])
    only = adapted(rank=16, targets=("attention",))
    assert only.num_parameters - plain == attention


def test_an_adapter_is_not_wider_than_the_model():
    assert adapted(rank=4096).num_parameters
    with pytest.raises(SpecError, match="rank 4097 is more than the width 4096 of llama"):
        adapted(rank=4097)


def work(model, batch, seq, context):
    sizes = Sizes(
        {**model.numbers, "batch": batch, "seq": seq, "context": context, "skew": 0.0},
        model.decode.derived,
    )
    return {op.name: op.work(sizes) for op, _ in model.decode.operators}


def test_a_product_of_adapters_takes_its_rank_and_reads_those_in_use():
    found = work(adapted(rank=16, count=4), batch=8, seq=1, context=100)["layer.out.lora_down"]
    assert found.flop == 2 * 8 * 4096 * 16
    used = 4 * (1 - (1 - 1 / 4) ** 8)
    assert found.read == pytest.approx(2 * (8 * 4096 + used * 4096 * 16))


def test_adapters_need_no_collective_of_their_own():
    for tp in (2, 8):
        plain, with_lora = (
            [
                op.kind
                for op, _ in simulate(model, PLATFORM, Plan(tp=tp)).decode.graph.operators
                if op.stream == "communication"
            ]
            for model in (load_model(NAME), adapted(rank=8))
        )
        assert plain == with_lora


def test_a_pruned_cache_is_smaller_and_read_less():
    half = load_model(NAME, variant=Variant(kv_kept=0.5))
    found = work(half, batch=4, seq=1, context=1001)["layer.attention"]
    # 1000 older positions, of which 500 are left, and the new one; 8 KV heads of 128
    assert found.flop == 4 * 4 * 32 * 128 * 501
    assert found.read == 2 * (4 * 4096 + 2 * 4 * 8 * 128 + 2 * 4 * 500 * 8 * 128)
    plain = simulate(load_model(NAME), PLATFORM).memory.kv_cache
    assert simulate(half, PLATFORM).memory.kv_cache == plain / 2


def test_pruning_does_not_touch_the_prefill():
    models = (load_model(NAME), load_model(NAME, variant=Variant(kv_kept=0.1)))
    assert len({simulate(model, PLATFORM).ttft for model in models}) == 1


def test_a_window_bounds_cache_and_keys():
    local = load_model(NAME, variant=Variant(window=256))
    found = work(local, batch=1, seq=1, context=10_000)["layer.attention"]
    assert found.flop == 4 * 32 * 128 * 256
    report = simulate(local, PLATFORM, workload=Workload(prompt=8000, output=10))
    assert report.memory.kv_cache == 32 * 2 * 256 * 8 * 128 * 2


def test_variants_broadcast():
    batch = np.array([1, 7, 64])
    model = load_model(NAME, variant=Variant(lora=Lora(rank=8, count=9), kv_kept=0.3))
    grid = simulate(model, PLATFORM, workload=Workload(batch=batch))
    for index, size in enumerate(batch):
        one = simulate(model, PLATFORM, workload=Workload(batch=int(size)))
        assert grid.tpot[index] == pytest.approx(one.tpot, rel=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Lora(rank=0), lambda: Lora(rank=1.5), lambda: Lora(rank=True),
        lambda: Lora(rank=4, count=0), lambda: Lora(rank=4, targets=("head",)),
        lambda: Variant(kv_kept=0), lambda: Variant(kv_kept=1.1), lambda: Variant(kv_kept="x"),
        lambda: Variant(kv_kept=float("nan")), lambda: Variant(window=-1),
        lambda: Variant(window=1.5), lambda: Variant(window=float("inf")),
    ],
)  # fmt: skip
def test_nonsense_is_refused(wrong):
    with pytest.raises(SpecError):
        wrong()
