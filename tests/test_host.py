"""What the host costs: before each step, and for each operator it launches."""

import numpy as np
import pytest

from frontends import load_model
from hardware import SpecError, load_platform
from opgraph import Host, Plan, Workload, simulate

MODEL, PLATFORM = load_model("llama-3.1-8b"), load_platform("dgx-h100")


def run(host=None, tp=1, cost="ideal"):
    work = Workload(batch=2, prompt=64, output=8)
    return simulate(MODEL, PLATFORM, Plan(tp=tp), work, cost=cost, host=host)


@pytest.mark.parametrize("cost", ["ideal", "tiled"])
def test_a_step_begins_when_the_host_is_done(cost):
    plain, late = run(cost=cost), run(Host(per_step=1e-3), cost=cost)
    assert late.ttft == pytest.approx(plain.ttft + 1e-3, rel=1e-12)
    assert late.tpot == pytest.approx(plain.tpot + 1e-3, rel=1e-12)
    assert late.decode.events[0].starts[0] == 1e-3
    assert late.decode.time == pytest.approx(plain.decode.time + 1e-3, rel=1e-12)


def test_launching_one_by_one_is_a_floor_of_each_operator():
    report = run(Host(per_operator=1.0), tp=2)
    computing = [event for event in report.decode.events if event.stream == "compute"]
    assert {event.time for event in computing} == {1.0}
    assert {event.limiter for event in computing} == {"launch"}
    # 32 layers of 9 operators, the embedding and the first norm, select, head and sample
    assert sum(event.count for event in computing) == 32 * 9 + 5
    alone = run(tp=2).decode.busy["communication"]
    assert report.decode.time == pytest.approx(32 * 9 + 5 + alone, rel=1e-9)


def test_a_short_launch_hides_behind_long_operators():
    assert run(Host(per_operator=1e-12)).ttft == run().ttft


def test_hosts_broadcast():
    per_step = np.array([0.0, 1e-3, 2e-3])
    grid = run(Host(per_step=per_step))
    assert grid.tpot == pytest.approx([run(Host(per_step=float(x))).tpot for x in per_step])
    assert grid.at(1).tpot == pytest.approx(grid.tpot[1], rel=1e-12)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf"), np.array([0.0, -1.0])])
def test_nonsense_is_refused(wrong):
    with pytest.raises(SpecError, match="per_step"):
        Host(per_step=wrong)
