"""Dies, what they cost, and what a chip-hour and a million tokens cost."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontends import load_model
from hardware import (
    Price,
    SpecError,
    chip_hour,
    die_cost,
    die_yield,
    list_prices,
    load_chip,
    load_ownership,
    load_platform,
)
from hardware.chip import list_chips
from hardware.die import Die, dies_per_wafer
from hardware.price import read_price
from hardware.technology import Process, technology
from opgraph import Plan, Workload, simulate

HOUR = 3600


def process(defects=1000.0, clustering=3.0, wafer=16988.0):
    return Process(wafer=wafer, defects=defects, clustering=clustering, flop=1e-12, source="a test")


def test_yield_between_its_limits():
    area, defects = 814e-6, 1000.0
    poisson = math.exp(-area * defects)
    assert die_yield(area, process(defects, 1e9)) == pytest.approx(poisson, rel=1e-6)
    # Seeds: an exponential spread of defect densities
    assert die_yield(area, process(defects, 1.0)) == pytest.approx(1 / (1 + area * defects))
    # Murphy's bell-shaped spread lies close to a clustering of 5 (Cunningham 1990)
    murphy = ((1 - poisson) / (area * defects)) ** 2
    assert die_yield(area, process(defects, 5.0)) == pytest.approx(murphy, rel=0.02)
    assert die_yield(area, process(0.0)) == 1


def test_dies_on_a_wafer_counted():
    # squares on a grid that lie wholly within the circle, over the best of several offsets
    side, radius = 0.010, 0.15
    best = 0
    for shift in np.linspace(0, side, 8, endpoint=False):
        for other in np.linspace(0, side, 8, endpoint=False):
            x = np.arange(-20, 20) * side + shift
            y = np.arange(-20, 20) * side + other
            far = np.maximum(abs(x), abs(x + side))[:, None] ** 2
            far = far + np.maximum(abs(y), abs(y + side))[None, :] ** 2
            best = max(best, int((far <= radius**2).sum()))
    assert dies_per_wafer(side**2) == pytest.approx(best, rel=0.05)


@given(
    st.floats(1e-6, 1.5e-3), st.floats(1e-6, 1.5e-3), st.floats(0, 1e4), st.floats(0, 1e4),
    st.floats(0.5, 20),
)  # fmt: skip
def test_cost_grows_with_area_and_with_defects(area, larger, few, many, clustering):
    area, larger = sorted((area, larger))
    few, many = sorted((few, many))
    cheap = die_cost(area, process(few, clustering))
    assert cheap <= die_cost(larger, process(few, clustering)) * (1 + 1e-12)
    assert cheap <= die_cost(area, process(many, clustering)) * (1 + 1e-12)
    assert cheap > 0


def test_sizes_may_be_arrays():
    area = np.array([1e-4, 4e-4, 8e-4])
    together = die_cost(area, process())
    assert together == pytest.approx([die_cost(float(one), process()) for one in area])
    with pytest.raises(SpecError, match="50000 mm² does not fit a wafer of 300 mm"):
        die_cost(np.array([1e-4, 5e-2]), process())
    with pytest.raises(SpecError, match="area of a die must be finite and positive"):
        Die(area=0.0, process="N5", source="s")
    with pytest.raises(SpecError, match="unknown process 'N6'"):
        _ = Die(area=1e-4, process="N6", source="s").cost


def test_many_small_dies_cost_less_than_a_large_one():
    small, large = (die_cost(area, technology().processes["N5"]) for area in (2e-4, 8e-4))
    assert 4 * small < large


def test_what_an_h100_costs_by_hand():
    owned, chip = load_ownership(), load_chip("h100-sxm")
    made = owned.build_cost(chip)
    # 63.5 dies, 48.6 % good; 80 GiB at 9 $/GB
    assert made.dies == pytest.approx(16988 / (63.46 * 0.4867), rel=1e-3)
    assert made.memory == pytest.approx(9 * 80 * 2**30 / 1e9)
    assert made.total == made.dies + made.memory + made.assembly
    assert owned.purchase(chip) == pytest.approx(4 * made.total + 7000)
    by_hand = owned.purchase(chip) * (1 / 4 + 0.05) / (365.25 * 24) + 0.7 * 1.56 * 0.083
    assert owned.rate(chip) * HOUR == pytest.approx(by_hand)
    idle = owned.rate(chip, power=80.5) * HOUR
    assert idle == pytest.approx(by_hand - 0.6195 * 1.56 * 0.083)


def test_ownership_of_arrays_and_nonsense(tmp_path):
    owned, chip = load_ownership(), load_chip("h200-sxm")
    powers = np.array([100.0, 700.0])
    assert np.all(np.diff(owned.rate(chip, powers)) > 0)
    with pytest.raises(SpecError, match="margin of 1 leaves nothing"):
        dataclasses.replace(owned, margin=1.0)
    with pytest.raises(SpecError, match=r"gaudi3 has no \[\[dies\]\]"):
        owned.rate(load_chip("gaudi3"))
    with pytest.raises(SpecError, match="has no power"):
        owned.rate(dataclasses.replace(chip, power=None))
    path = tmp_path / "mine.toml"
    path.write_text('source = "me"\nassembly = "5 EUR"\n')
    with pytest.raises(SpecError, match="assembly: '5 EUR' is not in \\$"):
        load_ownership(str(path))


def test_prices_are_of_chips_that_exist():
    assert set(list_prices()) <= set(list_chips())
    for price in list_prices().values():
        assert price.source
        assert price.date
        assert 0.1 < price.rate * HOUR < 20


def test_ways_to_a_price():
    chip = load_chip("h100-sxm")
    assert read_price("list", chip) == chip_hour(chip)
    assert read_price("2.5", chip).rate == pytest.approx(2.5 / HOUR)
    assert read_price("$2.5", chip).origin == "as given"
    assert read_price("ownership", chip).rate == load_ownership().rate(chip)
    with pytest.raises(SpecError, match="price 'cheap' is neither a number"):
        read_price("cheap", chip)
    with pytest.raises(SpecError, match=r"price .-1.: .* must be finite and above 0"):
        read_price("-1", chip)
    with pytest.raises(SpecError, match="gaudi3 has no list price"):
        chip_hour(load_chip("gaudi3"))
    with pytest.raises(SpecError, match="unknown way to a price 'lst'; did you mean 'list'"):
        chip_hour(chip, "lst")


def report(platform="dgx-h100", tp=2, **work):
    workload = Workload(**{"batch": 8, "prompt": 128, "output": 16, **work})
    return simulate(load_model("llama-3.1-8b"), load_platform(platform), Plan(tp=tp), workload)


def test_dollars_for_tokens():
    run = report()
    seconds = 1e6 / run.throughput
    assert run.dollars_per_million_tokens == pytest.approx(2 * seconds * 4.916 / HOUR)
    free = dataclasses.replace(
        run, price=Price(chip="h100-sxm", rate=1 / HOUR, provider="me", source="me")
    )
    assert free.dollars_per_million_tokens == pytest.approx(run.dollars_per_million_tokens / 4.916)
    assert "at 1 $ per chip-hour (me)" in str(free)
    assert free.to_dict()["price_dollars_per_chip_hour"] == pytest.approx(1)
    grid = dataclasses.replace(report(batch=np.array([1, 8])), price=free.price)
    assert grid.at(1).dollars_per_million_tokens == pytest.approx(free.dollars_per_million_tokens)


def test_no_price_is_no_answer():
    run = report("gaudi3-hls")
    assert "million tokens" not in str(run)
    assert run.to_dict()["dollars_per_million_tokens"] is None
    with pytest.raises(SpecError, match="no list price"):
        _ = run.dollars_per_million_tokens
