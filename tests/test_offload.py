"""Weights and caches in a farther tier: what is fetched, what that costs, what stays behind."""

from dataclasses import replace

import numpy as np
import pytest

from frontends import load_model
from hardware import SpecError, load_platform, load_tier
from opgraph import Offload, Plan, Workload, simulate
from opgraph.timeline import predict

MODEL, PLATFORM = "llama-3.1-8b", "dgx-h100"
WORK = Workload(batch=4, prompt=512, output=32)


def report(offload: Offload, plan: Plan | None = None, work: Workload = WORK):
    return simulate(
        load_model(MODEL), load_platform(PLATFORM), plan or Plan(), work, offload=offload
    )


def test_nothing_offloaded_is_nothing():
    alone = simulate(load_model(MODEL), load_platform(PLATFORM), Plan(), WORK)
    assert report(Offload()).tpot == alone.tpot
    assert not any(event.kind == "fetch" for event in report(Offload()).decode.events)


def test_a_step_bound_by_the_tier_takes_as_long_as_it_gives_the_weights():
    found = report(Offload(weights=1.0))
    tier = load_platform(PLATFORM).tiers[0]
    model = load_model(MODEL)
    # all weights but the embedding come once, and a latency for each of the blocks that have some
    held = 2 * (model.num_parameters - model.numbers["vocab"] * model.numbers["model"])
    fetches = [event for event in found.decode.events if event.kind == "fetch"]
    sent = sum(event.work.sent * event.count for event in fetches)
    assert sent == pytest.approx(held)
    latency = tier.latency * sum(event.count for event in fetches)
    assert found.tpot == pytest.approx(held / tier.rate() + latency, rel=1e-3)
    assert found.decode.limiter_shares["tier bandwidth"] > 0.9


def test_little_enough_is_fetched_under_what_is_computed():
    alone, some = report(Offload()), report(Offload(weights=0.005))
    assert some.tpot == pytest.approx(alone.tpot, rel=0.01)
    fetch = next(event for event in some.decode.events if event.name == "layer.fetch")
    assert fetch.slack > 0


def test_a_layer_waits_for_its_weights_in_the_written_out_graph_too():
    for share in (0.01, 0.2, 1.0):
        point = report(Offload(weights=share, kv_cache=share)).point
        whole = point.timeline("decode", 600)
        graph, sizes = point.graph("decode").unroll(), point.sizes("decode", 600)
        out = predict("decode", graph, sizes, point.machine, point.cost)
        assert out.time == pytest.approx(whole.time, rel=1e-12)
        starts = {e.name: float(e.starts[0]) for e in out.events}
        ends = {e.name: float(e.starts[0] + e.time) for e in out.events}
        for layer in range(1, 32):
            assert starts[f"{layer}.layer.qkv"] >= ends[f"{layer - 1}.layer.fetch"] - 1e-12


@pytest.mark.parametrize("plan", [Plan(), Plan(tp=4), Plan(tp=2, pp=2)])
def test_what_leaves_the_chip_is_in_the_tier(plan):
    less = report(Offload(weights=0.5), plan)
    # which stage is the fullest may change, so each is compared with itself
    alone, some = (found.point.footprints() for found in (report(Offload(), plan), less))
    for whole, left in zip(alone, some, strict=True):
        assert left.weights + left.offloaded == pytest.approx(whole.weights, rel=1e-12)
        # the embedding stays; of the head, and of all else, half goes
        table = whole.by_class["embedding and head"]
        assert whole.weights / 2 - table / 2 <= left.offloaded <= whole.weights / 2
    assert less.memory.total == max(left.total for left in some)
    whole = report(Offload(), plan).memory
    caches = report(Offload(kv_cache=0.25), plan).memory
    assert caches.kv_cache == pytest.approx(0.75 * whole.kv_cache)
    assert caches.offloaded == pytest.approx(0.25 * whole.kv_cache)
    assert caches.buffers > 0


