"""The models people serve, on the platforms they serve them on, at every tensor parallelism."""

import math
from itertools import pairwise

import pytest

from frontends import load_model
from hardware import load_platform
from opgraph import Plan, Workload, best_plans, simulate

MODELS = ["llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "qwen3-32b", "mistral-large",
          "gemma-2-27b"]  # fmt: skip
CHIPS = ["a100-sxm-80gb", "h100-sxm", "h200-sxm", "b200-sxm", "mi300x", "tpu-v5p"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("chip", CHIPS)
def test_models_simulate_and_their_times_add_up(model, chip):
    loaded = load_model(model)
    for tp in (1, 2, 4, 8, 16):
        report = simulate(
            loaded, load_platform(f"{chip}:16"), Plan(tp=tp), Workload(batch=4, prompt=1000)
        )
        assert 0 < report.tpot < report.ttft < math.inf
        whole = loaded.num_parameters * 2 / tp
        assert whole <= report.memory.weights <= 1.06 * whole + 1e6 * tp
        for timeline in (report.prefill, report.decode):
            peaks = report.point.platform.chip
            for event in timeline.events:
                if event.stream == "compute":
                    # the ideal is a bound that both sides of the roofline reach
                    moved = event.work.moved / peaks.memory_bandwidth
                    assert event.time >= moved * (1 - 1e-12)
            total = sum(event.time * event.count for event in timeline.events)
            assert timeline.time == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("platform", ["dgx-a100", "dgx-h100", "dgx-h200", "dgx-b200",
                                      "gb200-nvl72", "mi300x-platform", "tpu-v5p-pod"])  # fmt: skip
def test_tensor_parallelism_pays_until_the_network_costs_more(platform):
    """Weights per chip halve with each doubling; so does the memory's part of a step."""
    model, where = load_model("llama-3.1-70b"), load_platform(platform)
    reports = [simulate(model, where, Plan(tp=tp)) for tp in (1, 2, 4, 8)]
    for one, two in pairwise(reports):
        assert two.memory.weights == pytest.approx(one.memory.weights / 2, rel=1e-2)
        busy_one, busy_two = (r.decode.busy["compute"] for r in (one, two))
        assert busy_two == pytest.approx(busy_one / 2, rel=2e-2)
        assert two.tpot < one.tpot


def test_plans_whose_groups_cannot_be_placed_are_infeasible_with_the_reason():
    # attention on 3 chips of a stage, 8 stages: a node of 8 holds two stages of 3 whole
    found = best_plans(
        load_model("gpt-oss-20b"),
        load_platform("h100-sxm:24"),
        Workload(prompt=128, output=16),
        axes=("pp", "attention_dp"),
        batch=24,
    )
    reasons = {(plan["pp"], plan["attention_dp"]): why for plan, why in found.infeasible}
    assert "8 chips with stride 3 does not fit h100-sxm:24" in reasons[8, 3]
    assert "room for 6 blocks of 3 chips" in reasons[8, 3]
    assert {(3, 8), (24, 1)} <= set(
        zip(found.table["pp"], found.table["attention_dp"], strict=True)
    )
