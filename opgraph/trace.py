"""Traces: timelines as Kineto-style Chrome JSON, for Perfetto, speedscope and HTA.

Times are whole nanoseconds. Readers need slices on a track to nest, and slices that touch
overlap once written in µs as IEEE doubles; so a slice that the next one follows at once is
written 1 ns short, with its own length in ``args.dur_ns``.
"""

import gzip
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from hardware import SpecError
from hardware.errors import shown
from opgraph.operator import Collective
from opgraph.timeline import Event, Timeline

SCHEMA_VERSION = 1  # of Kineto's traces (pytorch/kineto, output_json.cpp)
ENDINGS = (".json", ".json.gz")
STREAMS = ("compute", "communication", "copy")
STEP_TRACK = 0  # the streams' tracks follow

_NANO, _MICRO = 1e9, 1e6
_NS_PER_US = 1000
# µs up to here are apart by less than a quarter of a nanosecond as IEEE doubles: 12 days
_LONGEST_NS = 2**40 * _NS_PER_US

# what `check` reads at most, unpacked, and how many times its packed size; traces reach 60
LARGEST_TRACE = 512 * 2**20
LARGEST_RATIO = 200
_CHUNK = 2**20
_TRACK = ("name", "pid", "tid")


@dataclass
class _Slice:
    """One bar on a track, in whole nanoseconds."""

    name: str
    category: str
    process: int
    track: int
    start: int
    duration: int
    args: dict[str, Any]


def save(path: str | Path, timelines: Sequence[Timeline], *, beside: bool = False) -> None:
    """Write *timelines* as one Chrome trace: one after another on one chip, or *beside* each other.

    Every repetition of a layer is a slice of its own; operators that take no time are left out.
    Those beside each other start together, the first on top: each is a process named after its
    ``source["made"]``, its chip if it has none. The same timelines give the same bytes. *path* is
    replaced only once all is written.

    Raises
    ------
    SpecError : a name that ends in neither ``.json`` nor ``.json.gz``, a folder that is missing
        or cannot be written to, a timeline of many design points, a step of more than 12 days.
    """
    path = Path(path)
    if not path.name.endswith(ENDINGS) or path.name in ENDINGS:
        raise SpecError(f"cannot write {shown(str(path))}: a trace ends in {' or '.join(ENDINGS)}")
    if not timelines:
        raise SpecError(f"cannot write {shown(str(path))}: no timeline given")
    text = _document(timelines, beside=beside).encode()
    # no file name and no clock in the header: the same bytes for the same timelines
    _replace(path, gzip.compress(text, mtime=0) if path.name.endswith(".gz") else text)


