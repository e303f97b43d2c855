"""LIMINAL's findings (Davies et al. 2025, abstract, i to v), as trends of the same model."""

from dataclasses import replace

import numpy as np
import pytest

from hardware import load_chip
from opgraph import Plan
from validation.papers.liminal import EvenPlan, decode, holds, rates

SYNC = np.array([0.1, 0.3, 1, 3, 10]) * 1e-6


def swept(name):
    """The chip with a board of all, whose collectives take each of `SYNC`."""
    chip = load_chip(name)
    return replace(chip, scale_up=replace(chip.scale_up, latency=SYNC[:, None]), max_scale_up=64)


@pytest.mark.parametrize("model", ["llama-3.1-405b", "deepseek-v3"])
def test_i_an_instance_takes_hundreds_of_gigabytes(model):
    memory = decode("xpu-hbm3", 1, model=model).memory
    held = memory.weights + memory.kv_cache
    assert np.all((held > 100e9) & (held < 1000e9))


def test_i_no_system_smaller_than_the_model_holds_it():
    for name in ("xpu-hbm3", "xpu-hbm4", "xpu-3d-dram", "xpu-cows"):
        capacity = load_chip(name).memory_capacity
        for tp in (1, 2, 4, 8, 16, 32, 64):
            enough = np.any(holds(decode(name, tp)))
            assert not (enough and tp * capacity < 405e9)
    assert np.all(holds(decode("xpu-hbm3", 8)))


def test_ii_a_users_rate_follows_memory_bandwidth():
    gain = rates("xpu-hbm4", 8) / rates("xpu-hbm3", 8)
    assert np.all((gain > 0.95 * 18 / 4) & (gain < 18 / 4))


def test_iii_collectives_slower_than_a_microsecond_waste_bandwidth():
    gain = (rates(swept("xpu-hbm4"), 64) / rates(swept("xpu-hbm3"), 64))[:, 0]
    assert np.all(np.diff(gain) < 0)
    fast, slow = gain[0], gain[-1]
    assert fast > 0.9 * 18 / 4
    assert slow < 1.5
    # two collectives a layer and one in the embedding, in closed form
    spent = 1 / rates(swept("xpu-hbm4"), 64)[:, 0]
    assert np.diff(spent) == pytest.approx((2 * 126 + 2) * np.diff(SYNC), rel=1e-9)


def test_iv_dram_serves_more_users_a_chip_than_sram():
    dram, sram = decode("xpu-hbm3", 8), decode("xpu-sram", 128, 8)
    assert np.all(holds(dram))
    assert np.all(holds(sram))
    assert np.all(1 / dram.tpot / 8 > 5 * (1 / sram.tpot / 1024))
    # and takes batches, where SRAM has no room for a second sequence of long context
    assert np.all(holds(decode("xpu-hbm4", 8, batch=16)))
    assert not holds(decode("xpu-sram", 128, 8, batch=16))[1]


def test_v_thousands_of_tokens_but_ten_thousand_only_for_smaller_models():
    systems = [("xpu-hbm4", 8), ("xpu-hbm4", 64), ("xpu-3d-dram", 8), ("xpu-3d-dram", 64)]
    best = [1 / decode(*system, model="llama-3.1-70b").tpot[0] for system in systems]
    assert min(best) > 2000
    assert max(best) < 10_000
    assert 1 / decode("xpu-3d-dram", 8, model="llama-3.2-1b").tpot[0] > 10_000


def test_an_even_plan_splits_a_shared_kv_head():
    numbers = {"kv_heads": 8, "heads": 128}
    even, usual = (kind(tp=32).bind(numbers, {}) for kind in (EvenPlan, Plan))
    axes = even.axes("kv_heads")
    assert (even.local("kv_heads", axes), usual.local("kv_heads", axes)) == (0.25, 1)
