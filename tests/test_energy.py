"""Energy: what chips and links take, and what follows for steps, tokens and power."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontends import load_model
from hardware import (
    Chip,
    Level,
    Link,
    Memory,
    Span,
    SpecError,
    chain_energy,
    collective,
    list_chips,
    load_chip,
    load_platform,
    network_energy,
    traffic,
)
from hardware.technology import technology
from hardware.traffic import link_energy
from opgraph import Plan, Workload, simulate
from opgraph.cost import LIMITERS

MODEL = load_model("llama-3.1-8b")
KNOWN = [name for name in list_chips() if load_chip(name).has_energy]


def run(platform="dgx-h100", tp=1, cost="ideal", model=MODEL, plan=None, **work):
    workload = Workload(**{"batch": 4, "prompt": 256, "output": 32, **work})
    return simulate(model, load_platform(platform), plan or Plan(tp=tp), workload, cost=cost)


def spans(*ways, topology="switch", in_switch=False):
    return [
        Span(Level(f"l{i}", way, Link(1e9, 0.0), topology, (), in_switch), way)
        for i, way in enumerate(ways)
    ]


@pytest.mark.parametrize("name", KNOWN)
def test_products_at_peak_draw_the_design_power(name):
    chip = load_chip(name)
    for dtype in chip.matrix:
        drawn = chip.idle_power + chip.flop_energy(dtype) * chip.peak(dtype)
        assert drawn == pytest.approx(chip.power, rel=1e-12)
    assert 0 < chip.idle_power < chip.power / 4
    assert chip.flop_energy(None) >= max(chip.flop_energy(dtype) for dtype in chip.matrix)


def test_published_figures():
    h100 = load_chip("h100-sxm")
    # 11.5 % of 700 W idle; the rest over 989.4 TFLOP/s
    assert h100.flop_energy("bf16") == pytest.approx(0.885 * 700 / 989.4e12)
    assert h100.flop_energy("fp8") == pytest.approx(0.885 * 700 / 1978.9e12)
    # 3.9 pJ/bit of the device and 51 pJ/B to the cores
    assert h100.memory_energy == pytest.approx(8 * 3.9e-12 + 51e-12)
    assert load_chip("h200-sxm").idle_power == pytest.approx(80.3)
    # what the transport was fitted to: 300 W of an H100 that reads at 80 % of its bandwidth
    drawn = h100.idle_power + 0.8 * h100.memory_bandwidth * h100.memory_energy
    assert drawn == pytest.approx(300, rel=0.01)


@pytest.mark.parametrize(
    ("name", "pico_per_bit"),  # arXiv:2507.14000: adapters, switches and transceivers on the way
    [
        ("tray", 50),
        ("rack", 65 + 35 + 65),
        ("cluster", 65 + 3 * 35 + 65),
        ("photonic-tray", 10),
        ("photonic-rack", 5 + 25 + 5),
        ("photonic-cluster", 5 + 3 * 25 + 5),
    ],
)
def test_hop_classes(name, pico_per_bit):
    assert technology().links[name].energy == pytest.approx(8 * pico_per_bit * 1e-12)


def test_energies_stay_when_the_chip_is_changed():
    chip = load_chip("h100-sxm")
    fast = chip.replace(peak={"bf16": 2 * chip.peak("bf16")}, memory_bandwidth=1e13)
    assert fast.flop_energy("bf16") == chip.flop_energy("bf16")
    assert fast.memory_energy == chip.memory_energy


def test_a_dtype_without_a_figure_takes_that_of_its_rate():
    chip = load_chip("a100-sxm-80gb")
    assert chip.peak("fp8") == chip.peak("bf16")
    assert chip.flop_energy("fp8") == chip.flop_energy("bf16")
    with pytest.raises(SpecError, match="fp9"):
        chip.flop_energy("fp9")


def test_a_chip_of_ones_own():
    memory = (Memory(name="HBM4", capacity=1e11, bandwidth=1e13),)
    own = {"name": "own", "source": "s", "vendor": "v", "vector": 1e13, "memory": memory}
    chip = Chip(**own, matrix={"bf16": 1e15, "fp8": 2e15}, power=1000.0)
    assert chip.flop_energy("fp8") == pytest.approx(0.885 * 1000 / 2e15)
    without = Chip(**own, matrix={"bf16": 1e15})
    assert not without.has_energy
    with pytest.raises(SpecError, match="own has no figures of energy: give its file 'power'"):
        _ = without.idle_power


def test_a_process_stands_in_for_the_design_power():
    h100 = load_chip("h100-sxm")
    bare = dataclasses.replace(h100, power=None, energy=None)
    assert bare.flop_energy("bf16") == technology().processes["N5"].flop
    assert bare.idle_power == pytest.approx(h100.idle_power, rel=0.02)


def test_a_file_gives_its_own_figures(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("""
name = "mine"
source = "s"
vendor = "v"
vector = "10 TFLOP/s"
power = "500 W"
[matrix]
bf16 = "1 PFLOP/s"
fp8 = "2 PFLOP/s"
[[memory]]
name = "LPDDR9"
capacity = "64 GB"
bandwidth = "1 TB/s"
[energy]
source = "measured"
idle = "50 W"
matrix = { bf16 = "0.3 pJ/FLOP" }
[scale_out]
bandwidth = "50 GB/s"
latency = "1 us"
energy = "10 pJ/bit"
""")
    chip = load_chip(str(path))
    assert chip.flop_energy("bf16") == pytest.approx(0.3e-12)
    assert chip.flop_energy("fp8") == pytest.approx(450 / 2e15)
    assert chip.scale_out.energy == pytest.approx(80e-12)
    assert not chip.has_energy
    with pytest.raises(SpecError, match="memory 'LPDDR9': write memory = "):
        _ = chip.memory_energy
    text = path.read_text()
    for old, new, message in (
        ('"50 W"', '"50 J"', r"energy.idle: '50 J' is not in W"),
        ('"50 W"', '"500 W"', r"mine cannot idle at 500.0 W: its power is 500.0 W"),
        ('bf16 = "0.3 ', 'bf17 = "0.3 ', r"\[energy\] of mine: unknown dtype 'bf17'; did you"),
        ("matrix = {", "memory = { HBM9 = '1 pJ/B' }\nmatrix = {", "unknown memory 'HBM9'"),
        ("matrix = {", "matrices = {", "unknown key 'matrices' in energy; did you mean 'matrix'"),
        ('"10 pJ/bit"', '"10 pJ/byte"', "'10 pJ/byte' is not in J/B"),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(SpecError, match=message):
            load_chip(str(path))


@given(st.lists(st.integers(1, 16), min_size=1, max_size=4), st.integers(0, 10**9))
def test_traffic_of_nested_levels_adds_up(ways, nbytes):
    n = int(np.prod(ways))
    for kind, times in (("all_reduce", 2), ("all_gather", 1), ("reduce_scatter", 1)):
        sent = traffic(kind, nbytes, spans(*ways))
        assert sum(sent) == pytest.approx(times * (n - 1) / n * nbytes, abs=1e-6)
    assert sum(traffic("all_to_all", nbytes, spans(*ways))) == pytest.approx(
        (n - 1) / n * nbytes, abs=1e-6
    )
    assert sum(traffic("send", nbytes, spans(*ways))) == nbytes


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_traffic_is_what_the_bandwidth_optimal_algorithm_sends(kind, n):
    group = spans(n)
    assert traffic(kind, 1e9, group)[0] == pytest.approx(collective(kind, 1e9, group).sent)


def test_sums_in_the_switch_send_less():
    n = 8
    (sent,) = traffic("all_reduce", 1e9, spans(n, in_switch=True))
    assert sent == pytest.approx(1e9 * (n + 1) / n)
    assert sent == pytest.approx(collective("all_reduce", 1e9, spans(n, in_switch=True)).sent)
    level = spans(n, in_switch=True)[0].level
    (sizes,) = traffic("all_reduce", 1.0, [Span(level, np.array([2, 8]))])
    assert sizes == pytest.approx([1.0, 9 / 8])


def test_an_unknown_collective_is_refused():
    with pytest.raises(SpecError, match="all_reduce"):
        traffic("allreduce", 1, spans(2))


def test_each_level_takes_its_own_energy():
    inner = Level("node", 4, Link(1e9, 0.0, energy=1e-12))
    outer = Level("cluster", 2, Link(1e9, 0.0, energy=1e-10))
    joules = network_energy("all_gather", 1e6, [Span(inner, 4), Span(outer, 2)])
    assert joules == pytest.approx(3 / 4 * 1e6 * 1e-12 + 1 / 8 * 1e6 * 1e-10)
    assert link_energy(Link(1.0, 0.0)) == technology().links["tray"].energy


def test_a_chain_crosses_a_level_as_often_as_it_leaves_a_domain():
    inner = Level("node", 4, Link(1e9, 0.0, energy=1e-12))
    outer = Level("cluster", 2, Link(1e9, 0.0, energy=1e-10))
    # eight chips on two nodes: six of the seven links inside
    by_hand = 1e6 * (6 * 1e-12 + 1e-10) / 7
    assert chain_energy(1e6, [Span(inner, 4), Span(outer, 2)]) == pytest.approx(by_hand)
    assert chain_energy(1e6, []) == 0


@pytest.mark.parametrize("pp", [2, 4])
def test_stages_share_the_work_and_send_besides(pp):
    whole = run().decode_energy
    report = run(plan=Plan(pp=pp, microbatches=1))
    step, events = report.decode_energy, report.decode.events
    sends = sum(step.operators[e.name] * e.count for e in events if e.kind == "send")
    assert sends > 0
    assert pp * step.active == pytest.approx(whole.active + sends, rel=1e-12)
    assert report.energy > run().energy


def test_microbatches_read_the_weights_again():
    one, two = (run(plan=Plan(pp=2, microbatches=m)).decode_energy.active for m in (1, 2))
    assert one < two < 2 * one


def test_an_operator_by_hand():
    chip = load_chip("h100-sxm")
    report = run(tp=2)
    step = report.decode_energy
    events = {event.name: event for event in report.decode.events}
    name = "layer.gate_up"
    work = events[name].work
    by_hand = work.flop * chip.flop_energy("bf16") + work.moved * chip.memory_energy
    assert step.operators[name] == pytest.approx(by_hand, rel=1e-12)
    # 4 tokens of 4096 numbers in 16 bit, summed in switches over two chips: as a ring, once
    reduce = next(e for e in report.decode.events if e.kind == "all_reduce" and e.count > 1)
    assert step.operators[reduce.name] == pytest.approx(4 * 4096 * 2 * 50 * 8e-12)


@given(
    st.sampled_from(["dgx-h100", "dgx-a100", "mi300x-platform", "tpu-v4-pod"]),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 300),
    st.integers(1, 3000),
    st.integers(1, 64),
)
@settings(max_examples=30, deadline=None)
def test_energy_keeps_its_bounds(platform, tp, batch, prompt, output):
    report = run(platform, tp, batch=batch, prompt=prompt, output=output)
    chip = report.point.platform.chip
    assert report.energy >= chip.idle_power * report.latency * tp
    links = [
        (level.link.bandwidth, link_energy(level.link)) for level in report.point.platform.levels
    ]
    peaks = (
        chip.idle_power
        + chip.flop_energy("bf16") * chip.peak("bf16")
        + chip.memory_bandwidth * chip.memory_energy
        + sum(bandwidth * joules for bandwidth, joules in links)
    )
    for step in (report.prefill_energy, report.decode_energy):
        assert chip.idle_power < step.power <= peaks * (1 + 1e-12)


@pytest.mark.parametrize("tp", [1, 4])
def test_energy_is_additive_over_operators(tp):
    report = run(tp=tp)
    unrolled = report.decode.unroll()
    step = report.decode_energy
    each = [
        step.operators[event.name.split(".", 1)[-1] if event.name[0].isdigit() else event.name]
        for event in unrolled.events
    ]
    assert sum(each) == pytest.approx(step.active, rel=1e-12)
    assert step.total == pytest.approx(step.active + step.idle * step.time, rel=1e-12)
    whole = report.prefill_energy.total + (32 - 1) * (step.active + step.idle * report.tpot)
    assert report.energy == pytest.approx(tp * whole, rel=1e-12)


@pytest.mark.parametrize("cost", ["ideal", "tiled", "corrected"])
def test_larger_batches_take_less_for_each_token(cost):
    batch = np.array([1, 2, 8, 32, 128, 512])
    report = run(batch=batch, cost=cost)
    per_token = report.decode_energy.total / batch
    assert np.all(np.diff(per_token) < 0)
    assert np.all(np.diff(report.energy_per_token) < 0)


def test_slower_kernels_take_only_more_idling():
    ideal, real = run(), run(cost="corrected")
    assert real.decode_energy.active == pytest.approx(ideal.decode_energy.active, rel=1e-12)
    assert real.energy > ideal.energy
    assert real.decode_energy.power < ideal.decode_energy.power


def test_arrays_are_the_scalars():
    batch = np.array([1, 16, 64])
    grid = run(tp=2, batch=batch)
    for i, size in enumerate(batch):
        one = run(tp=2, batch=int(size))
        assert grid.energy_per_token[i] == pytest.approx(one.energy_per_token, rel=1e-12)
        assert grid.prefill_energy.power[i] == pytest.approx(one.prefill_energy.power, rel=1e-12)
        assert grid.at(i).energy == pytest.approx(one.energy, rel=1e-12)


def test_unpacking_weights_takes_energy():
    plain = run(model=load_model("llama-3.1-8b"))
    packed = run(model=load_model("llama-3.1-8b", weights="int4-g128"))
    name = "layer.gate_up"
    chip = packed.point.platform.chip
    event = next(e for e in packed.decode.events if e.name == name)
    assert event.work.unpacked > 0
    moved = event.work.moved * chip.memory_energy + event.work.flop * chip.flop_energy("bf16")
    assert packed.decode_energy.operators[name] > moved
    assert packed.decode_energy.active < plain.decode_energy.active


def test_a_chip_of_unknown_energy_still_simulates():
    report = run("tpu-v5e-pod")
    assert "J/token" not in str(report)
    answer = report.to_dict()
    assert answer["energy_J_per_token"] is None
    assert answer["phases"]["decode"]["power_W"] is None
    assert answer["phases"]["decode"]["operators"][0]["energy_mJ"] is None
    with pytest.raises(SpecError, match="tpu-v5e has no figures of energy"):
        _ = report.energy


def test_a_measured_timeline_has_none():
    from opgraph.energy import step_energy
    from opgraph.timeline import Timeline

    with pytest.raises(SpecError, match="was measured"):
        step_energy(Timeline("mine", (), 1.0), None)


def test_the_report_says_it():
    report = run(tp=8, batch=32)
    text = str(report)
    first, later = (f"{e.power:.3g} W" for e in (report.prefill_energy, report.decode_energy))
    assert f"{report.energy_per_token:.3g} J/token" in text
    assert f"per chip {first} in prefill and {later} in decode of 700 W" in text
    answer = report.to_dict()
    assert answer["energy_J_per_token"] == report.energy_per_token
    rows = answer["phases"]["decode"]["operators"]
    total = sum(row["energy_mJ"] * row["count"] for row in rows) / 1e3
    assert total == pytest.approx(report.decode_energy.active)
    assert {row["limiter"] for row in rows} <= set(LIMITERS)
