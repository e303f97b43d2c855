"""PyTorch's profiler (Kineto): operators on the host, and the kernels that they launch."""

import bisect
import math
import re
import sys
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from frontends.traces.names import (
    COLLECTIVES,
    OTHER,
    kind_of,
    kind_of_kernel,
    plain,
    product_flop,
    shapes_in,
)
from frontends.traces.steps import Span, measured_event, time_of
from hardware import SpecError
from opgraph.timeline import Event, Timeline

MOST_EVENTS = 2_000_000  # kept in memory, at about a kilobyte each
_LARGEST_ID = 2**63
KERNELS = {"kernel": "compute", "gpu_memcpy": "copy", "gpu_memset": "copy"}
LAUNCHES = ("cuda_runtime", "cuda_driver")
_STEP = re.compile(r"ProfilerStep#\d+")
_NUMBER = re.compile(r"#\d+$")
_SHORT = 40  # characters of a kernel's name: templates go on for hundreds


@dataclass(slots=True)
class _Operator:
    """An operator that the program called; what it calls in turn is part of it."""

    span: Span
    flop: float
    number: int
    kernels: Sequence["_Kernel"] = ()


@dataclass(slots=True)
class _Kernel:
    span: Span
    stream: str
    external: Any
    correlation: Any


@dataclass
class Recording:
    """What is kept of a trace while it streams by."""

    where: str
    operators: dict[Any, list[_Operator]] = field(default_factory=lambda: defaultdict(list))
    notes: list[Span] = field(default_factory=list)
    kernels: list[_Kernel] = field(default_factory=list)
    launches: dict[Any, Span] = field(default_factory=dict)
    # of every operator its id, and which of those kept it is part of: two numbers each
    ids: "array[int]" = field(default_factory=lambda: array("q"))
    owners: "array[int]" = field(default_factory=lambda: array("q"))
    spans: list[Span] = field(default_factory=list)
    tracks: dict[Any, Any] = field(default_factory=dict)
    kept: int = 0

    def read(self, events: Iterable[Mapping[str, Any]]) -> "Recording":
        """Take in every event; SpecError for one that makes no sense, or for too many."""
        for event in events:
            if event.get("ph", "X") == "X":
                self._take(event)
                if self.kept > MOST_EVENTS:
                    raise SpecError(
                        f"{self.where}: over {MOST_EVENTS} operators and kernels; "
                        "profile fewer steps"
                    )
        return self

    def _take(self, event: Mapping[str, Any]) -> None:
        category = str(event.get("cat", "")).lower()
        if category in ("cpu_op", "operator"):
            self._operator(event)
        elif category == "user_annotation":
            self.notes.append(self._span(event))
            self.kept += 1
        elif category in KERNELS:
            args, span = _args(event), self._span(event)
            ids = (_external(args), args.get("correlation"))
            self.kernels.append(_Kernel(span, KERNELS[category], *map(_key, ids)))
            self.kept += 1
        elif category in LAUNCHES and _key(_args(event).get("correlation")) is not None:
            self.launches[_key(_args(event)["correlation"])] = self._span(event)
            self.kept += 1

    def _operator(self, event: Mapping[str, Any]) -> None:
        """Keep an operator unless the one before it on the thread contains it."""
        args, span = _args(event), self._span(event)
        mine = self.operators[span.track]
        last = mine[-1].span if mine else None
        if last is None or not last.start <= span.start <= span.end <= last.end:
            name, shapes = plain(span.name), shapes_in(args.get("Input Dims"))
            flop = product_flop(name, shapes) if kind_of(name) == "gemm" else 0.0
            mine.append(_Operator(span, flop, len(self.spans)))
            self.spans.append(span)
            self.kept += 1
        external = _external(args)
        if isinstance(external, int) and 0 <= external < _LARGEST_ID:
            self.ids.append(external)
            self.owners.append(mine[-1].number)

    def _span(self, event: Mapping[str, Any]) -> Span:
        start, end = time_of(event, self.where)
        track = (_key(event.get("pid")), _key(event.get("tid")))
        name = sys.intern(str(event.get("name", "unnamed")))
        return Span(start, end, self.tracks.setdefault(track, track), name)

    def called(self) -> dict[int, Span]:
        """The operators whose ids kernels carry."""
        wanted = {kernel.external for kernel in self.kernels}
        pairs = zip(self.ids, self.owners, strict=True)
        return {number: self.spans[owner] for number, owner in pairs if number in wanted}


