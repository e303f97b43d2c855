"""Pipelines: microbatches follow each other through the pieces of a model.

Piece *j* of a model is on the chips of stage *j* mod *stages*; with more pieces than stages they
are interleaved (Narayanan et al., Efficient Large-Scale Language Model Training, 2021). When what
runs comes out of the same recurrence as a step's operators: a task is a piece of one microbatch,
or the transfer to the next piece.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce

import numpy as np

from hardware import Number
from hardware.arithmetic import larger, smaller, where
from opgraph import timeline
from opgraph.concurrency import common
from opgraph.cost import Cost, CostModel, Machine, price
from opgraph.operator import Send
from opgraph.schedule import Loop, Program, Schedule, Task, schedule
from opgraph.sizes import Sizes
from opgraph.stages import Piece, joined
from opgraph.timeline import NO_SLACK, Event, Timeline, event_of

# rounds of a decoding pipeline after which it runs evenly, in terms of its pieces
_ROUNDS = 4


@dataclass(frozen=True)
class Pipeline:
    """*pieces* on *stages*, which *microbatches* pass through; in decode, round after round."""

    stages: int
    pieces: int
    microbatches: int
    decodes: bool

    @property
    def is_trivial(self) -> bool:
        """Whether there is nothing to pipeline: one piece, one microbatch."""
        return self.pieces == 1 and self.microbatches == 1

    def run(self, compute: Sequence[Number], send: Sequence[Number]) -> "PipelineRun":
        """The schedule, for the seconds of each piece and of handing on what it makes."""
        steps = _program(self)
        by_task = {"piece": compute, "send": send}
        times = {
            task.name: by_task[task.name.split()[0]][int(task.name.split()[1])]
            for loop in steps.loops
            for task in loop.tasks
        }
        return PipelineRun(self, steps, schedule(steps, times), times)


@dataclass(frozen=True)
class PipelineRun:
    """A schedule of a pipeline."""

    pipeline: Pipeline
    program: Program
    schedule: Schedule
    times: Mapping[str, Number]

    @property
    def time(self) -> Number:
        """Seconds of a prefill; of a round in decode, when it runs evenly."""
        if not self.pipeline.decodes:
            return self.schedule.makespan
        (loop,) = self.schedule.loops
        if len(loop.runs) < loop.count:
            return loop.period
        half = len(loop.runs) // 2
        return (loop.runs[-1].base - loop.runs[half].base) / (len(loop.runs) - 1 - half)

    def starts(self, kind: str) -> list[list[Number]]:
        """For each piece, when it starts (*kind* ``piece``) or is handed on (``send``), for each
        microbatch; in decode those of the last round, from its beginning.
        """
        found: list[list[Number]] = [[] for _ in range(self.pipeline.pieces)]
        for loop, ran in zip(self.program.loops, self.schedule.loops, strict=True):
            rounds = [ran.count - 1] if self.pipeline.decodes else range(ran.count)
            for repetition in rounds:
                for index, task in enumerate(loop.tasks):
                    word, piece, *_ = task.name.split()
                    if word == kind:
                        found[int(piece)].append(ran.start(index, repetition))
        if not self.pipeline.decodes:
            return found
        first = reduce(smaller, (start for starts in found for start in starts))
        return [[start - first for start in starts] for starts in found]

    def exposed(self, inside: Sequence[Number]) -> Number:
        """Seconds in which a chip only communicates, on the stage that does so longest: those
        *inside* each piece, and those of handing on while the stage runs no piece.

        In decode those of one round, in which the rounds before and after it are alike.
        """
        begun, handed = self.starts("piece"), self.starts("send")
        most: Number = 0.0
        for stage in range(self.pipeline.stages):
            total: Number = 0.0
            own = range(stage, self.pipeline.pieces, self.pipeline.stages)
            shifts = (-self.time, 0.0, self.time) if self.pipeline.decodes else (0.0,)
            busy = [
                (start + shift, start + shift + self.times[f"piece {j} 0"])
                for j in own
                for start in begun[j]
                for shift in shifts
            ]
            for j in own:
                total = total + inside[j] * len(begun[j])
                for start in handed[j]:
                    end = start + self.times[f"send {j} 0"]
                    total = total + end - start
                    for begin, stop in busy:
                        total = total - common(start, end, begin, stop)
            most = larger(most, total)
        return most

    def slack(self) -> dict[tuple[str, int], Number]:
        """For each piece and its transfer, the least seconds that it could take longer."""
        backward = schedule(self.program.reverse, self.times)
        least: dict[tuple[str, int], Number] = {}
        loops = zip(self.program.loops, self.schedule.loops, reversed(backward.loops), strict=True)
        for loop, ahead, behind in loops:
            last = len(loop.tasks) - 1
            for index, task in enumerate(loop.tasks):
                word, piece, *_ = task.name.split()
                for i in [loop.count // 2] if self.pipeline.decodes else range(loop.count):
                    tail = behind.start(last - index, loop.count - 1 - i)
                    spare = self.schedule.makespan - (ahead.end(index, i) + tail)
                    key = (word, int(piece))
                    least[key] = smaller(least.get(key, spare), spare)
        return least


@lru_cache(maxsize=1024)
def _program(pipeline: Pipeline) -> Program:
    """Loops over groups of microbatches, or over rounds."""
    count, stages = pipeline.microbatches, pipeline.stages
    if pipeline.decodes:
        tasks = tuple(_tasks(pipeline, count))
        carried = tuple((f"token {m}", f"next {m}") for m in range(count))
        return Program((Loop(tasks, _ROUNDS * pipeline.pieces + 2 * count, carried),))
    if pipeline.pieces == stages:
        return Program((Loop(tuple(_tasks(pipeline, 1)), count),))
    full, rest = divmod(count, stages)
    loops = [Loop(tuple(_tasks(pipeline, stages)), full)] if full else []
    if rest:
        loops.append(Loop(tuple(_tasks(pipeline, rest)), 1))
    return Program(tuple(loops))


def _tasks(pipeline: Pipeline, microbatches: int) -> Iterator[Task]:
    """A group of *microbatches*, in the order in which each stage takes them.

    With interleaved pieces a stage does its first piece for all of the group before its second.
    """
    stages, last = pipeline.stages, pipeline.pieces - 1
    for first in range(0, pipeline.pieces, stages):
        for m in range(microbatches):
            for piece in range(first, first + stages):
                read = f"at {m} {piece}" if piece else f"token {m}"
                handed = f"next {m}" if piece == last else f"at {m} {piece + 1}"
                stage = piece % stages
                made = f"made {m} {piece}"
                yield Task(f"piece {piece} {m}", f"stage {stage}", (read,), (made,))
                yield Task(f"send {piece} {m}", f"link {stage}", (made,), (handed,))


Times = tuple[Sequence[Number], Sequence[Number]]
"""Seconds of each piece, and of handing on what it makes."""


def piece_times(
    pieces: Sequence[Piece], pipeline: Pipeline, sizes: Sizes, machine: Machine, model: CostModel
) -> Times:
    """What the *pieces* of a *pipeline* take by themselves."""
    times = {
        piece: timeline.step_time(piece.graph, sizes, machine, model)
        for piece in dict.fromkeys(pieces)
    }
    sends = _sends(pieces, pipeline, sizes, machine, model)
    handing = [sum(cost.time for _, cost in row) for row in sends]
    return [times[piece] for piece in pieces], handing


def step_time(pipeline: Pipeline, microbatches: Number, times: Times) -> Number:
    """Seconds of a prefill, or of a round of decode steps, one of each microbatch.

    Where *microbatches* is an array, *pipeline* is run for each number of them.
    """
    compute, handing = times
    if pipeline.pieces == 1 and np.array_equal(microbatches, 1):
        return compute[0]
    if not np.ndim(microbatches):
        return pipeline.run(compute, handing).time
    shape = np.broadcast_shapes(*(np.shape(part) for part in (microbatches, *compute, *handing)))
    answer = np.empty(shape)
    counts = np.broadcast_to(microbatches, shape)
    for count in np.unique(counts):
        here = counts == count
        parts = ([np.broadcast_to(t, shape)[here] for t in row] for row in (compute, handing))
        answer[here] = replace(pipeline, microbatches=int(count)).run(*parts).time
    return answer


def predict(
    name: str,
    pieces: Sequence[Piece],
    pipeline: Pipeline,
    sizes: Sizes,
    machine: Machine,
    model: CostModel,
) -> Timeline:
    """The timeline of a prefill, or of a round of decode steps, on the streams of all stages."""
    alone = {p: timeline.predict(name, p.graph, sizes, machine, model) for p in pieces}
    if pipeline.is_trivial:
        return alone[pieces[0]]
    sends = _sends(pieces, pipeline, sizes, machine, model)
    handing = [sum(cost.time for _, cost in row) for row in sends]
    run = pipeline.run([alone[piece].time for piece in pieces], handing)
    slack = run.slack()
    noise = NO_SLACK * run.time
    events: list[Event] = []
    for j, piece in enumerate(pieces):
        stage = f"stage {j % pipeline.stages}"
        begins, hands = (run.starts(kind)[j] for kind in ("piece", "send"))
        for event in alone[piece].events:
            spare = event.slack + larger(slack["piece", j], 0.0)
            events.append(_repeated(event, j, stage, begins, where(spare > noise, spare, 0.0)))
        done: Number = 0.0
        for send, cost in sends[j]:
            event = event_of(send, "send", cost, np.asarray([done]))
            spare = larger(slack["send", j], 0.0)
            handed = _repeated(event, j, stage, hands, where(spare > noise, spare, 0.0))
            events.append(replace(handed, stream=f"{stage} link"))
            done = done + cost.time
    exposed = run.exposed([alone[piece].exposed for piece in pieces])
    first = alone[pieces[0]]
    return replace(
        first, events=tuple(events), time=run.time, graph=joined(pieces), exposed=exposed
    )


def _repeated(event: Event, j: int, stage: str, begins: Sequence[Number], slack: Number) -> Event:
    """*event* of piece *j* in each microbatch."""
    starts = np.concatenate([event.starts + begin for begin in begins])
    return replace(
        event,
        name=f"{j}.{event.name}",
        block=f"{j}.{event.block}",
        stream=f"{stage} {event.stream}",
        starts=starts,
        slack=slack,
        count=event.count * len(begins),
        rounds=len(begins),
    )


def _sends(
    pieces: Sequence[Piece], pipeline: Pipeline, sizes: Sizes, machine: Machine, model: CostModel
) -> list[list[tuple[Send, Cost]]]:
    """What each piece hands on, and what that costs between its stage and the next one."""
    stages = pipeline.stages
    return [
        [(send, price(send, sizes, machine, model)) for send in _at_hop(piece, j % stages)]
        for j, piece in enumerate(pieces)
    ]


@lru_cache(maxsize=1024)
def _at_hop(piece: Piece, hop: int) -> tuple[Send, ...]:
    """What *piece* hands on, from the stage *hop* to the next one."""
    return tuple(replace(send, hop=hop) for send in piece.sends)
