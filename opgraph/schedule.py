"""The schedule of one step as a max-plus recurrence (Baccelli et al., Synchronization and
Linearity, 1992): a task starts when what it reads is there and its stream is free.

Tasks are issued in program order; each stream runs one at a time. A loop is run until one more
repetition only shifts everything by the same time. From there on each repetition does, so the
rest is that shift times the repetitions left: the result is exact. Times may be arrays.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from hardware import Number
from opgraph.arithmetic import larger
from opgraph.graph import Block, Graph

Source = int | str
"""What a task waits for: an earlier task of the loop, or an entry of the state."""

# rounding of a repetition's few dozen sums and maxima, in units of its length
_ROUNDING = 64 * np.finfo(float).eps


@dataclass(frozen=True)
class Task:
    """Something to run: the stream it needs (none: it takes no time), what it reads and makes."""

    name: str
    stream: str | None
    reads: tuple[str, ...]
    makes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Loop:
    """*tasks* in program order, *count* times; *carried* names are handed on."""

    tasks: tuple[Task, ...]
    count: int = 1
    carried: tuple[tuple[str, str], ...] = ()

    def reverse(self) -> "Loop":
        """The loop seen from its end."""
        tasks = tuple(Task(t.name, t.stream, t.makes, t.reads) for t in reversed(self.tasks))
        return Loop(tasks, self.count, tuple((leave, entry) for entry, leave in self.carried))

    @cached_property
    def makers(self) -> dict[str, tuple[int, ...]]:
        """Name → the tasks that make it."""
        found: dict[str, tuple[int, ...]] = {}
        for index, task in enumerate(self.tasks):
            found |= {name: (*found.get(name, ()), index) for name in task.makes}
        return found

    @cached_property
    def last(self) -> dict[str, int]:
        """Stream → its last task."""
        return {task.stream: i for i, task in enumerate(self.tasks) if task.stream is not None}

    @cached_property
    def waits(self) -> tuple[tuple[Source, ...], ...]:
        """For each task what it waits for, less what something it waits for has waited for."""
        before: list[set[Source]] = []
        kept: list[tuple[Source, ...]] = []
        entries = {entry for entry, _ in self.carried}
        for index, task in enumerate(self.tasks):
            direct: set[Source] = set()
            for name in task.reads:
                made = {maker for maker in self.makers.get(name, ()) if maker < index}
                direct |= made
                if not made or name in entries:
                    direct.add(f"tensor {name}")
            if task.stream is not None:
                earlier = [i for i in range(index) if self.tasks[i].stream == task.stream]
                direct.add(earlier[-1] if earlier else f"stream {task.stream}")
            indirect = set().union(*(before[i] for i in direct if isinstance(i, int)))
            before.append(direct | indirect)
            kept.append(tuple(sorted(direct - indirect, key=str)))
        return tuple(kept)

    @cached_property
    def steady_keys(self) -> tuple[str, ...]:
        """The entries of the state that a steady repetition leaves as it found them."""
        streams = (f"stream {stream}" for stream in self.last)
        return (*streams, *(f"tensor {entry}" for entry, _ in self.carried))


@dataclass(frozen=True)
class Run:
    """One repetition: when it began, and each task's start and end after that, in seconds."""

    base: Number
    starts: Sequence[Number]
    ends: Sequence[Number]


@dataclass(frozen=True)
class LoopRun:
    """The repetitions of a loop up to the first steady one; the others follow at *period*."""

    runs: Sequence[Run]
    period: Number
    count: int

    def start(self, task: int, repetition: int) -> Number:
        """The start of a task in a repetition, in seconds from the start of the step."""
        run, later = self._find(repetition)
        return run.base + later + run.starts[task]

    def end(self, task: int, repetition: int) -> Number:
        """The end of a task in a repetition."""
        run, later = self._find(repetition)
        return run.base + later + run.ends[task]

    def _find(self, repetition: int) -> tuple[Run, Number]:
        last = min(repetition, len(self.runs) - 1)
        return self.runs[last], (repetition - last) * self.period


@dataclass(frozen=True)
class Schedule:
    """When everything ran. *makespan* is the time of the step in seconds."""

    loops: Sequence[LoopRun]
    makespan: Number


