"""Packages: heat against closed forms, bending against its limits, links and what is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware import Chiplet, Package, SpecError, die_cost, load_chip, load_package, slowed
from hardware.bending import Sheet, bow, curvature
from hardware.heat import Block
from hardware.package import Cooling, Layer
from hardware.technology import technology
from hardware.thermal import heat_of

EXAMPLE = Path(__file__).parents[1] / "examples" / "package.toml"


# ---------------------------------------------------------------------- heat


def block(conductivity, sizes, top, bottom):
    """A block of equal cells, *sizes* m along z, y and x."""
    widths = tuple(np.full(n, size / n) for n, size in zip(conductivity.shape, sizes, strict=True))
    return Block(conductivity, widths, top, bottom)


def test_a_stack_of_layers_conducts_as_resistances_in_series():
    k, t = np.array([0.35, 148.0, 5.0, 398.0]), np.array([1e-3, 1e-4, 6e-5, 2e-3])
    area, transfer, watts = 4e-4, 1e4, 50.0
    conductivity = np.broadcast_to(k[:, None, None], (4, 3, 5)).copy()
    stack = Block(conductivity, (t, np.full(3, 0.02 / 3), np.full(5, 0.02 / 5)), transfer, 0.0)
    power = np.zeros((4, 3, 5))
    power[0] = watts / 15
    rise = stack.rise(power)
    # from the middle of the lowest layer up: half of it, the others, the surface
    series = (t / k)[1:].sum() + t[0] / (2 * k[0]) + 1 / transfer
    assert rise[0] == pytest.approx(watts * series / area, rel=1e-10)
    assert rise[-1] == pytest.approx(watts * (t[-1] / (2 * k[-1]) + 1 / transfer) / area)


def manufactured(n):
    """The largest error on n³ cells of a solution that was chosen first."""
    (z, y, x), sizes = (
        ((np.arange(n) + 0.5) / n * s for s in (0.01, 0.03, 0.02)),
        (0.01, 0.03, 0.02),
    )
    k, bottom, top = 3.0, 200.0, 500.0
    lz, ly, lx = sizes
    # 1 + b z + c z²: k f'(0) = bottom f(0), -k f'(lz) = top f(lz)
    b = bottom / k
    c = -(top / k * (1 + b * lz) + b) / (2 * lz + top / k * lz**2)
    plane = np.cos(np.pi * y / ly)[:, None] * np.cos(np.pi * x / lx)
    chosen = (1 + b * z + c * z**2)[:, None, None] * plane
    decay = (np.pi / lx) ** 2 + (np.pi / ly) ** 2
    source = -k * (2 * c * plane - decay * chosen)
    solved = block(np.full((n, n, n), k), sizes, top, bottom).rise(source * lz * ly * lx / n**3)
    return abs(solved - chosen).max()


def test_the_error_falls_with_the_square_of_the_cells():
    errors = [manufactured(n) for n in (6, 12, 24)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(orders > 1.9)
    assert errors[-1] < 2e-3


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_what_comes_in_goes_out(seed):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(2, 7, 3))
    conductivity = 10 ** random.uniform(-1, 3, shape)
    sizes = 10 ** random.uniform(-4, -1, 3)
    body = block(conductivity, sizes, 10 ** random.uniform(1, 5), 10 ** random.uniform(0, 3))
    power = random.uniform(0, 10, (2, *shape))
    rise = body.rise(power)
    bottom, top = body.leaving(rise)
    assert bottom + top == pytest.approx(power.sum((1, 2, 3)), rel=1e-8)
    assert np.all(rise > 0)
    assert body.rise(power[0] + 2 * power[1]) == pytest.approx(rise[0] + 2 * rise[1], rel=1e-8)


# ---------------------------------------------------------------------- bending


def silicon(thickness):
    return Sheet.of(technology().materials["silicon"], thickness)


def test_equal_sheets_curve_by_three_halves_of_the_strain():
    # Timoshenko 1925, equation 5: m = n = 1
    low, high = Sheet(1e-6, 1e11, 5e-4), Sheet(11e-6, 1e11, 5e-4)
    assert curvature(low, high, 100.0) == pytest.approx(3 / 2 * 1e-5 * 100 / 1e-3)
    assert curvature(low, high, -100.0) == -curvature(low, high, 100.0)


def test_a_film_curves_as_stoney_says():
    # Stoney 1909: κ = 6 E_f t_f ε / (E_s t_s²), the limit of a thin film
    film, base = Sheet(10e-6, 2e11, 1e-8), Sheet(3e-6, 1e11, 1e-3)
    stoney = 6 * 2e11 * 1e-8 * 7e-6 * 80 / (1e11 * 1e-3**2)
    assert abs(curvature(film, base, 80.0)) == pytest.approx(stoney, rel=1e-3)


@given(st.floats(1e-5, 3e-3), st.floats(1e-5, 3e-3), st.floats(1e9, 5e11), st.floats(1e9, 5e11))
def test_bending_is_of_force_and_moment_in_balance(one, two, stiff, soft):
    """κ from the two equations of equilibrium and one of the joint, solved as such."""
    strain = 12e-6 * 150
    inertia = (stiff * one**3 + soft * two**3) / 12
    # κ inertia = P h/2, and the joint's strains agree: ε = P/(E₁t₁) + P/(E₂t₂) + κ h/2
    half = (one + two) / 2
    matrix = [[inertia, -half], [half, 1 / (stiff * one) + 1 / (soft * two)]]
    kappa, _ = np.linalg.solve(matrix, [0.0, strain])
    low, high = Sheet(3e-6, stiff, one), Sheet(15e-6, soft, two)
    assert curvature(low, high, 150.0) == pytest.approx(kappa, rel=1e-6)


def test_sheets_alike_stay_flat_and_mix():
    assert curvature(silicon(1e-3), silicon(2e-4), 190.0) == 0
    both = silicon(1e-3) + silicon(5e-4)
    assert both == Sheet(silicon(1.0).expansion, silicon(1.0).modulus, pytest.approx(1.5e-3))


def test_a_flat_arc():
    kappa, length = 0.05, 0.08
    radius = 1 / kappa
    exact = radius - np.sqrt(radius**2 - (length / 2) ** 2)
    assert bow(kappa, length) == pytest.approx(exact, rel=1e-4)


# ---------------------------------------------------------------------- packages


def chiplet(name, x, y, size=0.01, **figures):
    figures = {"power": 100.0, "limit": 100.0, **figures}
    return Chiplet(name=name, corner=(x, y), size=(size, size), **figures)


def package(*chiplets, interposer="silicon", size=(0.04, 0.03), **changes):
    given = {
        "name": "toy", "source": "a test", "interposer": interposer, "size": size,
        "thickness": 1e-4, "die_thickness": 7e-4, "assembled": 217.0,
        "cooling": Cooling(top=1e4, board=10.0, ambient=40.0), "chiplets": chiplets,
        "above": (Layer(material="copper", thickness=2e-3),),
    }  # fmt: skip
    return Package(**{**given, **changes})


def test_mirrored_chiplets_are_equally_hot():
    pair = package(chiplet("a", 0.005, 0.01), chiplet("b", 0.025, 0.01))
    heat = pair.heat
    assert heat.hottest["a"] == pytest.approx(heat.hottest["b"], rel=1e-9)
    assert heat.temperature == pytest.approx(heat.temperature[:, ::-1], rel=1e-9)
    assert heat.temperature == pytest.approx(heat.temperature[::-1], rel=1e-9)


def test_a_chiplet_over_all_of_the_package_conducts_in_series():
    power, side = 400.0, 0.02
    whole = package(
        chiplet("all", 0.0, 0.0, side, power=power, limit=90.0, idle=40.0), size=(side, side),
        cooling=Cooling(top=1e4, board=0.0, ambient=40.0),
    )  # fmt: skip
    # transistors sit in the lower half of the die, in whose middle the temperature is told
    series = 7e-4 * 3 / 4 / 148 + 2e-3 / 398 + 1 / 1e4
    rise = power * series / side**2
    assert whole.heat.hottest["all"] == pytest.approx(40 + rise, rel=1e-9)
    idle_rise = 40 * series / side**2
    allowed = (90 - 40 - idle_rise) / (rise - idle_rise)
    assert whole.heat.slowdown == pytest.approx(allowed, rel=1e-9)


def test_at_the_slower_clock_the_hottest_is_at_its_limit():
    hot = load_package(str(EXAMPLE))
    slow = hot.heat.slowdown
    assert 0.9 < slow < 1
    eased = dataclasses.replace(
        hot,
        chiplets=tuple(
            dataclasses.replace(one, power=one.idle + slow * (one.power - one.idle))
            for one in hot.chiplets
        ),
    )
    assert max(eased.heat.hottest.values()) == pytest.approx(95.0, abs=1e-6)
    cool = dataclasses.replace(hot, cooling=dataclasses.replace(hot.cooling, ambient=20.0))
    assert cool.heat.slowdown == 1
    assert (
        dataclasses.replace(
            hot, cooling=dataclasses.replace(hot.cooling, ambient=99.0)
        ).heat.slowdown
        == 0
    )  # idling alone is too much


def test_finer_cells_agree():
    hot = load_package(str(EXAMPLE))
    coarse, fine = (heat_of(hot, cells).hottest["left"] for cells in (32, 64))
    assert coarse == pytest.approx(fine, abs=0.3)
    with pytest.raises(SpecError, match="chiplet stack1 is smaller than a cell of 31 mm"):
        heat_of(hot, 2)
    small = package(chiplet("large", 0.0, 0.0), chiplet("small", 0.03, 0.02, 0.002, power=1.0))
    assert small.heat.temperature.shape == (60, 80)  # four cells across it


def test_better_conducting_interposers_are_cooler():
    hot = load_package(str(EXAMPLE))
    hottest = {
        name: max(dataclasses.replace(hot, interposer=name).heat.hottest.values())
        for name in technology().interposers
    }
    assert hottest["silicon"] < hottest["glass"] < hottest["organic"] + 0.1


# up to 10 mm in steps of a micrometre: what is within a nanometre of a limit may fall either way
@given(
    st.integers(0, 10_000).map(lambda n: n * 1e-6), st.integers(0, 5_000).map(lambda n: n * 1e-6)
)
def test_bandwidth_is_shoreline_times_wires_times_rate(shift, gap):
    carrier = technology().interposers["silicon"]
    pair = package(chiplet("a", 0.0, 0.0), chiplet("b", 0.01 + gap, shift))
    shared = 0.01 - shift
    if gap > carrier.reach + 1e-9 or shared < 1e-9:
        assert pair.links == []
        return
    (link,) = pair.links
    assert link.shoreline == pytest.approx(shared, abs=1e-12)
    # 329 wires per mm at 32 Gbit/s each, half of them in each direction
    assert link.bandwidth == pytest.approx(shared * 1e3 * 329 * 32e9 / 8 / 2)
    assert link.power == pytest.approx(2 * 8 * link.bandwidth * 0.3e-12)


def test_chiplets_that_touch_neither_overlap_nor_miss_each_other():
    # 0.1 + 0.2 ≠ 0.3 in binary
    touching = package(chiplet("a", 0.001, 0.0, 0.002), chiplet("b", 0.003, 0.0, 0.003))
    assert touching.links[0].shoreline == pytest.approx(0.002)


def test_links_stop_at_what_lies_between():
    row = package(
        *(chiplet(name, x, 0.01, 0.008) for name, x in (("a", 0.0), ("b", 0.01), ("c", 0.02))),
        interposer="glass",
    )
    assert [link.chiplets for link in row.links] == [("a", "b"), ("b", "c")]
    beside = package(chiplet("a", 0.0, 0.0), chiplet("b", 0.02, 0.015), interposer="glass")
    assert beside.links == []  # corner to corner


def test_warpage_follows_expansion_and_size():
    def bowed(name, size, **changes):
        return abs(package(chiplet("a", 0, 0), interposer=name, size=size, **changes).bow)

    small, large = (0.04, 0.03), (0.08, 0.06)
    assert bowed("silicon", small) == 0
    assert bowed("glass", large) == pytest.approx(4 * bowed("glass", small))
    assert bowed("glass", small) < bowed("organic", small) / 3
    below = (Layer(material="laminate", thickness=1e-3),)
    assert bowed("silicon", small, below=below) > bowed("glass", small)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (package, r"toy needs \[\[chiplets\]\]"),
        (lambda: package(chiplet("a", 0, 0), chiplet("a", 0.02, 0)), "need different names: a, a"),
        (lambda: package(chiplet("a", 0, 0), chiplet("b", 0.005, 0)), "a and b overlap"),
        (lambda: package(chiplet("a", 0.035, 0)), "a stands over the edge of toy"),
        (lambda: chiplet("a", 0, 0, power=10.0, idle=20.0), "draws 10 W, but 20 idle"),
        (lambda: chiplet("a", 0, 0, power=float("nan")), "power of chiplet a must be finite"),
        (lambda: chiplet("a", 0, 0, -1.0), "width of chiplet a must be finite and positive"),
        (lambda: chiplet("a", 0, 0, process="N4"), "unknown process 'N4'"),
        (
            lambda: package(chiplet("a", 0, 0), cooling=Cooling(top=0.0, board=0.0, ambient=40.0)),
            "cooled neither at the top nor through the board",
        ),
        (lambda: slowed(load_chip("h100-sxm"), 0.0), "clock cannot run at 0 of itself"),
        (lambda: slowed(load_chip("h100-sxm"), float("nan")), "clock cannot run at nan"),
    ],
)
def test_nonsense_is_refused(build, message):
    with pytest.raises(SpecError, match=message):
        build()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"silicon"', '"silicone"', "unknown interposer 'silicone'; did you mean 'silicon'"),
        ('"laminate"', '"wood"', "unknown material 'wood'"),
        ('top = "12 kW/m²/K"', 'top = "12 kW/m²"', "'12 kW/m²' is not in W/m²/K"),
        ('thickness = "0.1 mm"', "thickness = 0.1", "0.1 needs a unit"),
        ('limit = "95 °C"', 'limit = "95 K"', "'95 K' is not in °C"),
        ('corner = ["5.5 mm", ', 'corner = ["-5.5 mm", ', "is not between 0 and 1 m"),
        ('power = "500 W"\n', "", "'power' is missing in chiplets.0"),
    ],
)
def test_files_are_read_strictly(tmp_path, old, new, message):
    text = EXAMPLE.read_text(encoding="utf8")
    assert old in text
    path = tmp_path / "p.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf8")
    with pytest.raises(SpecError, match=message):
        load_package(str(path))


def test_what_dies_and_interposer_cost():
    process = technology().processes["N5"]
    made = package(chiplet("a", 0, 0, process="N5"), chiplet("bought", 0.02, 0))
    assert made.die_cost == pytest.approx(die_cost(1e-4, process))
    assert made.interposer_cost == pytest.approx(40 * 30 * 0.0233)
    assert package(chiplet("a", 0, 0), interposer="glass").interposer_cost < made.interposer_cost
    wider = dataclasses.replace(made, size=(0.05, 0.03))
    assert wider.interposer_cost > made.interposer_cost


def test_a_slower_clock_slows_the_cores_only():
    chip = load_chip("h100-sxm")
    slow = slowed(chip, 0.5)
    assert slow.peak("bf16") == chip.peak("bf16") / 2
    assert slow.vector == chip.vector / 2
    assert slow.clock == chip.clock / 2
    assert slow.memory_bandwidth == chip.memory_bandwidth
    assert slow.flop_energy("bf16") == chip.flop_energy("bf16")
    assert slowed(load_chip("gaudi3"), 0.5).clock is None


def test_the_answer_is_json():
    answer = load_package(str(EXAMPLE), "glass").to_dict()
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert answer["interposer"] == "glass"
    assert {row["name"] for row in answer["chiplets"]} >= {"left", "right", "stack8"}
    assert answer["power_W"] == 2 * 500 + 8 * 30