def _args(event: Mapping[str, Any]) -> Mapping[str, Any]:
    args = event.get("args")
    return args if isinstance(args, dict) else {}


def _external(args: Mapping[str, Any]) -> Any:
    return args.get("External id", args.get("external id"))


def _key(value: Any) -> int | str | None:
    """What may name something; nothing else does."""
    return value if isinstance(value, int | str) else None


def steps(recording: Recording, source: Mapping[str, str]) -> list[Timeline]:
    """The steps of a trace: its profiler steps, else its outermost annotations, else all of it.

    Annotations count as steps where at least half of the operators' time is inside them.

    Raises
    ------
    SpecError : a trace without operators and kernels.
    """
    threads = {track: _outermost(ops) for track, ops in recording.operators.items()}
    loose = sorted(_tie(recording, threads), key=_start)
    every = sorted((op for ops in threads.values() for op in ops), key=_start)
    if not every and not loose:
        raise SpecError(f"{recording.where}: neither operators nor kernels are in it")
    notes = sorted(recording.notes, key=lambda note: (note.start, -note.end))
    blocks = _blocks(every, notes)
    found = []
    for window in _windows(notes, every, loose):
        inside, free = _within(every, window), _within(loose, window)
        if inside or free:
            found.append(_timeline(window, inside, free, blocks, source))
    return found


def _start(each: "_Operator | _Kernel") -> float:
    return each.span.start


_Any = TypeVar("_Any", "_Operator", "_Kernel")


def _within(sorted_: Sequence[_Any], window: Span) -> Sequence[_Any]:
    """Those that begin within a window."""
    first, last = (bisect.bisect_left(sorted_, at, key=_start) for at in (window.start, window.end))
    return sorted_[first:last]


def _outermost(operators: list[_Operator]) -> list[_Operator]:
    """The operators of a thread that lie in no other."""
    kept: list[_Operator] = []
    for operator in sorted(operators, key=lambda op: (op.span.start, -op.span.end)):
        if not kept or operator.span.start >= kept[-1].span.end:
            kept.append(operator)
    return kept


def _tie(recording: Recording, threads: Mapping[Any, list[_Operator]]) -> list[_Kernel]:
    """Give each kernel to the operator that launched it; those that nobody did.

    The launch with the kernel's correlation id happened on a thread while an operator ran there.
    Where launches were not recorded, the kernel's external id is the operator's; where they were,
    it may be another's.
    """
    loose, called = [], recording.called()
    for kernel in recording.kernels:
        cause = recording.launches.get(kernel.correlation) or called.get(kernel.external)
        owner = _running(threads.get(cause.track, []), cause.start) if cause else None
        if owner is None:
            loose.append(kernel)
        else:
            owner.kernels = (*owner.kernels, kernel)
    return loose


def _running(operators: Sequence[_Operator], moment: float) -> _Operator | None:
    index = bisect.bisect_right(operators, moment, key=lambda op: op.span.start) - 1
    return operators[index] if index >= 0 and moment <= operators[index].span.end else None


def _windows(
    notes: Sequence[Span], operators: Sequence[_Operator], loose: Sequence[_Kernel]
) -> list[Span]:
    steps = [note for note in notes if _STEP.fullmatch(note.name)] or notes
    apart = [note for note, last in _with_latest_end(steps) if note.start >= last]
    inside = sum(_time(op) for note in apart for op in _within(operators, note))
    if apart and 2 * inside >= sum(map(_time, operators)):
        return [replace(note, name=_NUMBER.sub("", note.name)) for note in apart]
    spans = [operator.span for operator in operators] + [kernel.span for kernel in loose]
    start, end = min(span.start for span in spans), max(span.end for span in spans)
    return [Span(start, math.nextafter(end, math.inf), None, "trace")]


def _with_latest_end(notes: Iterable[Span]) -> Iterator[tuple[Span, float]]:
    """Each annotation with the end of the latest before it."""
    latest = -math.inf
    for note in notes:
        yield note, latest
        latest = max(latest, note.end)


