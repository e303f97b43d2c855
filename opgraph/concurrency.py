"""Concurrency: what is computed while a transfer runs, and how much longer it takes for that.

A transfer's kernel holds some of the chip's cores and of its memory's bandwidth; what is computed
meanwhile has the rest. An operator that needs t seconds by itself is done after

    T = t + Σ (seconds beside a transfer · share that the transfer holds of what limits it)

which is its work in a fluid in which rates change only when a transfer starts or ends. When
things start depends on all T, so that they are found by iteration. Whoever satisfies the equation
for every operator is the fluid itself, and that is unique: what runs until a moment decides what
runs next. For the same reason the iteration ends: each round is right for one operator more.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np

from hardware import Number
from opgraph.arithmetic import larger, smaller, where
from opgraph.cost import CACHE, COMPUTE, MEMORY, Cost
from opgraph.schedule import Loop, Program, Schedule, schedule

_COMPUTE, _TRANSFER = "compute", "communication"
# times are found to this share of the step; a handful of rounds is usual
_TOLERANCE, _MOST_ROUNDS = 1e-10, 200


def contended(
    steps: Program, costs: Mapping[str, Cost]
) -> tuple[Schedule, Mapping[str, Number]]:
    """The schedule of *steps* at *costs*, and the seconds that each task takes in it.

    In a loop each repetition takes as long as the one in its middle.
    """
    times = {name: cost.time for name, cost in costs.items()}
    ran = schedule(steps, times)
    if not _is_concurrent(steps) or not any(map(_holds_anything, costs.values())):
        return ran, times
    for _ in range(_MOST_ROUNDS):
        before, times = times, {name: cost.time for name, cost in costs.items()}
        for index, loop in enumerate(steps.loops):
            for task, transfer, seconds in _beside(steps, ran, index, loop.count // 2):
                lost = _lost(costs[task], costs[transfer])
                times[task] = times[task] + seconds * lost
        change = (abs(times[name] - before[name]) / larger(ran.makespan, np.finfo(float).tiny) for name in times)
        if all(np.all(share <= _TOLERANCE) for share in change):
            break
        ran = schedule(steps, times)
    return ran, times


def _holds_anything(cost: Cost) -> bool:
    return bool(np.any(cost.holds_cores) or np.any(cost.holds_bandwidth))


def _lost(cost: Cost, transfer: Cost) -> Number:
    """The share of what limits an operator that a *transfer* beside it holds."""
    on_cores = np.equal(cost.limiter, COMPUTE) | np.equal(cost.limiter, CACHE)
    of_memory = where(np.equal(cost.limiter, MEMORY), transfer.holds_bandwidth, 0.0)
    return where(on_cores, transfer.holds_cores, of_memory)


def exposed(steps: Program, ran: Schedule) -> Number:
    """Seconds in which a transfer runs and nothing is computed.

    A stream runs one task at a time, so that these are all seconds of transfers less those that
    each shares with what is computed.
    """
    total: Number = 0.0
    for index, done in enumerate(ran.loops):
        for repetition, count in _weighed(done.count, len(done.runs)):
            transfers = _tasks(steps, ran, index, repetition, _TRANSFER)
            alone = sum(end - start for _, start, end in transfers)
            beside = _beside(steps, ran, index, repetition, _TRANSFER)
            total = total + count * (alone - sum(seconds for *_, seconds in beside))
    return larger(total, 0.0)


def _weighed(count: int, known: int) -> Iterator[tuple[int, int]]:
    """Repetitions of a loop and how many each stands for: those in the steady middle are alike."""
    single = {*range(min(known + 1, count)), count - 1}
    yield from ((repetition, 1) for repetition in sorted(single))
    if count > len(single):
        yield known + 1, count - len(single)


def _beside(
    steps: Program, ran: Schedule, index: int, repetition: int, stream: str = _COMPUTE
) -> Iterator[tuple[str, str, Number]]:
    """The tasks of one *repetition* of a loop on *stream*, those on the other stream that may run
    at the same time, and how many seconds they do.
    """
    other = _TRANSFER if stream == _COMPUTE else _COMPUTE
    near = [task for at in _around(steps, index, repetition) for task in _tasks(steps, ran, *at, other)]
    for name, start, end in _tasks(steps, ran, index, repetition, stream):
        for beside, begin, stop in near:
            seconds = common(start, end, begin, stop)
            if np.any(seconds):
                yield name, beside, seconds


def common(start: Number, end: Number, begin: Number, stop: Number) -> Number:
    """Seconds that two runs have in common."""
    return larger(smaller(end, stop) - larger(start, begin), 0.0)


def _tasks(
    steps: Program, ran: Schedule, index: int, repetition: int, stream: str
) -> Iterator[tuple[str, Number, Number]]:
    """Name, start and end of each task on *stream* in one repetition of a loop."""
    done = ran.loops[index]
    for i, task in enumerate(steps.loops[index].tasks):
        if task.stream == stream:
            yield task.name, done.start(i, repetition), done.end(i, repetition)


def _around(steps: Program, index: int, repetition: int) -> list[tuple[int, int]]:
    """A repetition of a loop with the ones before and after it, also in the loops beside it."""
    busy = [i for i, loop in enumerate(steps.loops) if loop.last]
    places = [(index, repetition)]
    if repetition > 0:
        places.append((index, repetition - 1))
    elif before := [i for i in busy if i < index]:
        places.append((before[-1], steps.loops[before[-1]].count - 1))
    if repetition < steps.loops[index].count - 1:
        places.append((index, repetition + 1))
    elif after := [i for i in busy if i > index]:
        places.append((after[0], 0))
    return places


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
