"""The schedule: collapsed loops against every repetition written out, bounds, slack, arrays."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from strategies import Prices, Ran, executions, graph, priced, tails, tensor, toy

from opgraph.cost import Host
from opgraph.graph import Block, Builder, Graph, GraphError
from opgraph.schedule import Schedule, program, schedule
from opgraph.sizes import Sizes
from opgraph.timeline import Timeline, predict


def predicted(source: Graph, times: dict[str, Any]) -> Timeline:
    return predict("step", source, Sizes({}), TOYLAND, Prices(times))


class _Chip:
    name = "toy"


class _Platform:
    chip = _Chip()


class _Machine:
    host = Host()
    platform = _Platform()


TOYLAND: Any = _Machine()


def ran(source: Graph, found: Schedule) -> list[tuple[float, float]]:
    """Start and end of every execution, in the order of `executions`."""
    return [
        (loop.start(index, i), loop.end(index, i))
        for loop, block in zip(found.loops, source.blocks, strict=True)
        for i in range(block.count)
        for index in range(len(block.operators))
    ]


# --- collapsed against unrolled -------------------------------------------------------------


@given(priced())
def test_collapsed_loops_equal_every_repetition_written_out(case):
    source, times = case
    expected = executions(source, times)
    found = schedule(program(source), times)
    longest = max(run.end for run in expected)
    assert found.makespan == pytest.approx(longest, rel=1e-12, abs=1e-15)
    noise = 1e-12 * longest
    for run, (start, end) in zip(expected, ran(source, found), strict=True):
        if run.stream is not None:  # when a view takes no time is nobody's business
            assert (start, end) == pytest.approx((run.start, run.end), abs=noise), run


@given(priced(most=8))
def test_an_unrolled_graph_has_the_same_timeline(case):
    source, times = case
    note(f"{source}\n{source.unroll()}\n{times}")
    whole, written_out = predicted(source, times), predicted(source.unroll(), times)
    assert written_out.time == pytest.approx(whole.time, rel=1e-12, abs=1e-15)
    unrolled = {event.name: float(event.starts[0]) for event in whole.unroll().events}
    for event in written_out.events:
        assert unrolled[event.name] == pytest.approx(float(event.starts[0]), abs=1e-12 * whole.time)


@given(priced())
def test_seen_from_its_end_a_program_takes_as_long(case):
    source, times = case
    steps = program(source)
    forward, backward = schedule(steps, times), schedule(steps.reverse, times)
    assert backward.makespan == pytest.approx(forward.makespan, rel=1e-12, abs=1e-15)


# --- bounds ---------------------------------------------------------------------------------


@given(priced())
def test_a_step_takes_at_least_its_busiest_stream_and_at_most_the_sum(case):
    source, times = case
    timeline = predicted(source, times)
    total = sum(times[op.name] * count for op, count in source.operators)
    assert timeline.time <= total * (1 + 1e-12)
    for stream, busy in timeline.busy.items():
        assert timeline.time >= busy * (1 - 1e-12), stream


@given(priced(most=12))
def test_streams_run_one_task_at_a_time_and_nothing_runs_before_what_it_reads(case):
    source, times = case
    found = ran(source, schedule(program(source), times))
    plain = executions(source, times)
    noise = 1e-12 * max(end for _, end in found)
    latest: dict[str, float] = {}
    for (start, end), run in zip(found, plain, strict=True):
        if run.stream is not None:
            assert start >= -noise
            assert end - start == pytest.approx(times[run.name], abs=noise)
            tasks = [i for i in run.after if plain[i].stream is not None]
            assert all(start >= found[i][1] - noise for i in tasks)
            assert start >= latest.get(run.stream, 0.0) - noise
            latest[run.stream] = end


# --- slack ----------------------------------------------------------------------------------


@given(priced(most=12))
def test_slack_is_the_makespan_less_the_longest_path_through_an_operator(case):
    source, times = case
    plain = executions(source, times)
    makespan = max(run.end for run in plain)
    expected: dict[str, float] = {}
    for run, tail in zip(plain, tails(plain), strict=True):
        spare = makespan - run.end - tail
        expected[run.name] = min(expected.get(run.name, spare), spare)
    for event in predicted(source, times).events:
        assert event.slack >= 0
        assert event.slack == pytest.approx(expected[event.name], abs=2e-9 * makespan), event.name


@given(priced(most=8), st.data())
def test_an_operator_may_take_longer_by_its_slack_and_no_more(case, data):
    source, times = case
    once = [op.name for op, count in source.operators if count == 1 and not op.is_view]
    if not once:
        return
    name = data.draw(st.sampled_from(once))
    timeline = predicted(source, times)
    slack = next(event.slack for event in timeline.events if event.name == name)
    margin = 1e-6 * (timeline.time + 1)

    def longest(extra: float) -> float:
        # one execution, so that its time is the operator's
        return max(run.end for run in executions(source, times | {name: times[name] + extra}))

    assert longest(slack) == pytest.approx(timeline.time, abs=margin / 100)
    # any path through it grows second by second once the slack is spent
    assert longest(slack + margin) >= timeline.time + margin / 2


@given(priced(most=12))
def test_a_critical_path_exists_and_fills_the_step(case):
    source, times = case
    timeline = predicted(source, times)
    if timeline.time == 0:
        return
    critical = {event.name for event in timeline.events if event.slack == 0}
    spent = sum(times[op.name] * count for op, count in source.operators if op.name in critical)
    # what is critical covers the whole step without a gap, so it takes at least as long
    assert spent >= timeline.time * (1 - 1e-9)


# --- arrays ---------------------------------------------------------------------------------


@given(priced(most=20), st.data())
def test_arrays_of_times_give_what_each_point_gives(case, data):
    source, times = case
    names = [name for name in times if times[name]]
    factors = np.array(
        data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=3, max_size=3))
    )
    arrays: dict[str, Any] = dict(times)
    for name in names:
        if data.draw(st.booleans()):
            arrays[name] = times[name] * factors
    found = schedule(program(source), arrays)
    runs = [i for i, run in enumerate(executions(source, times)) if run.stream is not None]
    together = [np.broadcast_to(ran(source, found)[i][0], (3,)) for i in runs]
    for point in range(3):
        alone = {name: float(np.broadcast_to(time, (3,))[point]) for name, time in arrays.items()}
        one = schedule(program(source), alone)
        noise = 1e-12 * one.makespan
        assert np.broadcast_to(found.makespan, (3,))[point] == pytest.approx(
            one.makespan, abs=noise
        )
        assert [start[point] for start in together] == pytest.approx(
            [ran(source, one)[i][0] for i in runs], abs=noise
        )


def test_points_of_an_array_may_become_steady_at_different_repetitions():
    # compute 3 and link 1 at first: the link waits each time: steady at once. compute 1 and link
    # 3: compute runs ahead, and the lead grows without end; the fast point must not stop it.
    source = graph(
        Block(
            "layer",
            (toy("a", "x"), toy("b", "a", on="communication")),
            30,
            (("x", "a"),),
        ),
        inputs=("x",),
    )
    times = {"a": np.array([3.0, 1.0, 2.0]), "b": np.array([1.0, 3.0, 2.0])}
    # one of the slower kind each time, one of the other before the first or after the last
    assert schedule(program(source), times).makespan == pytest.approx([30 * 3 + 1, 1 + 30 * 3, 62])


# --- by hand --------------------------------------------------------------------------------

CHAIN = (toy("a", "x"), toy("b", "a", on="communication"))


def test_a_loop_that_runs_once_is_its_tasks():
    source = graph(Block("only", CHAIN, 1), inputs=("x",))
    assert schedule(program(source), {"a": 2.0, "b": 3.0}).makespan == 5.0


def test_nothing_takes_no_time():
    source = graph(Block("layer", CHAIN, 7, (("x", "b"),)), inputs=("x",))
    timeline = predicted(source, {"a": 0.0, "b": 0.0})
    assert timeline.time == 0.0
    assert [event.slack for event in timeline.events] == [0.0, 0.0]


def test_a_chain_through_two_streams_adds_up():
    # each of 10 repetitions waits for the link of the one before: 10 · (2 + 3)
    source = graph(Block("layer", CHAIN, 10, (("x", "b"),)), inputs=("x",))
    timeline = predicted(source, {"a": 2.0, "b": 3.0})
    assert timeline.time == 50.0
    assert list(timeline.events[1].starts) == [5.0 * i + 2 for i in range(10)]


def test_what_a_loop_leaves_on_another_stream_is_waited_for():
    # 10 · (2 + 3), then 1
    source = graph(
        Block("layer", CHAIN, 10, (("x", "b"),)), Block("head", (toy("c", "b"),)), inputs=("x",)
    )
    assert schedule(program(source), {"a": 2.0, "b": 3.0, "c": 1.0}).makespan == 51.0


def test_what_nothing_delays_starts_at_once():
    # the link has been idle and its input is there from the start: 0 to 3 beside 0 to 5
    source = graph(
        Block("first", (toy("a", "in0"),)), Block("second", (toy("b", "in1", on="copy"),)),
        inputs=("in0", "in1"),
    )  # fmt: skip
    assert schedule(program(source), {"a": 5.0, "b": 3.0}).makespan == 5.0


def test_a_result_that_nobody_reads_has_slack_to_the_end():
    # a 0–4, 4–8, 8–12 on one stream; after each a copy of 1 that nobody reads. The last may take
    # none longer than … 12 + 1 = 13 is the step; the first ends at 5, but the copies queue:
    # 4–5, 8–9, 12–13, so the first may end at 11 (then 11–12, 12–13), the last has none.
    source = graph(
        Block("layer", (toy("a", "x"), toy("save", "a", on="copy")), 3, (("x", "a"),)),
        Block("head", (toy("c", "a"),)),
        inputs=("x",),
    )
    # the head of 10 hides the copies: the step is 12 + 10; the last copy may end at 22, not 13
    timeline = predicted(source, {"a": 4.0, "save": 1.0, "c": 10.0})
    assert timeline.time == 22.0
    assert [event.slack for event in timeline.events] == [0.0, 22.0 - 13.0, 0.0]


def handed_on() -> Graph:
    """A body that hands its input on: (a, b) becomes (f(a), a)."""
    build = Builder("handed")
    a, b = (build.input(tensor(name)) for name in "ab")

    def body(a, b):
        (f,) = build.add(toy("f", a.name, on="communication"))
        build.add(toy("g", b.name))
        return f, a

    build.repeat("layer", 4, body, a, b)
    return build.graph()


@pytest.mark.parametrize("form", ["collapsed", "unrolled"])
def test_a_block_that_hands_on_its_entry_gives_the_older_one(form):
    # f: 0–3, 3–6, 6–9, 9–12. g of repetition i reads the a of repetition i - 1:
    # g0 and g1 read inputs: 0–1, 1–2; g2 reads f0, there at 3: 3–4; g3 reads f1, there at 6: 6–7
    try:
        source = handed_on()
    except GraphError:
        return  # refused: as good
    source = source if form == "collapsed" else source.unroll()
    events = predicted(source, {"f": 3.0, "g": 1.0}).unroll().events
    starts = sorted(float(event.starts[0]) for event in events if event.name.endswith("g"))
    assert starts == [0.0, 1.0, 3.0, 6.0]


@pytest.mark.parametrize("form", ["collapsed", "unrolled"])
def test_a_skip_around_a_block_reads_what_went_in(form):
    # x is there from the start: beside the block (4 · 3) the copy runs from 0 to 1
    build = Builder("skip")
    x = build.input(tensor("x"))

    def body(x):
        return build.add(toy("f", x.name))

    build.repeat("layer", 4, body, x)
    build.add(toy("skip", "x", on="copy"))
    try:
        source = build.graph()
    except GraphError:
        return  # refused: as good
    source = source if form == "collapsed" else source.unroll()
    events = {event.name: event for event in predicted(source, {"f": 3.0, "skip": 1.0}).events}
    assert events["skip"].starts[0] == 0.0
    assert events["skip"].slack == 11.0


@given(priced(most=6), st.floats(1e-3, 1e3))
def test_times_in_other_units_give_the_same_schedule_in_those(case, unit):
    source, times = case
    here = schedule(program(source), times).makespan
    there = schedule(program(source), {name: time * unit for name, time in times.items()}).makespan
    assert there == pytest.approx(here * unit, rel=1e-12, abs=1e-15)


def test_two_schedules_of_one_program_do_not_disturb_each_other():
    source = graph(Block("layer", CHAIN, 10, (("x", "b"),)), inputs=("x",))
    steps = program(source)
    first = schedule(steps, {"a": 2.0, "b": 3.0}).makespan
    schedule(steps, {"a": 9.0, "b": 9.0})
    assert schedule(steps, {"a": 2.0, "b": 3.0}).makespan == first == 50.0


def test_a_repeated_graph_with_another_count_is_another_program():
    source = graph(Block("layer", CHAIN, 10, (("x", "b"),)), inputs=("x",))
    longer = replace(source, blocks=(replace(source.blocks[0], count=20),))
    times = {"a": 2.0, "b": 3.0}
    assert (
        schedule(program(longer), times).makespan == 2 * schedule(program(source), times).makespan
    )


def test_the_plain_scheduler_is_right_where_one_can_count():
    source = graph(Block("layer", CHAIN, 2, (("x", "b"),)), inputs=("x",))
    assert executions(source, {"a": 2.0, "b": 3.0}) == [
        Ran("a", 0, "compute", 0.0, 2.0, ()),
        Ran("b", 0, "communication", 2.0, 5.0, (0,)),
        Ran("a", 1, "compute", 5.0, 7.0, (0, 1)),
        Ran("b", 1, "communication", 7.0, 10.0, (1, 2)),
    ]
    assert tails(executions(source, {"a": 2.0, "b": 3.0})) == [8.0, 5.0, 3.0, 0.0]