def _time(operator: _Operator) -> float:
    return operator.span.end - operator.span.start


def _blocks(operators: Iterable[_Operator], notes: Sequence[Span]) -> dict[int, str]:
    """By the operator's identity: the innermost annotation of its thread that it runs in.

    An annotation that holds others of its own name, as a step holds none, is no block; nor is
    one that lies in no other: that is a step.
    """
    by_track: dict[Any, list[Span]] = defaultdict(list)
    for note in notes:
        by_track[note.track].append(note)
    found: dict[int, str] = {}
    open_: dict[Any, list[Span]] = defaultdict(list)
    taken: dict[Any, int] = defaultdict(int)
    for operator in operators:
        track, moment = operator.span.track, operator.span.start
        mine, stack = by_track[track], open_[track]
        while taken[track] < len(mine) and mine[taken[track]].start <= moment:
            stack.append(mine[taken[track]])
            taken[track] += 1
        while stack and stack[-1].end <= moment:
            stack.pop()
        inner = [note for note in stack if note.end > moment]
        found[id(operator)] = inner[-1].name if len(inner) > 1 else ""
    return found


def _timeline(
    window: Span, operators: Sequence[_Operator], loose: Sequence[_Kernel],
    blocks: Mapping[int, str], source: Mapping[str, str],
) -> Timeline:  # fmt: skip
    """One step: its kernels if there are any, else its operators."""
    kernels = [kernel for operator in operators for kernel in operator.kernels] + list(loose)
    if not kernels:
        events = [_host_event(op, window.start, blocks[id(op)]) for op in operators]
        return Timeline(window.name, tuple(events), window.end - window.start, source=source)
    origin = min(kernel.span.start for kernel in kernels)
    end = max(kernel.span.end for kernel in kernels)
    streams = _streams(kernels)
    timed = [
        (kernel.span.start, _kernel_event(kernel, operator, origin, streams, blocks[id(operator)]))
        for operator in operators
        for kernel in operator.kernels
    ]
    timed += [(k.span.start, _kernel_event(k, None, origin, streams, "")) for k in loose]
    events = [event for _, event in sorted(timed, key=lambda pair: pair[0])]
    return Timeline(window.name, tuple(events), end - origin, source=source)


def _host_event(operator: _Operator, origin: float, block: str) -> Event:
    name = plain(operator.span.name)
    return measured_event(
        name, kind_of(name), operator.span, origin, flop=operator.flop, block=block
    )


def _kernel_event(
    kernel: _Kernel, operator: _Operator | None, origin: float, streams: Mapping[Any, str],
    block: str,
) -> Event:  # fmt: skip
    """A kernel, with the kind of its operator; the operator's FLOP are with its longest kernel."""
    own = _short(kernel.span.name)
    kind, name, flop = kind_of_kernel(kernel.span.name), own, 0.0
    if operator is not None:
        called = plain(operator.span.name)
        known = kind_of(called)
        kind, name = kind if known in (OTHER, "view") else known, f"{called}: {own}"
        longest = max(operator.kernels, key=lambda k: k.span.end - k.span.start)
        flop = operator.flop if kernel is longest else 0.0
    stream = kernel.stream if kernel.stream == "copy" else streams[kernel.span.track]
    if kind in COLLECTIVES:
        stream = "communication"
    return measured_event(name, kind, kernel.span, origin, flop=flop, block=block, stream=stream)


def _streams(kernels: Sequence[_Kernel]) -> dict[Any, str]:
    """Track of the GPU → stream: the busiest computes, others are named after their number."""
    busy: dict[Any, float] = defaultdict(float)
    for kernel in kernels:
        busy[kernel.span.track] += kernel.span.end - kernel.span.start
    main = max(busy, key=lambda track: busy[track])
    return {track: "compute" if track == main else f"stream {track[1]}" for track in busy}


def _short(name: str) -> str:
    """A kernel's name without its return type, templates and arguments."""
    bare = re.sub(r"^void\s+", "", name)
    return (re.split(r"[<(]", bare)[0].strip() or bare)[:_SHORT]
