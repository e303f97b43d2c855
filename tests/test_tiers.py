"""Tiers of memory beyond a chip's own, and the machines of the papers."""

import math

import numpy as np
import pytest

from hardware import (
    Group,
    Memory,
    SpecError,
    Tier,
    list_tiers,
    load_chip,
    load_platform,
    load_tier,
    parse_quantity,
)

GOOD = {"name": "t", "source": "us", "capacity": 1e12, "bandwidth": 5e10, "latency": 1e-6,
        "latency_source": "us"}  # fmt: skip


@pytest.mark.parametrize("name", list_tiers())
def test_every_tier_of_the_catalogue(name):
    tier = load_tier(name)
    assert tier.name == name
    assert tier.capacity_per_chip * tier.shared_by == pytest.approx(tier.capacity)
    assert 0 < tier.rate() <= tier.rate(1) == tier.bandwidth
    # farther than the memory of any chip that has it, and slower
    assert tier.bandwidth < load_chip("a100-sxm-80gb").memory_bandwidth


def test_chips_that_share_a_tier_share_its_bandwidth():
    host = load_tier("host-pcie4")
    assert host.rate(1) == 32e9  # PCIe 4.0 x16
    assert host.rate(8) == 32e9
    assert host.rate(16) == pytest.approx(409.6e9 / 16)  # two sockets of 8 × 25.6 GB/s
    assert host.rate(np.array([1, 16])) == pytest.approx([32e9, 25.6e9])
    assert load_tier("grace-c2c").rate() == pytest.approx(389e9 / 2)
    assert load_tier("cxl-x16").rate(4) == 64e9


def test_a_cache_in_front_of_a_pool():
    pool = load_tier("photonic-pool")
    assert pool.cache.capacity == 16 * 2 * 36e9
    assert pool.rate(cached=True) == 900e9  # the port: 26.8 TB/s for 16 are more
    assert pool.rate(64, cached=True) == pytest.approx(26.8e12 / 64)
    assert pool.energy == pytest.approx((5 + 25 + 5) * 8e-12)
    with pytest.raises(SpecError, match="tier host-pcie5 has no cache in front"):
        load_tier("host-pcie5").rate(cached=True)


def test_tiers_of_platforms():
    node = load_platform("dgx-h100")
    assert [tier.name for tier in node.tiers] == ["host-pcie5"]
    assert node.tier("host-pcie5").capacity_per_chip == 250e9
    assert [tier.name for tier in node.with_tier(load_tier("cxl-x16")).tiers][1] == "cxl-x16"
    assert node.replicate(4).tier("host-pcie5") == node.tier("host-pcie5")
    with pytest.raises(SpecError, match="dgx-h100 has no tier 'host'; did you mean 'host-pcie5'"):
        node.tier("host")
    with pytest.raises(SpecError, match="need different names: host-pcie5, host-pcie5"):
        node.with_tier(load_tier("host-pcie5"))
    with pytest.raises(SpecError, match="unknown tier 'cxl'; did you mean 'cxl-x16'"):
        load_tier("cxl")


def test_a_tier_of_ones_own(tmp_path):
    (tmp_path / "pool.toml").write_text(
        'name = "pool"\nsource = "us"\ncapacity = "1 TB"\nbandwidth = "100 GB/s"\n'
        'latency = "2 us"\nlatency_source = "us"\nenergy = "30 pJ/B"\n'
    )
    (tmp_path / "machine.toml").write_text(
        'name = "machine"\nsource = "us"\nchip = "h100-sxm"\nlevels = []\n'
        'tiers = ["pool.toml", "cxl-x16"]\n'
    )
    machine = load_platform(str(tmp_path / "machine.toml"))
    assert [tier.name for tier in machine.tiers] == ["pool", "cxl-x16"]
    assert machine.tier("pool").energy == pytest.approx(30e-12)


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"bandwidth": 0}, "bandwidth of tier t must be finite and positive, not 0"),
        ({"capacity": math.nan}, "capacity of tier t must be finite"),
        ({"latency": -1.0}, "latency of tier t must be 0 or more"),
        ({"energy": -1.0}, "energy of tier t must be"),
        ({"total_bandwidth": math.inf}, "total_bandwidth of tier t"),
        ({"cache": Memory(name="c", capacity=1.0)}, "is missing in the cache of tier t"),
    ],
)  # fmt: skip
def test_a_tier_that_cannot_be(figures, message):
    with pytest.raises(SpecError, match=message):
        Tier(**{**GOOD, **figures})