def test_more_fits_where_weights_are_away():
    model, platform = load_model("llama-3.1-405b"), load_platform(PLATFORM)
    batches = simulate(
        model, platform, Plan(tp=8), offload=Offload(weights=np.array([0.0, 0.3, 0.6]))
    ).max_batch
    assert batches[0] == 0
    assert 0 < batches[1] < batches[2]


def test_a_tier_that_is_too_small_is_said_to_be():
    tier = replace(load_tier("host-pcie5"), name="small", capacity=1e9)
    platform = load_platform("h100-sxm:1").with_tier(tier)
    found = simulate(
        load_model(MODEL), platform, Plan(), WORK, offload=Offload(weights=1.0, tier="small")
    )
    assert not found.fits
    assert "offloaded to a tier" in found.verdict


def test_what_the_cache_of_a_pool_holds_comes_at_its_rate():
    pool = load_tier("photonic-pool")
    assert pool.cache is not None
    for share, cache in ((1.0, pool.cache.capacity), (1.0, 4e9 * pool.shared_by)):
        tier = replace(pool, cache=replace(pool.cache, capacity=cache), total_bandwidth=1e12)
        platform = load_platform("h100-sxm:1").with_tier(tier)
        found = simulate(load_model(MODEL), platform, Plan(), WORK, offload=Offload(weights=share))
        held = min(1.0, cache / pool.shared_by / found.memory.offloaded)
        sent = sum(e.work.sent * e.count for e in found.decode.events if e.kind == "fetch")
        seconds = sent * (held / tier.rate(cached=True) + (1 - held) / tier.rate())
        copies = [e for e in found.decode.events if e.kind == "fetch"]
        latency = tier.latency * sum(event.count for event in copies)
        assert sum(float(e.time) * e.count for e in copies) == pytest.approx(seconds + latency)
    assert held < 1


def test_an_array_of_shares_is_each_of_them():
    shares = np.array([0.0, 0.1, 1.0])
    many = report(Offload(weights=shares, kv_cache=shares))
    for index, share in enumerate(shares.tolist()):
        one = report(Offload(weights=share, kv_cache=share))
        assert many.tpot[index] == pytest.approx(one.tpot, rel=1e-9)
        assert many.memory.total[index] == pytest.approx(one.memory.total, rel=1e-12)
        assert many.at(index).tpot == pytest.approx(one.tpot, rel=1e-9)


@pytest.mark.parametrize("level", ["tiled", "corrected"])
def test_fitted_levels_fetch_at_the_same_rate(level):
    found = simulate(
        load_model(MODEL), load_platform(PLATFORM), cost=level, offload=Offload(weights=1.0)
    )
    ideal = report(Offload(weights=1.0), work=Workload())
    assert found.tpot == pytest.approx(ideal.tpot, rel=0.01)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Offload(weights=1.5), ["weights is 1.5", "from 0 to 1"]),
        (lambda: Offload(kv_cache=-0.1), ["kv_cache is -0.1"]),
        (lambda: Offload(weights=float("nan")), ["weights is nan"]),
        (lambda: report(Offload(weights=0.5, tier="host-pcie")), ["'host-pcie'", "host-pcie4"]),
        (
            lambda: simulate(
                load_model(MODEL), load_platform("h100-sxm:1"), offload=Offload(weights=0.5)
            ),
            ["h100-sxm:1", "tier='host-pcie5'"],
        ),
    ],
)
def test_offloads_that_make_no_sense(make, words):
    with pytest.raises(SpecError) as error:
        make()
    assert all(word in str(error.value) for word in words), error.value


def test_what_is_fetched_takes_the_tiers_energy_and_the_memorys():
    plain, pool = report(Offload()), load_tier("photonic-pool")
    some = report(Offload(weights=0.5, tier="photonic-pool"))
    fetches = [event for event in some.decode.events if event.kind == "fetch"]
    nbytes = sum(event.work.sent * event.count for event in fetches)
    chip = load_platform(PLATFORM).chip
    more = some.decode_energy.active - plain.decode_energy.active
    assert more == pytest.approx(nbytes * (pool.energy + chip.memory_energy))
