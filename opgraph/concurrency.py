"""Concurrency: what is computed while a transfer runs, and how much longer it takes for that.

A transfer's kernel holds some of the chip's cores and of its memory's bandwidth; what is computed
meanwhile has the rest. An operator that needs t seconds by itself is done after

    T = t + Σ (seconds beside a transfer · share that the transfer holds of what limits it)

which is its work in a fluid in which rates change only when a transfer starts or ends. When
things start depends on all T, so that they are found by iteration. Whoever satisfies the equation
for every operator is the fluid itself, and that is unique: what runs until a moment decides what
runs next. For the same reason the iteration ends: each round is right for one operator more.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, reduce
from typing import Any

import numpy as np

from hardware import Number
from hardware.arithmetic import always, ever, larger, smaller, where
from opgraph.cost import CACHE, COMPUTE, MEMORY, Cost
from opgraph.schedule import Loop, Program, Schedule, schedule

Place = tuple[int, int]
"""A loop and one of its repetitions."""
Timed = tuple[str, Number, Number]
"""A task, its start and its end."""

_COMPUTE, _TRANSFER = "compute", "communication"
# times are found to this share of the step; a handful of rounds is usual
_TOLERANCE, _MOST_ROUNDS = 1e-10, 200


def contended(steps: Program, costs: Mapping[str, Cost]) -> tuple[Schedule, Mapping[str, Number]]:
    """The schedule of *steps* at *costs*, and the seconds that each task takes in it.

    In a loop each repetition takes as long as the one in its middle.
    """
    times = {name: cost.time for name, cost in costs.items()}
    ran = schedule(steps, times)
    if not _is_concurrent(steps) or not any(map(_holds_anything, costs.values())):
        return ran, times
    for _ in range(_MOST_ROUNDS):
        longer = {name: cost.time for name, cost in costs.items()}
        for index, loop in enumerate(steps.loops):
            for task, transfer, seconds in _beside(steps, ran, (index, loop.count // 2)):
                longer[task] = longer[task] + seconds * _lost(costs[task], costs[transfer])
        near = [_is_near(longer[name], times[name], ran.makespan) for name in times]
        there = reduce(np.logical_and, near)
        if np.all(there):
            break
        # a point that is there stays, so that it ends as it would by itself
        times = {name: where(there, times[name], longer[name]) for name in times}
        ran = schedule(steps, times)
    return ran, times


def _holds_anything(cost: Cost) -> bool:
    return ever(cost.holds_cores) or ever(cost.holds_bandwidth)


def _is_near(one: Number, other: Number, step: Number) -> Any:
    return np.less_equal(np.abs(one - other), _TOLERANCE * step)


def _lost(cost: Cost, transfer: Cost) -> Number:
    """The share of what limits an operator that a *transfer* beside it holds."""
    on_cores = np.equal(cost.limiter, COMPUTE) | np.equal(cost.limiter, CACHE)
    of_memory = where(np.equal(cost.limiter, MEMORY), transfer.holds_bandwidth, 0.0)
    lost: Number = where(on_cores, transfer.holds_cores, of_memory)
    return lost


def exposed(steps: Program, ran: Schedule) -> Number:
    """Seconds in which a transfer runs and nothing is computed.

    A stream runs one task at a time, so that these are all seconds of transfers less those that
    each shares with what is computed.
    """
    total: Number = 0.0
    for index, done in enumerate(ran.loops):
        steady = range(len(done.runs) + 1, done.count - 1)
        others = {*range(done.count)} - {*steady}
        if steady:
            first, last = (_alone(steps, ran, (index, steady[i])) for i in (0, -1))
            if np.all(_is_near(first, last, ran.makespan)):
                total = total + len(steady) * first
            else:  # what another loop computes reaches into this one
                others |= {*steady}
        total = total + sum(_alone(steps, ran, (index, repetition)) for repetition in others)
    return larger(total, 0.0)


def _alone(steps: Program, ran: Schedule, at: Place) -> Number:
    """Seconds of transfers in one repetition of a loop during which nothing is computed."""
    sent = sum(end - start for _, start, end in _tasks(steps, ran, at, _TRANSFER))
    return sent - sum(seconds for *_, seconds in _beside(steps, ran, at, _TRANSFER))


def _beside(
    steps: Program, ran: Schedule, at: Place, stream: str = _COMPUTE
) -> Iterator[tuple[str, str, Number]]:
    """The tasks of one repetition of a loop on *stream*, those on the other stream that run at
    the same time, and for how many seconds they do.
    """
    own = list(_tasks(steps, ran, at, stream))
    if not own:
        return
    other = _during(steps, ran, at, _TRANSFER if stream == _COMPUTE else _COMPUTE, own)
    # both streams run their tasks in order: what has ended before one begins has for all after it
    first = 0
    for name, start, end in own:
        while first < len(other) and always(other[first][2] <= start):
            first += 1
        for beside, begin, stop in other[first:]:
            if always(begin >= end):
                break
            seconds = common(start, end, begin, stop)
            if ever(seconds):
                yield name, beside, seconds


def _during(
    steps: Program, ran: Schedule, at: Place, stream: str, own: Sequence[Timed]
) -> list[Timed]:
    """The tasks on *stream* that may run during *own*, those of the repetition *at*, in order.

    On either side the first repetition that is apart from *own* ends the search.
    """
    (_, begin, _), (_, _, end) = own[0], own[-1]
    tasks = list(_tasks(steps, ran, at, stream))
    for place in _places(steps, at, -1):
        found = list(_tasks(steps, ran, place, stream))
        if found and always(found[-1][2] <= begin):
            break
        tasks = found + tasks
    for place in _places(steps, at, 1):
        found = list(_tasks(steps, ran, place, stream))
        if found and always(found[0][1] >= end):
            break
        tasks += found
    return tasks


def _places(steps: Program, at: Place, towards: int) -> Iterator[Place]:
    """The repetitions, of whatever loop, before *at* (*towards* -1) or after it (1)."""
    index, repetition = at
    while True:
        repetition += towards
        while not 0 <= repetition < steps.loops[index].count:
            index += towards
            if not 0 <= index < len(steps.loops):
                return
            repetition = 0 if towards > 0 else steps.loops[index].count - 1
        yield index, repetition


def _tasks(steps: Program, ran: Schedule, at: Place, stream: str) -> Iterator[Timed]:
    index, repetition = at
    done = ran.loops[index]
    for i, task in enumerate(steps.loops[index].tasks):
        if task.stream == stream:
            yield task.name, done.start(i, repetition), done.end(i, repetition)


def common(start: Number, end: Number, begin: Number, stop: Number) -> Number:
    """Seconds that two runs have in common."""
    return larger(smaller(end, stop) - larger(start, begin), 0.0)


@lru_cache(maxsize=1024)
def _is_concurrent(steps: Program) -> bool:
    """Whether anything may be computed while a transfer runs.

    Not where each transfer waits for what is computed before it, and what is computed after it
    waits for the transfer.
    """
    return any(_has_company(loop) for loop in steps.loops)


def _has_company(loop: Loop) -> bool:
    before: list[set[int]] = []
    for waits in loop.waits:
        own = {source for source in waits if isinstance(source, int)}
        before.append(own.union(*(before[i] for i in own)))
    computed = [i for i, task in enumerate(loop.tasks) if task.stream == _COMPUTE]
    for i, task in enumerate(loop.tasks):
        if task.stream == _TRANSFER:
            earlier = [c for c in computed if c < i][-1:]
            later = [c for c in computed if c > i][:1]
            if not (earlier and later and earlier[0] in before[i] and i in before[later[0]]):
                return True
    return False