def _replace(path: Path, content: bytes) -> None:
    """Write to a temporary name in the same folder, then move into place."""
    temporary = path.with_name(f".{path.name[:64]}.{os.getpid()}.tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise SpecError(f"cannot write {shown(str(path))}: {reason}") from None


def _document(timelines: Sequence[Timeline], *, beside: bool) -> str:
    slices = list(_slices(timelines, beside=beside))
    head = {
        "schemaVersion": SCHEMA_VERSION,
        "displayTimeUnit": "ms",
        "traceName": ", ".join(timeline.name for timeline in timelines),
        "deviceProperties": [_device(timelines[0])],
        "distributedInfo": {"backend": "simulated", "rank": 0},
        "opgraph": {
            "version": _version(),
            "simulated": all(timeline.graph is not None for timeline in timelines),
            **timelines[0].source,
        },
    }
    names = [timeline.source.get("made", f"chip {i}") for i, timeline in enumerate(timelines)]
    events = (*_metadata(slices, names if beside else names[:1]), *_written(slices))
    lines = [json.dumps(event) for event in events]
    return json.dumps(head)[:-1] + ', "traceEvents": [\n' + ",\n".join(lines) + "\n]}\n"


def _device(timeline: Timeline) -> dict[str, Any]:
    chip = timeline.chip
    if chip is None:
        return {"id": 0, "name": timeline.source.get("chip", "unknown")}
    known = {"totalGlobalMem": chip.memory_capacity, "numSms": chip.cores}
    numbers = {key: int(value) for key, value in known.items() if value is not None}
    return {"id": 0, "name": chip.name, **numbers}


def _version() -> str:
    try:
        return version("opgraph")
    except PackageNotFoundError:
        return "not installed"


def _slices(timelines: Sequence[Timeline], *, beside: bool) -> Iterator[_Slice]:
    """All slices by start; each step after its annotation, and after the step before it."""
    origin = correlation = 0
    for step, timeline in enumerate(timelines):
        process = step if beside else 0
        slices = _step_slices(timeline, process, origin, correlation)
        ends = (piece.start + piece.duration for piece in slices)
        end = max(ends, default=origin)
        end = max(end, origin + round(float(timeline.time) * _NANO), origin + 1)
        if end > _LONGEST_NS:
            raise SpecError(f"save: {end / _NANO:g} s do not fit a trace of nanoseconds")
        args = {"phase": timeline.name, "step": step, "time_us": float(timeline.time) * _MICRO}
        span = (STEP_TRACK, origin, end - origin)
        yield _Slice(timeline.name, "user_annotation", process, *span, args)
        yield from slices
        origin, correlation = 0 if beside else end, correlation + len(slices)


def _step_slices(timeline: Timeline, process: int, origin: int, correlation: int) -> list[_Slice]:
    _check_writable(timeline)
    tracks = _tracks(timeline)
    runs = sorted(
        (float(start), index, layer)
        for index, event in enumerate(timeline.events)
        for layer, start in enumerate(event.starts)
        if event.time > 0
    )
    free = dict.fromkeys(tracks.values(), origin)
    args = [_args(event, timeline) for event in timeline.events]
    slices = []
    for number, (start, index, layer) in enumerate(runs, correlation):
        event = timeline.events[index]
        track = tracks[event.stream]
        begin = max(origin + round(start * _NANO), free[track])
        # what rounds to nothing still takes its place: one nanosecond
        free[track] = max(origin + round((start + float(event.time)) * _NANO), begin + 1)
        own = {"correlation": number, "External id": number, "stream": track, "layer": layer}
        category = "gpu_memcpy" if event.stream == "copy" else "kernel"
        span = (track, begin, free[track] - begin)
        slices.append(_Slice(event.name, category, process, *span, own | args[index]))
    return slices


def _check_writable(timeline: Timeline) -> None:
    if np.ndim(timeline.time):
        raise SpecError(
            f"save: the timeline {timeline.name!r} holds {np.size(timeline.time)} design points; "
            "pick one with report.at(index)"
        )
    if not 0 <= timeline.time * _NANO < _LONGEST_NS:
        raise SpecError(f"save: a step of {timeline.time:g} s does not fit a trace of nanoseconds")


def _tracks(timeline: Timeline) -> dict[str, int]:
    """Stream → track; a stream that is not one of ours comes after them, by name."""
    others = sorted({event.stream for event in timeline.events} - {*STREAMS})
    return {stream: track for track, stream in enumerate((*STREAMS, *others), STEP_TRACK + 1)}


def _args(event: Event, timeline: Timeline) -> dict[str, Any]:
    return {
        "device": 0,
        "phase": timeline.name,
        "kind": event.kind,
        "block": event.block,
        "limiter": event.limiter,
        "critical": event.is_critical,
        "slack_us": float(event.slack) * _MICRO,
        "flop": float(event.work.flop),
        "bytes_read": float(event.work.read),
        "bytes_written": float(event.work.written),
        **_collective(event, timeline),
    }


def _collective(event: Event, timeline: Timeline) -> dict[str, Any]:
    """What HTA reads of a collective, as far as the timeline knows it.

    The bytes sent are those of the whole buffer: of an all-gather what comes out, of the others
    what goes in.
    """
    if timeline.graph is None or event.name not in timeline.graph.nx:
        return {}
    operator = timeline.graph.nx.nodes[event.name]["operator"]
    if not isinstance(operator, Collective):
        return {}
    number_format = operator.inputs[0].format
    whole, group = round(float(event.work.sent) / number_format.nbytes), int(event.group_size)
    part = whole // group
    sides = {"all_gather": (part, whole), "reduce_scatter": (whole, part)}
    before, after = sides.get(operator.collective, (whole, whole))
    return {
        "Collective name": operator.collective,
        "dtype": str(number_format),
        "In msg nelems": before,
        "Out msg nelems": after,
        "Group size": group,
        "Process Group Name": " ".join(operator.axes),
        "bytes_sent": float(event.work.sent),
        "algorithm": event.algorithm,
    }


def _metadata(slices: Sequence[_Slice], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for process, process_name in enumerate(names):
        streams = {piece.track for piece in slices if piece.process == process}
        yield _named("process_name", process, STEP_TRACK, name=process_name)
        yield _named("process_labels", process, STEP_TRACK, labels=f"GPU {process}")
        yield _named("process_sort_index", process, STEP_TRACK, sort_index=process)
        for track in sorted(streams):
            index = track - STEP_TRACK - 1
            known = f" {STREAMS[index]}" if 0 <= index < len(STREAMS) else ""
            name = f"stream {track}{known}" if track != STEP_TRACK else "steps"
            yield _named("thread_name", process, track, name=name)
            yield _named("thread_sort_index", process, track, sort_index=track)


def _named(kind: str, process: int, track: int, **args: str | int) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": track, "args": args}


def _written(slices: Sequence[_Slice]) -> Iterator[dict[str, Any]]:
    """The slices as events, each 1 ns short where the next on its track starts at its end."""
    starts = {(piece.process, piece.track, piece.start) for piece in slices}
    for piece in slices:
        touches = (piece.process, piece.track, piece.start + piece.duration) in starts
        yield {
            "ph": "X",
            "cat": piece.category,
            "name": piece.name,
            "pid": piece.process,
            "tid": piece.track,
            "ts": piece.start / _NS_PER_US,
            "dur": (piece.duration - touches) / _NS_PER_US,
            "args": {**piece.args, "dur_ns": piece.duration},
        }


def check(path: str | Path) -> int:
    """The number of slices in the Chrome trace at *path*, ours or another's, if it is sound.

    Sound: every slice has a finite ``ts`` and ``dur`` of 0 or more, its process and its track
    are named, and slices on a track nest or are disjoint, as a reader sees them: IEEE doubles.

    Raises
    ------
    SpecError : it cannot be read, is too large, or is not sound; the message names the slices.
    """
    where = f"trace {shown(str(path))}"
    document = _parsed(_unpacked(Path(path), where), where)
    events = document.get("traceEvents") if isinstance(document, dict) else document
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise SpecError(f"{where}: 'traceEvents' is not a list of events")
    named = {
        tuple(event.get(key, 0) for key in _TRACK)
        for event in events
        if event.get("ph") == "M"
        and all(isinstance(event.get(key, 0), int | str) for key in _TRACK)
    }
    processes = {pid for kind, pid, _ in named if kind == "process_name"}
    tracks: dict[tuple[Any, Any], list[tuple[float, float, str]]] = {}
    for number, event in enumerate(events):
        if event.get("ph") == "X":
            key, piece = _slice_of(event, f"{where}: event {number}")
            tracks.setdefault(key, []).append(piece)
    for (pid, tid), slices in tracks.items():
        if pid not in processes or ("thread_name", pid, tid) not in named:
            raise SpecError(f"{where}: process {shown(pid)} or its track {shown(tid)} has no name")
        _check_nesting(slices, f"{where}: on track {shown(tid)} of process {shown(pid)}")
    return sum(map(len, tracks.values()))


def _slice_of(
    event: Mapping[str, Any], where: str
) -> tuple[tuple[Any, Any], tuple[float, float, str]]:
    name, key = shown(event.get("name")), (event.get("pid"), event.get("tid"))
    if not all(isinstance(part, int | str) for part in key):
        raise SpecError(f"{where}, {name}, has no 'pid' and 'tid'")
    for field in ("ts", "dur"):
        value: Any = event.get(field)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and 0 <= value <= sys.float_info.max):
            raise SpecError(f"{where}, {name}, has {field}={shown(value)}: no number of 0 or more")
    return key, (float(event["ts"]), float(event["dur"]), name)


def _check_nesting(slices: list[tuple[float, float, str]], where: str) -> None:
    """Each slice lies within the innermost one that is still open, or after it."""
    still_open: list[tuple[float, str]] = []
    for start, duration, name in sorted(slices, key=lambda piece: (piece[0], -piece[1])):
        while still_open and still_open[-1][0] <= start:
            still_open.pop()
        end = start + duration
        if still_open and end > still_open[-1][0]:
            outer_end, outer = still_open[-1]
            raise SpecError(
                f"{where} {outer}, to {outer_end!r} µs, and {name}, {start!r} to {end!r} µs, "
                "overlap but do not nest"
            )
        still_open.append((end, name))


def _unpacked(path: Path, where: str) -> bytes:
    """The bytes at *path*, unpacked if they are gzipped; no more than `LARGEST_TRACE`."""
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == b"\x1f\x8b"
        packed = path.stat().st_size
        # anything unpacks to a few chunks: a ratio says nothing of a small file
        most = LARGEST_TRACE
        if is_packed:
            most = min(most, max(LARGEST_RATIO * packed, _CHUNK))
        opened: Callable[..., Any] = gzip.open if is_packed else open
        with opened(path, "rb") as file:
            content: bytes = file.read(most + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise SpecError(f"{where}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > most:
        raise SpecError(f"{where}: more than {most} bytes unpacked, too large to read")
    return content


def _parsed(content: bytes, where: str) -> Any:
    try:
        return json.loads(content)
    except RecursionError:
        raise SpecError(f"{where}: nested too deeply") from None
    except ValueError as error:  # not JSON, not UTF-8, or a number of too many digits
        raise SpecError(f"{where}: not JSON: {error}") from None