@dataclass(frozen=True, eq=False)
class Program:
    """Loops in program order."""

    loops: tuple[Loop, ...]

    @cached_property
    def reverse(self) -> "Program":
        """The program from its end: schedules how long it still takes after each task."""
        return Program(tuple(loop.reverse() for loop in reversed(self.loops)))

    @cached_property
    def live(self) -> tuple[frozenset[str], ...]:
        """For each loop the names that it carries or that later loops read."""
        read: set[str] = set()
        found = []
        for loop in reversed(self.loops):
            carried = {name for pair in loop.carried for name in pair}
            found.append(frozenset(read | carried))
            read |= {name for task in loop.tasks for name in task.reads}
        return tuple(reversed(found))


@lru_cache(maxsize=1024)
def program(graph: Graph) -> Program:
    """The tasks of a sharded graph."""
    return Program(tuple(Loop(_tasks(block), block.count, block.carried) for block in graph.blocks))


def _tasks(block: Block) -> tuple[Task, ...]:
    return tuple(
        Task(
            operator.name,
            None if operator.is_view else operator.stream,
            tuple(tensor.name for tensor in operator.activations),
            tuple(tensor.name for tensor in operator.outputs),
        )
        for operator in block.operators
    )


def schedule(steps: Program, times: Mapping[str, Number]) -> Schedule:
    """Run *steps*, each task taking *times* of its name, in seconds.

    Returns
    -------
    Schedule : with the start and end of every task, and the makespan.
    """
    state: dict[str, Any] = {}
    base: Any = 0.0
    done = []
    for loop, live in zip(steps.loops, steps.live, strict=True):
        durations = [times[task.name] for task in loop.tasks]
        runs = []
        shift: Any = 0.0
        for run, after, shift in _repetitions(loop, durations, state, live):
            runs.append(Run(base, *run))
            base = base + shift
            steady = _is_steady(loop, state, after, shift)
            state = after
            if steady:
                break
        left = loop.count - len(runs)
        if left:
            base = base + left * shift
            state = {
                key: value if key in loop.steady_keys else value - left * shift
                for key, value in state.items()
            }
        done.append(LoopRun(runs, shift, loop.count))
    return Schedule(done, base)


def _repetitions(
    loop: Loop, durations: Sequence[Number], state: dict[str, Any], live: frozenset[str]
) -> Iterator[tuple[tuple[list[Any], list[Any]], dict[str, Any], Any]]:
    """Each repetition: its starts and ends, the state after it and how far time moved on.

    The state is relative to the latest end of any stream, so that rounding does not grow.
    """
    for _ in range(loop.count):
        starts: list[Any] = []
        ends: list[Any] = []
        for waits, duration in zip(loop.waits, durations, strict=True):
            start: Any = None
            for source in waits:
                when = ends[source] if isinstance(source, int) else state.get(source, 0.0)
                start = when if start is None else larger(start, when)
            starts.append(0.0 if start is None else start)
            ends.append(starts[-1] + duration)
        shift: Any = 0.0
        for index in loop.last.values():
            shift = larger(shift, ends[index])
        state = _after(loop, state, ends, shift, live)
        yield (starts, ends), state, shift


def _after(
    loop: Loop, state: dict[str, Any], ends: list[Any], shift: Any, live: frozenset[str]
) -> dict[str, Any]:
    after = {key: value - shift for key, value in state.items()}
    for stream, index in loop.last.items():
        after[f"stream {stream}"] = ends[index] - shift
    for name in live & loop.makers.keys():
        for index in loop.makers[name]:
            end = ends[index] - shift
            key = f"tensor {name}"
            after[key] = larger(after[key], end) if key in after else end
    for entry, leave in loop.carried:
        if f"tensor {leave}" in after:
            after[f"tensor {entry}"] = after[f"tensor {leave}"]
    return after


def _is_steady(loop: Loop, before: dict[str, Any], after: dict[str, Any], shift: Any) -> bool:
    """Whether the next repetition will only shift: the state is as it was, and nothing older
    than the streams' own ends can still be waited for.
    """
    for key in loop.steady_keys:
        drift = after.get(key, 0.0) - before.get(key, 0.0)
        if not _all(abs(drift) <= _ROUNDING * shift):
            return False
    latest = [after[f"stream {stream}"] for stream in loop.last]
    outside = {w for waits in loop.waits for w in waits if isinstance(w, str)}
    return all(
        _all(after.get(key, 0.0) <= end) or key in loop.steady_keys
        for key in outside
        for end in latest
    )


def _all(condition: Any) -> bool:
    return bool(np.all(condition)) if isinstance(condition, np.ndarray) else bool(condition)