def test_energies_have_a_unit():
    assert parse_quantity("30 pJ/B", "J/B") == pytest.approx(30e-12)
    with pytest.raises(SpecError, match="no unit; write '30 pJ/B'"):
        parse_quantity("30", "J/B")


# The machines of the papers, from what these say themselves.
PUBLISHED = {(8, 4096): 86, (8, 131072): 80, (32, 4096): 290, (32, 131072): 271,
             (128, 4096): 776, (128, 131072): 743}  # fmt: skip


def liminal_rate(platform, tp, context):
    """Tokens per second of one user of Llama-3-405B in fp8: memory, and two all-reduces a layer.

    405e9 bytes of weights; 126 layers, 2 × 8 heads × 128 bytes of KV cache per token in each.
    """
    moved = 405e9 + 126 * 2 * 8 * 128 * context
    memory = moved / (tp * platform.chip.memory_bandwidth)
    exposed = 2 * 126 * platform.collective("all_reduce", 16384.0, Group(tp)).time
    return 1 / (memory + exposed)


@pytest.mark.parametrize(("tp", "context"), PUBLISHED)
def test_published_rates_of_liminal(tp, context):
    rate = liminal_rate(load_platform("liminal-hbm3"), tp, context)
    assert rate == pytest.approx(PUBLISHED[tp, context], rel=6e-3)


def test_technologies_of_liminal():
    rates = {t: liminal_rate(load_platform(f"liminal-{t}"), 128, 4096) for t in
             ("hbm3", "hbm4", "3d-dram", "sram", "cows")}  # fmt: skip
    assert list(rates.values()) == sorted(rates.values())
    assert rates["hbm4"] == pytest.approx(1375, rel=6e-3)
    assert rates["3d-dram"] == pytest.approx(1508, rel=6e-3)
    # bandwidth ceases to help: synchronisation alone allows 1 / (126 · 4.5 us)
    assert rates["cows"] < 1 / (126 * 4.5e-6) == pytest.approx(1764, rel=1e-3)
    chips = {t: math.ceil(405e9 / load_chip(f"xpu-{t}").memory_capacity) for t in rates}
    assert chips == {"hbm3": 5, "hbm4": 3, "3d-dram": 12, "sram": 792, "cows": 37}


def test_networks_of_mla_and_moe_differ_from_the_published_times_by_one_imbalance():
    """128 tokens · 8 experts · 7168 · 2 bytes; the busiest chip has 6 % more than the mean."""
    nbytes = 128 * 8 * 7168 * 2.0
    skews = []
    for network, published in (("nvlink", 17.65e-6), ("infiniband", 151.8e-6)):
        priced = load_platform(f"mla-moe-{network}").collective("all_to_all", nbytes, 32)
        assert priced.time == pytest.approx(published, rel=0.065)
        skews.append((published - priced.latency_time) / priced.bandwidth_time)
    assert skews[0] == pytest.approx(skews[1], rel=1e-3)
    assert skews[0] == pytest.approx(1.061, rel=1e-3)


def test_the_photonic_appliance_is_eight_chips_in_one():
    one, eight = load_platform("photonic-pfa"), load_platform("dgx-h100")
    assert one.num_chips == 1
    assert one.chip.memory_bandwidth == 8 * eight.chip.memory_bandwidth
    assert one.chip.peak("fp8") == pytest.approx(8 * eight.chip.peak("fp8"), rel=1e-3)
    fabric = load_platform("photonic-h100")
    assert fabric.levels[0].link.bandwidth == pytest.approx(7.2e12 / 8)
    assert fabric.tier("photonic-pool").shared_by == fabric.num_chips
