"""Overlap: parts, the order of issue, contention against a fluid, and what stays exposed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import priced

from frontends import load_model
from hardware import Platform, SpecError, load_chip, load_platform
from opgraph import Plan, Workload, simulate
from opgraph.concurrency import contended, exposed
from opgraph.cost import COMPUTE, LAUNCH, MEMORY, Cost, Machine, Roofline, price
from opgraph.model import Model
from opgraph.operator import Operator, Work
from opgraph.pipeline import Pipeline
from opgraph.point import Point
from opgraph.report import Report
from opgraph.schedule import Program, program, schedule
from opgraph.sizes import Sizes
from opgraph.timeline import Event, Timeline, step_time

WORK = Workload(batch=32, prompt=512, output=16)
PASSES = ("two-batch", "chunked")


@cache
def model(name: str = "llama-3.1-8b") -> Model:
    return load_model(name)


@cache
def platform(name: str = "dgx-h100") -> Platform:
    return load_platform(name)


def point(plan: Plan, work: Workload = WORK, name: str = "llama-3.1-8b", cost: Any = None) -> Point:
    return simulate(model(name), platform(), plan, work, cost=cost or "ideal").point


# --- passes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flat:
    """A cost model with a time for each kind of operator; a part takes its part of it."""

    times: Mapping[str, float]
    name: str = "flat"
    tolerance: float = 1e-12

    def cost(self, operator: Operator, sizes: Sizes, machine: Machine) -> Cost:
        parts = operator.part.parts if operator.part else 1
        return Cost(self.times.get(operator.kind, 0.0) / parts, LAUNCH, Work())


def layer_time(overlap: str, times: Mapping[str, float], chunks: int = 4) -> float:
    """Seconds of one more layer of a Llama on 8 chips."""
    plan = Plan(tp=8, overlap=overlap, chunks=chunks)
    at = point(plan)
    (piece,) = at.pieces("decode")
    machine = Machine(platform(), plan)
    found = []
    for count in (20, 21):
        blocks = tuple(
            replace(block, count=count) if block.count > 1 else block
            for block in piece.graph.blocks
        )
        source = replace(piece.graph, blocks=blocks)
        found.append(step_time(source, at.sizes("decode", 512), machine, Flat(times)))
    return found[1] - found[0]


@pytest.mark.parametrize(("compute", "transfer"), [(3.0, 1.0), (1.0, 1.0), (1.0, 3.0)])
def test_two_halves_take_the_longer_of_computing_and_sending(compute, transfer):
    # a layer computes twice (attention, activation) and sends after each
    times = {"attention": compute, "activation": compute, "all_reduce": transfer}
    assert layer_time("", times) == pytest.approx(2 * (compute + transfer))
    assert layer_time("two-batch", times) == pytest.approx(2 * max(compute, transfer))


@pytest.mark.parametrize("chunks", [1, 2, 4, 7])
@pytest.mark.parametrize(("product", "transfer"), [(3.0, 1.0), (1.0, 1.0), (1.0, 3.0)])
def test_a_chunked_product_hides_all_but_one_part(product, transfer, chunks):
    # of a layer's four products, two are followed by an all-reduce
    times = {"gemm": product, "all_reduce": transfer}
    pair = max(product + transfer / chunks, product / chunks + transfer)
    assert layer_time("chunked", times, chunks) == pytest.approx(2 * product + 2 * pair)


def totals(at: Point, phase: Any, *, weights: bool = True) -> Work:
    """What the operators of a step ask of one chip, without their weights if so wanted."""
    sizes = at.sizes(phase, at.workload.prompt)
    machine = Machine(at.platform, at.plan)
    total = Work()
    for op, count in at.graph(phase).operators:
        cost = price(op, sizes, machine, Roofline())
        held = 0 if weights else sum(t.nbytes(sizes) for t in op.inputs if t.role == "weight")
        total = total + (cost.work + Work(read=-held * bool(cost.work.read))) * count
    return total


@pytest.mark.parametrize("overlap", PASSES)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("batch", [1, 5, 32])
def test_parts_add_up(overlap, phase, batch):
    work = replace(WORK, batch=batch)
    whole = totals(point(Plan(tp=8), work), phase, weights=False)
    parts = totals(point(Plan(tp=8, overlap=overlap, chunks=3), work), phase, weights=False)
    assert parts.flop == pytest.approx(whole.flop, rel=1e-12)
    assert parts.sent == pytest.approx(whole.sent, rel=1e-12)
    assert parts.written == pytest.approx(whole.written, rel=1e-12)
    assert parts.read == pytest.approx(whole.read, rel=1e-12)


def test_each_half_reads_all_weights_of_the_layers():
    whole, halves = (totals(point(Plan(tp=8, overlap=o)), "decode") for o in ("", "two-batch"))
    at = point(Plan(tp=8))
    sizes = at.sizes("decode", WORK.prompt)
    layers = replace(at.graph("decode"), blocks=at.graph("decode").blocks[1:2])
    assert halves.read - whole.read == pytest.approx(layers.nbytes("weight", sizes), rel=1e-12)


@pytest.mark.parametrize("overlap", PASSES)
def test_parts_take_no_more_memory(overlap):
    reports = [
        simulate(model(), platform(), Plan(tp=8, overlap=o), WORK).memory for o in ("", overlap)
    ]
    assert reports[0] == reports[1]


@pytest.mark.parametrize("overlap", PASSES)
def test_weights_are_held_once(overlap):
    whole, parts = (point(Plan(tp=4, pp=2, overlap=o)) for o in ("", overlap))
    sizes = whole.sizes("decode", WORK.prompt)
    for role in ("weight", "cache"):
        held = [at.graph("decode").nbytes(role, sizes) for at in (whole, parts)]
        assert held[0] == pytest.approx(held[1], rel=1e-12)


PLANS = {
    "llama-3.1-8b": [{"tp": 8}, {"tp": 4, "sp": True, "pp": 2}, {"tp": 2, "cp": 2, "dp": 2}],
    "mixtral-8x7b": [{"tp": 4, "ep": 2}, {"attention_dp": 8, "ep": 8}],
    "deepseek-v3": [{"ep": 8}, {"tp": 8, "ep": 8}],
}
CASES = [(name, plan) for name, plans in PLANS.items() for plan in plans]


@pytest.mark.parametrize(("name", "plan"), CASES)
@pytest.mark.parametrize("overlap", PASSES)
def test_collapsed_layers_equal_unrolled_ones(name, plan, overlap):
    at = point(Plan(**plan, overlap=overlap), name=name)
    for phase in ("prefill", "decode"):
        sizes = at.sizes(phase, at.workload.prompt)
        machine = Machine(at.platform, at.plan)
        for piece in at.pieces(phase):
            source = piece.graph.check()
            once, unrolled = (
                step_time(each, sizes, machine, Roofline()) for each in (source, source.unroll())
            )
            assert once == pytest.approx(unrolled, rel=1e-12)


@pytest.mark.parametrize("overlap", PASSES)
@pytest.mark.parametrize("cost", ["ideal", "tiled"])
def test_arrays_equal_scalars(overlap, cost):
    batches = np.array([1, 2, 31, 64])
    plan = Plan(tp=8, overlap=overlap)
    many = simulate(model(), platform(), plan, replace(WORK, batch=batches), cost=cost)
    for i, batch in enumerate(batches):
        one = simulate(model(), platform(), plan, replace(WORK, batch=int(batch)), cost=cost)
        assert many.ttft[i] == pytest.approx(one.ttft, rel=1e-9)
        assert many.tpot[i] == pytest.approx(one.tpot, rel=1e-9)
        assert many.prefill.exposed[i] == pytest.approx(one.prefill.exposed, rel=1e-6, abs=1e-12)
        assert many.decode.exposed[i] == pytest.approx(one.decode.exposed, rel=1e-6, abs=1e-12)


def test_one_sequence_has_no_second_half():
    work = replace(WORK, batch=1)
    times = [simulate(model(), platform(), Plan(tp=8, overlap=o), work).tpot
             for o in ("", "two-batch")]  # fmt: skip
    assert times[1] == pytest.approx(times[0], rel=1e-12)


@pytest.mark.parametrize("overlap", PASSES)
def test_one_chip_has_nothing_to_overlap(overlap):
    whole, parts = (
        simulate(model(), platform(), Plan(overlap=o), WORK, cost="tiled") for o in ("", overlap)
    )
    assert (parts.ttft, parts.tpot) == (whole.ttft, whole.tpot)
    assert not parts.decode.communicates
    assert "exposed" not in str(parts)


def test_the_shared_expert_runs_under_the_dispatch():
    at = simulate(model("deepseek-v3"), load_platform("dgx-h200"), Plan(ep=8), WORK)
    events = {event.name: event for event in at.prefill.events}
    dispatch = events["layers3-60.dispatch.all_to_all"]
    copied, shared = events["layers3-60.dispatch"], events["layers3-60.shared_gate_up"]
    experts = events["layers3-60.experts_gate_up"]
    # sent as soon as the copies are there, the shared expert meanwhile, then the others
    assert dispatch.starts[9] == pytest.approx(copied.starts[9] + copied.time)
    assert shared.starts[9] == pytest.approx(dispatch.starts[9])
    assert experts.starts[9] >= dispatch.starts[9] + dispatch.time - 1e-12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overlap": "two-bach"}, "did you mean 'two-batch'"),
        ({"overlap": 3}, "overlap=3"),
        ({"overlap": "chunked", "chunks": 0}, "chunks=0"),
        ({"overlap": "chunked", "chunks": 2.5}, "chunks=2.5"),
    ],
)
def test_nonsense_is_refused(options, words):
    with pytest.raises(SpecError, match=words):
        Plan(tp=8, **options)


# --- contention -----------------------------------------------------------------------------


def fluid(steps: Program, costs: Mapping[str, Cost]) -> float:
    """The makespan where everything runs at a rate that changes as transfers start and end."""
    tasks = [task for loop in steps.loops for task in loop.tasks]
    queues: dict[str, list[int]] = {}
    made: dict[str, set[int]] = {}
    needs: list[set[int]] = []
    for index, task in enumerate(tasks):
        needs.append(set().union(*(made.get(name, set()) for name in task.reads)))
        for name in task.makes:
            made[name] = {index}
        queues.setdefault(task.stream or f"view {index}", []).append(index)
    left = {index: float(costs[task.name].time) for index, task in enumerate(tasks)}
    done: set[int] = set()
    now = 0.0
    while any(queues.values()):
        heads = {stream: queue[0] for stream, queue in queues.items() if queue}
        active = {stream: head for stream, head in heads.items() if needs[head] <= done}
        transfer = active.get("communication")
        rates = {}
        for stream, index in active.items():
            rates[index] = 1.0
            if stream == "compute" and transfer is not None:
                beside, own = costs[tasks[transfer].name], costs[tasks[index].name]
                held = {COMPUTE: beside.holds_cores, MEMORY: beside.holds_bandwidth}
                rates[index] = 1.0 - held.get(own.limiter, 0.0)
        step = min(left[index] / rate for index, rate in rates.items())
        now += step
        for stream, index in active.items():
            left[index] -= step * rates[index]
            if left[index] <= 1e-13:
                done.add(index)
                queues[stream].pop(0)
    return now


def with_shares(times: Mapping[str, float], seed: int) -> dict[str, Cost]:
    rng = np.random.default_rng(seed)
    return {
        name: Cost(time, int(rng.choice([COMPUTE, MEMORY, LAUNCH])), Work(),
                   holds_cores=rng.uniform(0, 0.5), holds_bandwidth=rng.uniform(0, 0.5))
        for name, time in times.items()
    }  # fmt: skip


@settings(deadline=None)
@given(priced(most=4), st.integers(0, 2**31))
def test_contention_is_that_of_a_fluid(case, seed):
    source, times = case
    unrolled = source.unroll()
    base = with_shares(times, seed)
    costs = {
        op.name: base[op.name if op.name in base else op.name.split(".")[1]]
        for op, _ in unrolled.operators
    }
    ran, longer = contended(program(unrolled), costs)
    assert ran.makespan == pytest.approx(fluid(program(unrolled), costs), rel=1e-8, abs=1e-9)
    assert all(longer[name] >= costs[name].time for name in costs)


@pytest.mark.parametrize("overlap", PASSES)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_steady_layer_takes_as_long_as_in_a_fluid(overlap, phase):
    at = point(Plan(tp=8, overlap=overlap), cost="tiled")
    (piece,) = at.pieces(phase)
    sizes, machine = at.sizes(phase, WORK.prompt), Machine(at.platform, at.plan)
    spans = []
    for count in (6, 8):
        blocks = tuple(
            replace(block, count=count) if block.count > 1 else block
            for block in piece.graph.blocks
        )
        source = replace(piece.graph, blocks=blocks)
        unrolled = source.unroll()
        costs = {op.name: price(op, sizes, machine, at.cost) for op, _ in unrolled.operators}
        spans.append((step_time(source, sizes, machine, at.cost), fluid(program(unrolled), costs)))
    (short, short_fluid), (long, long_fluid) = spans
    assert long - short == pytest.approx(long_fluid - short_fluid, rel=1e-8)
    # the first and the last layer take as long as those in the middle
    assert long == pytest.approx(long_fluid, rel=2e-2)


def test_what_runs_alone_takes_its_own_time():
    at = point(Plan(tp=8), cost="tiled")
    (piece,) = at.pieces("decode")
    sizes, machine = at.sizes("decode", 512), Machine(at.platform, at.plan)
    costs = {op.name: price(op, sizes, machine, at.cost) for op, _ in piece.graph.operators}
    assert any(cost.holds_cores for cost in costs.values())
    _, times = contended(program(piece.graph), costs)
    assert times == {name: cost.time for name, cost in costs.items()}


def test_the_ideal_holds_nothing():
    at = point(Plan(tp=8, overlap="two-batch"))
    (piece,) = at.pieces("decode")
    sizes, machine = at.sizes("decode", 512), Machine(at.platform, at.plan)
    costs = {op.name: price(op, sizes, machine, Roofline()) for op, _ in piece.graph.operators}
    assert not any(cost.holds_cores or cost.holds_bandwidth for cost in costs.values())
    plain = schedule(program(piece.graph), {name: cost.time for name, cost in costs.items()})
    assert contended(program(piece.graph), costs)[0].makespan == plain.makespan


def test_a_transfer_holds_its_cores_and_at_most_half_the_memory():
    at = point(Plan(tp=8), cost="tiled")
    sizes, machine = at.sizes("prefill", 512), Machine(at.platform, at.plan)
    costs = [price(op, sizes, machine, at.cost) for op, _ in at.graph("prefill").operators
             if op.kind == "all_reduce"]  # fmt: skip
    for cost in costs:
        assert cost.holds_cores == 16 / 132
        assert 0 < cost.holds_bandwidth <= 0.5
        # as much is written as is read: what it sends and what it receives
        assert cost.holds_bandwidth * cost.time * 3.35e12 == pytest.approx(2 * cost.sent)


def test_cores_of_transfers():
    chip = load_chip("h100-sxm")
    with pytest.raises(SpecError, match="cores of transfers"):
        replace(chip, transfers=replace(chip.transfers, cores=-1))
    with pytest.raises(SpecError, match="'cores' is missing"):
        replace(chip, cores=None)
    assert load_chip("tpu-v5p").transfers is None
    # on a chip of few cores a transfer has half of them
    small = replace(platform(), chip=chip.replace(cores=20))
    at = simulate(model(), small, Plan(tp=8), WORK, cost="tiled").point
    sizes, machine = at.sizes("decode", 512), Machine(small, at.plan)
    held = {price(op, sizes, machine, at.cost).holds_cores
            for op, _ in at.graph("decode").operators if op.kind == "all_reduce"}  # fmt: skip
    assert held == {0.5}


# --- exposed communication ------------------------------------------------------------------


def swept(timeline: Timeline) -> float:
    """Seconds in which a stage communicates and does not compute, from moment to moment."""
    worst = 0.0
    for stage in {event.stream.rpartition(" ")[0] for event in timeline.events}:
        changes: list[tuple[float, int, int]] = []
        for event in timeline.events:
            place, _, kind = event.stream.rpartition(" ")
            if place == stage:
                # both "communication" and the "link" to the next stage send
                for start in event.starts:
                    here = (1, 0) if kind == "compute" else (0, 1)
                    changes.append((start, *here))
                    changes.append((start + event.time, -here[0], -here[1]))
        alone, before, computing, sending = 0.0, 0.0, 0, 0
        for moment, computes, sends in sorted(changes):
            alone += (moment - before) * (sending > 0 and computing == 0)
            before, computing, sending = moment, computing + computes, sending + sends
        worst = max(worst, alone)
    return worst


REPORTS = [
    *(("llama-3.1-8b", {"tp": 8, "overlap": overlap}) for overlap in ("", *PASSES)),
    ("llama-3.1-8b", {"tp": 2, "sp": True, "pp": 2, "overlap": "chunked"}),
    ("deepseek-v3", {"ep": 8, "overlap": "two-batch"}),
]


def report(name: str, plan: Mapping[str, Any], cost: str = "ideal") -> Report:
    where = "dgx-h200" if name == "deepseek-v3" else "dgx-h100"
    return simulate(model(name), load_platform(where), Plan(**plan), WORK, cost=cost)


@pytest.mark.parametrize(("name", "plan"), REPORTS)
@pytest.mark.parametrize("cost", ["ideal", "tiled"])
def test_exposed_is_what_a_sweep_finds(name, plan, cost):
    found = report(name, plan, cost)
    assert found.prefill.exposed == pytest.approx(swept(found.prefill), rel=1e-6, abs=1e-12)
    if "pp" not in plan:
        # of a pipeline's rounds the sweep sees one, without those before and after it
        assert found.decode.exposed == pytest.approx(swept(found.decode), rel=1e-6, abs=1e-12)


@given(priced(most=30))
def test_exposed_of_random_programs(case):
    source, times = case
    steps = program(source)
    ran = schedule(steps, times)
    runs: dict[str | None, list[tuple[float, float]]] = {}
    for loop, done in zip(steps.loops, ran.loops, strict=True):
        for i, task in enumerate(loop.tasks):
            for repetition in range(loop.count):
                both = done.start(i, repetition), done.end(i, repetition)
                runs.setdefault(task.stream, []).append(both)
    expected = sum(end - start for start, end in runs.get("communication", []))
    for start, end in runs.get("communication", []):
        expected -= sum(max(0.0, min(end, b) - max(start, a)) for a, b in runs.get("compute", []))
    assert exposed(steps, ran) == pytest.approx(expected, rel=1e-9, abs=1e-9 * ran.makespan)


def test_exposed_of_a_measured_timeline_is_found_from_its_events():
    def event(stream: str, start: float, time: float) -> Event:
        return Event("op", "op", time, np.array([start]), stream=stream)

    # a second computing stream hides as well, a copy does not
    events = (event("compute", 0, 2), event("communication", 1, 4), event("stream 7", 3, 1),
              event("copy", 4, 1), event("communication", 8, 1))  # fmt: skip
    assert Timeline("measured", events, 9.0).exposed == pytest.approx(1 + 1 + 1)
    found = report("llama-3.1-8b", {"tp": 8, "overlap": "chunked"}).decode
    same = replace(found, exposed=np.nan)
    assert same.exposed == pytest.approx(found.exposed, rel=1e-9)


def test_exposed_is_in_the_report_and_under_its_key():
    found = report("llama-3.1-8b", {"tp": 8})
    # nothing runs beside the all-reduces of plain tensor parallelism
    sent = found.decode.busy["communication"]
    assert found.decode.exposed == pytest.approx(sent, rel=1e-12)
    phases = found.to_dict()["phases"]
    assert phases["decode"]["exposed_communication_ms"] == pytest.approx(sent * 1e3)
    assert "exposed    communication: " in str(found)


def test_handing_on_is_exposed_where_the_stage_has_nothing_to_do():
    # two stages, one microbatch after another; sends of 2 s, pieces of 3 s without transfers
    run = Pipeline(2, 2, 3, decodes=False).run([3.0, 3.0], [2.0, 0.0])
    # the first stage computes on while it hands on all but the last microbatch
    assert run.exposed([0.0, 0.0]) == pytest.approx(2.0)
    assert run.exposed([0.5, 0.0]) == pytest.approx(2.0 + 3 * 0.5)
    # the second stage is worse if its pieces expose more
    assert run.exposed([0.0, 1.5]) == pytest.approx(4.5)
