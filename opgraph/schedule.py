"""The schedule of one step as a max-plus recurrence (Baccelli et al., Synchronization and
Linearity, 1992): a task starts when what it reads is there and its stream is free.

Tasks are issued in program order; each stream runs one at a time. A loop is run until one more
repetition only shifts everything by the same time. From there on each repetition does, so the
rest is that shift times the repetitions left: the result is exact. Times may be arrays.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from hardware import Number
from hardware.arithmetic import larger
from opgraph.graph import Block, Graph

Source = int | str
"""What a task waits for: an earlier task of the loop, or an entry of the state."""

# the entry of the state for the begin of the step: when what comes from outside is there
_BEGIN = "begin"
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
    """*tasks* in program order, *count* times; *carried* names are handed on.

    *earlier*: the names that loops before it make.
    """

    tasks: tuple[Task, ...]
    count: int = 1
    carried: tuple[tuple[str, str], ...] = ()
    earlier: frozenset[str] = frozenset()

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
        bits: dict[Source, int] = {}
        before: list[int] = []
        kept: list[tuple[Source, ...]] = []
        last: dict[str, int] = {}
        outside = self.earlier | {entry for entry, _ in self.carried}
        for index, task in enumerate(self.tasks):
            direct: set[Source] = set()
            for name in task.reads:
                made = {maker for maker in self.makers.get(name, ()) if maker < index}
                direct |= made
                if not made or name in outside:
                    direct.add(f"tensor {name}")
            if task.stream is not None:
                direct.add(last.get(task.stream, f"stream {task.stream}"))
                last[task.stream] = index
            # sets of sources as the bits of a number: a pipeline has thousands of tasks
            indirect, own = 0, 0
            for source in direct:
                own |= bits.setdefault(source, 1 << len(bits))
                indirect |= before[source] if isinstance(source, int) else 0
            before.append(own | indirect)
            kept.append(tuple(sorted((s for s in direct if not bits[s] & indirect), key=str)))
        return tuple(kept)

    @cached_property
    def still(self) -> frozenset[int]:
        """The tasks that every repetition does alike: on no stream, of what is outside."""
        entries = {entry for entry, _ in self.carried}
        found: set[int] = set()
        for index, task in enumerate(self.tasks):
            makers = {i for name in task.reads for i in self.makers.get(name, ()) if i < index}
            if task.stream is None and makers <= found and not entries & {*task.reads}:
                found.add(index)
        return frozenset(found)

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
        loops = []
        made: set[str] = set()
        for loop in reversed(self.loops):
            # what a task reads is, from the end, what it makes; a name may have many makers
            tasks = tuple(Task(t.name, t.stream, t.makes, t.reads) for t in reversed(loop.tasks))
            carried = tuple((leave, entry) for entry, leave in loop.carried)
            loops.append(Loop(tasks, loop.count, carried, frozenset(made)))
            made |= {name for task in tasks for name in task.makes}
        return Program(tuple(loops))

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
            (*(tensor.name for tensor in operator.activations), *operator.awaits),
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
    state: dict[str, Any] = {_BEGIN: 0.0}
    base: Any = 0.0
    done = []
    for loop, live in zip(steps.loops, steps.live, strict=True):
        durations = [times[task.name] for task in loop.tasks]
        runs = []
        shift: Any = 0.0
        # inside a loop a carried name is what was handed on; after it, what went in
        entries = {entry for entry, _ in loop.carried}
        for entry in entries:
            state[f"outer {entry}"] = state.get(f"tensor {entry}", state[_BEGIN])
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
            older = {key: value - left * shift for key, value in state.items()}
            kept = {key: state[key] for key in loop.steady_keys}
            ends = [
                end - left * shift if index in loop.still else end
                for index, end in enumerate(runs[-1].ends)
            ]
            state = _latest(older, _made(loop, ends, shift, live)) | kept
        state |= {f"tensor {entry}": state.pop(f"outer {entry}") for entry in entries}
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
                when = ends[source] if isinstance(source, int) else state.get(source, state[_BEGIN])
                start = when if start is None else larger(start, when)
            starts.append(state[_BEGIN] if start is None else start)
            ends.append(starts[-1] + duration)
        shift: Any = 0.0
        for index in loop.last.values():
            shift = larger(shift, ends[index])
        state = _after(loop, state, ends, shift, live)
        yield (starts, ends), state, shift


def _after(
    loop: Loop, state: dict[str, Any], ends: list[Any], shift: Any, live: frozenset[str]
) -> dict[str, Any]:
    made = _latest({}, _made(loop, ends, shift, live))
    after = _latest({key: value - shift for key, value in state.items()}, made.items())
    for stream, index in loop.last.items():
        after[f"stream {stream}"] = ends[index] - shift
    handed = (
        (f"tensor {entry}", made.get(f"tensor {leave}", after[_BEGIN]))
        for entry, leave in loop.carried
    )
    return after | _latest({}, handed)


def _made(
    loop: Loop, ends: Sequence[Any], shift: Any, live: frozenset[str]
) -> Iterator[tuple[str, Any]]:
    """When a repetition's makers of each live tensor are done, after *shift*."""
    for name in sorted(live & loop.makers.keys()):
        for index in loop.makers[name]:
            yield f"tensor {name}", ends[index] - shift


def _latest(state: dict[str, Any], made: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The state with each entry as late as the latest of what made it."""
    for key, end in made:
        state[key] = larger(state[key], end) if key in state else end
    return state


def _is_steady(loop: Loop, before: dict[str, Any], after: dict[str, Any], shift: Any) -> bool:
    """Whether the next repetition will only shift.

    The state is as it was, and what is outside the loop was there before any stream was free, so
    that it delayed nothing in this repetition, nor will later.
    """
    for key in loop.steady_keys:
        drift = after[key] - before.get(key, before[_BEGIN])
        if not _all(abs(drift) <= _ROUNDING * shift):
            return False
    free = [before.get(f"stream {stream}", before[_BEGIN]) for stream in loop.last]
    outside = {key for waits in loop.waits for key in waits if isinstance(key, str)}
    return all(
        _all(before.get(key, before[_BEGIN]) <= end)
        for key in outside - {*loop.steady_keys}
        for end in free
    )


def _all(condition: Any) -> bool:
    return bool(np.all(condition)) if isinstance(condition, np.ndarray) else bool(condition)
