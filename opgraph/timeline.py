"""Timelines: what ran when, for how long, limited by what; predicted or measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardware import Number, SpecError, format_range
from hardware.arithmetic import smaller, where
from opgraph.concurrency import contended, exposed
from opgraph.cost import LIMITERS, Cost, CostModel, Machine, price
from opgraph.graph import Graph
from opgraph.operator import Operator, Work
from opgraph.schedule import LoopRun, Schedule, program, schedule
from opgraph.sizes import Sizes

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd
    from matplotlib.axes import Axes

    from hardware import Chip

# slack below this share of the step is rounding
NO_SLACK = 1e-9


@dataclass(frozen=True)
class Event:
    """One operator in a timeline, with all its repetitions.

    Attributes
    ----------
    name, kind, block, stream : which operator, where it runs.
    time : seconds of one execution.
    starts : seconds from the beginning of the step at which each repetition starts, along the
        first axis; where *time* is an array, that of the first repetition alone.
    limiter : what limits it (a name of `cost.LIMITERS`, or indices where sizes are arrays).
    slack : seconds that it could take longer without the step taking longer.
    work : flop and bytes of one execution on one chip.
    algorithm, group_size : of a collective.
    low, high : seconds between which 80 % of measurements lie; None: as *time*.
    provenance : what the time rests on: ``ideal``, ``measured``, ``transferred``.
    rounds : microbatches among the repetitions, in a pipeline.
    """

    name: str
    kind: str
    time: Number
    starts: NDArray[np.float64]
    block: str = ""
    stream: str = "compute"
    limiter: Any = ""
    slack: Number = 0.0
    work: Work = field(default_factory=Work)
    algorithm: str = ""
    group_size: Number = 1
    low: Number | None = None
    high: Number | None = None
    provenance: str = "ideal"
    count: int = 1
    rounds: int = 1

    @property
    def is_critical(self) -> bool:
        """Whether the step would take longer if this did."""
        return not np.any(self.slack)


@dataclass(frozen=True, eq=False)
class Timeline:
    """The events of one step in program order; repeated layers stand once, with their count.

    Attributes
    ----------
    name : the phase, or what was measured.
    events : operators in program order, without those that cost nothing.
    time : seconds of the step.
    graph, chip : the sharded graph and the chip that it was predicted from, if it was.
    exposed : seconds in which communication runs and its chip computes nothing; of a pipeline,
        those of the stage that has most of them. Found from the events if not given.
    """

    name: str
    events: tuple[Event, ...]
    time: Number
    graph: Graph | None = None
    source: Mapping[str, str] = field(default_factory=dict)
    chip: "Chip | None" = None
    exposed: Number = np.nan

    def __post_init__(self) -> None:
        if not np.ndim(self.exposed) and np.isnan(self.exposed):
            object.__setattr__(self, "exposed", _exposed(self.events))

    def __str__(self) -> str:
        made = ", ".join(self.source.values())
        return f"{self.name}: {format_range(self.time, 's')}, {len(self.events)} operators" + (
            f" ({made})" if made else ""
        )

    @cached_property
    def nx(self) -> "nx.DiGraph[str]":
        """The operator graph with ``time_us limiter slack_us flop … count`` at each node."""
        if self.graph is None:
            raise SpecError(f"the timeline {self.name!r} was measured: it has no graph")
        graph = self.graph.nx.copy()
        for event in self.events:
            graph.nodes[event.name].update(_row(event, self.time))
        return graph

    @property
    def limiter_shares(self) -> dict[str, Number]:
        """Limiter → its share of all operators' time; the shares sum to 1."""
        total = sum(event.time * event.count for event in self.events)
        shares: dict[str, Number] = {}
        for index, name in enumerate(LIMITERS):
            spent = sum(
                event.time * event.count * _equals(event.limiter, index, name)
                for event in self.events
            )
            if np.any(spent):
                shares[name] = spent / total
        return shares

    @property
    def provenance_shares(self) -> dict[str, Number]:
        """Provenance → its share of all operators' time; the shares sum to 1."""
        total = sum(event.time * event.count for event in self.events)
        shares: dict[str, Number] = {}
        for event in self.events:
            share = event.time * event.count / total
            shares[event.provenance] = shares.get(event.provenance, 0.0) + share
        return shares

    @property
    def busy(self) -> dict[str, Number]:
        """Stream → seconds in which it runs something."""
        totals: dict[str, Number] = {}
        for event in self.events:
            totals[event.stream] = totals.get(event.stream, 0.0) + event.time * event.count
        return totals

    @property
    def communicates(self) -> bool:
        """Whether any operator sends anything, on whatever stage."""
        return any(np.any(event.time) for event in self.events if _sends(event))

    @property
    def interval(self) -> tuple[Number, Number]:
        """Seconds between which 80 % of such steps lie.

        Errors of operators of one kind go together, those of different kinds do not.
        """
        low, high = (
            sum(spread**2 for spread in self._spreads(side).values()) ** 0.5
            for side in ("low", "high")
        )
        return self.time - low, self.time + high

    def _spreads(self, side: str) -> dict[str, Number]:
        """Kind of operator → how far its times may be off to one side, in all, in seconds."""
        spreads: dict[str, Number] = {}
        for event in self.events:
            bound = getattr(event, side)
            if bound is not None:
                off = abs(bound - event.time) * event.count
                spreads[event.kind] = spreads.get(event.kind, 0.0) + off
        return spreads

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per operator: the keys of ``--json`` and the columns of `to_frame`."""
        self.need_one_point("rows")
        return [_row(event, self.time) for event in self.events]

    def to_frame(self) -> "pd.DataFrame":
        """The operators in program order; times of one execution in µs, *share* of all of them."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def critical_path(self) -> "pd.DataFrame":
        """The operators without slack, in program order; shortening the step takes one of these.

        Columns: ``operator time_us count limiter share slack_us``.
        """
        frame = self.to_frame().rename(columns={"name": "operator"})
        critical = frame[frame["slack_us"] == 0]
        columns = ["operator", "time_us", "count", "limiter", "share", "slack_us"]
        return critical[columns].reset_index(drop=True)

    def unroll(self) -> "Timeline":
        """The same timeline with every repetition as an event of its own, by start."""
        self.need_one_point("unroll")
        events = [
            replace(
                event,
                name=f"{index}.{event.name}" if event.count > 1 else event.name,
                starts=event.starts[index : index + 1],
                count=1,
            )
            for event in self.events
            for index in range(event.count)
        ]
        return replace(self, events=tuple(sorted(events, key=lambda event: float(event.starts[0]))))

    def plot(self, ax: "Axes | None" = None, *, unrolled: bool = False) -> "Axes":
        """Draw the operators on their streams, or the stages of a pipeline unless *unrolled*; see
        `plots.timeline` and `plots.lanes`.
        """
        from opgraph import plots

        if not unrolled and any(event.stream.startswith("stage ") for event in self.events):
            return plots.lanes(self, ax)
        return plots.timeline(self, ax, unrolled=unrolled)

    def plot_roofline(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the operators under the chip's roofline; see `plots.roofline`."""
        from opgraph import plots

        return plots.roofline(self, ax)

    def save_trace(self, path: str | Path) -> None:
        """Write a Chrome trace (JSON, gzipped if the name ends in .gz); see `trace.save`."""
        from opgraph import trace

        trace.save(path, [self])

    def need_one_point(self, what: str) -> None:
        """Refuse *what* for a timeline of many design points.

        Raises
        ------
        SpecError : it holds more than one.
        """
        if np.ndim(self.time):
            raise SpecError(
                f"{what}: this timeline holds {np.size(self.time)} design points; "
                "pick one with report.at(index)"
            )


def _sends(event: Event) -> bool:
    return event.stream.endswith(("communication", "link"))


def _exposed(events: Sequence[Event]) -> float:
    """Seconds in which one chip's *events* communicate and no other is under way but a copy."""
    sent = [event for event in events if _sends(event)]
    computed = [event for event in events if event.stream != "copy" and not _sends(event)]
    return _covered([*sent, *computed]) - _covered(computed) if sent else 0.0


def _covered(events: Sequence[Event]) -> float:
    """Seconds in which at least one of *events* runs, of a single design point."""
    if not events:
        return 0.0
    starts = np.concatenate([event.starts for event in events])
    ends = np.concatenate([event.starts + event.time for event in events])
    order = np.argsort(starts)
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    idle = np.maximum(starts[1:] - ends[:-1], 0.0).sum()
    return float(ends[-1] - starts[0] - idle)


def predict(name: str, graph: Graph, sizes: Sizes, machine: Machine, model: CostModel) -> Timeline:
    """The timeline of one step of the sharded *graph*, priced by *model*."""
    costs = {op.name: price(op, sizes, machine, model) for op, _ in graph.operators}
    steps = program(graph)
    forward, times = contended(steps, costs)
    slack = _slack(graph, forward, schedule(steps.reverse, times))
    taking = {name: _taking(cost, times[name]) for name, cost in costs.items()}
    events = tuple(
        _event(operator.name, graph, taking[operator.name], loop, index, slack[operator.name])
        for loop, block in zip(forward.loops, graph.blocks, strict=True)
        for index, operator in enumerate(block.operators)
        if not operator.is_view and (not operator.given or np.any(sizes[operator.given]))
    )
    chip = machine.platform.chip
    source = {"chip": chip.name, "cost": model.name}
    host = machine.host.per_step
    after = tuple(replace(event, starts=event.starts + host) for event in events)
    alone = exposed(steps, forward)
    return Timeline(name, after, forward.makespan + host, graph, source, chip, alone)


def step_time(graph: Graph, sizes: Sizes, machine: Machine, model: CostModel) -> Number:
    """Seconds of one step of the sharded *graph*: the makespan alone."""
    costs = {op.name: price(op, sizes, machine, model) for op, _ in graph.operators}
    return contended(program(graph), costs)[0].makespan + machine.host.per_step


def _taking(cost: Cost, time: Number) -> Cost:
    """The cost of an operator that takes *time*, as something runs beside it."""
    if time is cost.time:
        return cost
    longer = time - cost.time
    low, high = (None if side is None else side + longer for side in (cost.low, cost.high))
    return replace(cost, time=time, low=low, high=high)


def _event(name: str, graph: Graph, cost: Cost, loop: LoopRun, index: int, slack: Number) -> Event:
    node = graph.nx.nodes[name]
    repetitions = 1 if np.ndim(cost.time) else loop.count
    starts = np.stack([np.asarray(loop.start(index, i), float) for i in range(repetitions)])
    found = event_of(node["operator"], node["block"], cost, starts)
    return replace(found, slack=slack, count=loop.count)


def event_of(operator: Operator, block: str, cost: Cost, starts: NDArray[np.float64]) -> Event:
    """*operator* as an event, at what it costs."""
    limiter = cost.limiter if np.ndim(cost.limiter) else LIMITERS[int(cost.limiter)]
    return Event(
        name=operator.name,
        kind=operator.kind,
        time=cost.time,
        starts=starts,
        block=block,
        stream=operator.stream,
        limiter=limiter,
        work=cost.work,
        algorithm=cost.algorithm,
        group_size=cost.group_size,
        low=cost.low,
        high=cost.high,
        provenance=cost.provenance,
    )


def _slack(graph: Graph, forward: Schedule, backward: Schedule) -> dict[str, Number]:
    """Makespan less the longest path through each operator, least over its repetitions.

    Both the ends and the tails are straight lines in the repetition but for the first and last
    few, so the least is found there.
    """
    slack: dict[str, Number] = {}
    for block, ahead, behind in zip(
        graph.blocks, forward.loops, reversed(backward.loops), strict=True
    ):
        first = range(min(len(ahead.runs) + 1, block.count))
        final = range(max(0, block.count - len(behind.runs) - 1), block.count)
        last = len(block.operators) - 1
        for index, operator in enumerate(block.operators):
            for i in {*first, *final}:
                tail = behind.start(last - index, block.count - 1 - i)
                spare = forward.makespan - (ahead.end(index, i) + tail)
                slack[operator.name] = smaller(slack.get(operator.name, spare), spare)
    noise = NO_SLACK * forward.makespan
    return {name: where(spare > noise, spare, 0.0) for name, spare in slack.items()}


def _equals(limiter: Any, index: int, name: str) -> Any:
    return limiter == (index if np.ndim(limiter) else name)


def _row(event: Event, step: Number) -> dict[str, Any]:
    micro = 1e6
    return {
        "name": event.name,
        "kind": event.kind,
        "block": event.block,
        "count": event.count,
        "start_us": float(event.starts[0]) * micro,
        "time_us": float(event.time) * micro,
        "share": float(event.time * event.count / step),
        "limiter": event.limiter,
        "slack_us": float(event.slack) * micro,
        "stream": event.stream,
        "flop": float(event.work.flop),
        "bytes_read": float(event.work.read),
        "bytes_written": float(event.work.written),
        "bytes_sent": float(event.work.sent),
        "algorithm": event.algorithm,
        "low_us": float(event.time if event.low is None else event.low) * micro,
        "high_us": float(event.time if event.high is None else event.high) * micro,
        "provenance": event.provenance,
    }
