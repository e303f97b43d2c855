"""Levels of fidelity: operators priced by fitted kernels."""

import math

import numpy as np
import pytest

from frontends import load_model
from hardware import SpecError, load_platform
from opgraph import Plan, Workload, simulate
from opgraph.cost import LEVELS, LIMITERS
from opgraph.kernels import KERNELS
from opgraph.kernels.kernel import Limiter

FITTED = LEVELS[1:]
MEASURED = ["dgx-a100", "dgx-h100", "dgx-h200", "dgx-b200", "gb200-nvl72"]
MODELS = ["llama-3.1-8b", "gemma-2-27b", "mixtral-8x7b", "deepseek-v3", "qwen3-next-80b-a3b",
          "mamba2-2.7b", "gpt-oss-20b"]  # fmt: skip


def step(model="llama-3.1-8b", platform="dgx-h100", tp=2, cost="corrected", **work):
    return simulate(
        load_model(model), load_platform(platform), Plan(tp=tp), Workload(**work), cost=cost
    )


def test_limiters_are_those_of_the_kernels():
    words = [limiter.name.lower().replace("_", " ") for limiter in Limiter]
    assert tuple(words) == LIMITERS


@pytest.mark.parametrize("level", FITTED)
@pytest.mark.parametrize("model", MODELS)
def test_every_family_has_a_time_and_an_interval(model, level):
    report = step(model, cost=level, batch=8, prompt=512)
    for timeline in (report.prefill, report.decode):
        assert 0 < timeline.time < math.inf
        low, high = timeline.interval
        assert 0 < low <= timeline.time <= high < math.inf
        for row in timeline.rows():
            assert 0 <= row["low_us"] <= row["high_us"] < math.inf
            assert row["limiter"] in LIMITERS
            assert row["provenance"]


@pytest.mark.parametrize("platform", MEASURED)
def test_what_is_fitted_is_slower_than_the_ideal(platform):
    times = {level: step(platform=platform, cost=level, batch=16).tpot for level in LEVELS}
    assert all(times["ideal"] < times[level] < 8 * times["ideal"] for level in FITTED)


def test_results_say_what_they_rest_on():
    report = step(batch=4)
    assert report.to_dict()["cost_model"] == "corrected"
    kinds = {row["kind"]: row["provenance"] for row in report.decode.rows()}
    assert kinds["gemm"] == kinds["attention"] == kinds["all_reduce"] == "measured"
    assert {row["provenance"] for row in step(cost="ideal").decode.rows()} == {"ideal"}


def test_a_mixture_of_experts_is_one_kernel():
    rows = {row["name"]: row for row in step("mixtral-8x7b", batch=8).decode.rows()}
    assert rows["layer.dispatch"]["time_us"] == rows["layer.combine"]["time_us"] == 0
    up, down = (rows[f"layer.experts_{part}"]["time_us"] for part in ("gate_up", "down"))
    # gate and up are two of the three matrices
    assert up == pytest.approx(2 * down, rel=1e-9)


@pytest.mark.parametrize("level", FITTED)
def test_arrays_give_what_each_point_gives(level):
    batch = np.array([1, 5, 33, 200])
    grid = step(cost=level, batch=batch, prompt=700, output=9)
    for index, size in enumerate(batch):
        one = step(cost=level, batch=int(size), prompt=700, output=9)
        assert grid.ttft[index] == pytest.approx(one.ttft, rel=1e-9)
        assert grid.tpot[index] == pytest.approx(one.tpot, rel=1e-4)


def test_one_chip_talks_to_nobody_also_in_arrays():
    plan = np.array([1, 2])
    both = simulate(
        load_model("llama-3.1-8b"), load_platform("dgx-h100"), Plan(tp=plan), cost="tiled"
    )
    assert both.tpot[0] == pytest.approx(step(tp=1, cost="tiled").tpot, rel=1e-6)


def test_more_bandwidth_is_not_slower():
    rates = np.geomspace(1e12, 10e12, 7)
    report = simulate(
        load_model("llama-3.1-8b"),
        load_platform("dgx-h100").with_chip(memory_bandwidth=rates),
        cost="tiled",
    )
    assert np.all(np.diff(report.tpot) <= 1e-12)


def test_a_chip_that_nobody_measured_says_so():
    report = step(platform="mi300x-platform")
    words = {row["provenance"] for row in report.decode.rows()}
    assert "measured" not in words


def test_an_unknown_level_is_refused():
    with pytest.raises(SpecError, match="did you mean 'tiled'"):
        step(cost="tile")


def test_every_kernel_is_declared():
    assert {"gemm", "attention_prefill", "attention_decode", "moe", "all_reduce"} <= set(KERNELS)
