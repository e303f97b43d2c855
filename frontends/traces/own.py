"""Our own exports, read back: what `opgraph.trace` writes of a timeline."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from frontends.traces.steps import time_of
from hardware import SpecError
from hardware.errors import shown
from opgraph.operator import Work
from opgraph.timeline import Event, Timeline
from opgraph.trace import STREAMS

MOST_SLICES = 2_000_000  # kept in memory
_NANO = 1e-9
_STEP = "user_annotation"
_NUMBERS = ("flop", "bytes_read", "bytes_written", "bytes_sent", "slack_us")


def steps(
    events: Iterable[Mapping[str, Any]], source: Mapping[str, str], where: str
) -> list[Timeline]:
    """The steps of an export; repetitions of a layer are one event with its count again.

    Times are those of the timeline that was written, to the nanosecond.

    Raises
    ------
    SpecError : an event that makes no sense, or no step.
    """
    windows: list[tuple[float, float, str]] = []
    operators: list[dict[str, list[tuple[float, Mapping[str, Any]]]]] = []
    count = 0
    for event in (each for each in events if each.get("ph") == "X"):
        start, _ = time_of(event, where)
        args = _checked(event, where)
        if event.get("cat") == _STEP:
            windows.append((start, args["dur_ns"] * _NANO, str(event.get("name"))))
            operators.append({})
        elif not windows:
            raise SpecError(f"{where}: {shown(event.get('name'))} stands before the first step")
        else:
            operators[-1].setdefault(str(event.get("name")), []).append((start, args))
            count += 1
            if count > MOST_SLICES:
                raise SpecError(f"{where}: over {MOST_SLICES} slices")
    if not windows:
        raise SpecError(f"{where}: no step in it")
    return [_timeline(*step, source) for step in zip(windows, operators, strict=True)]


def _checked(event: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """What an export says of a slice, if it is a slice of an export."""
    args = event.get("args")
    numbers = ("dur_ns", *_NUMBERS) if event.get("cat") != _STEP else ("dur_ns",)
    for name in numbers:
        value = args.get(name, 0 if name != "dur_ns" else None) if isinstance(args, dict) else None
        if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
            told = f"{shown(event.get('name'))}: args.{name} is {shown(value)}"
            raise SpecError(f"{where}: {told}, no number of 0 or more")
    found: Mapping[str, Any] = args  # type: ignore[assignment]
    return found


def _timeline(
    window: tuple[float, float, str],
    operators: Mapping[str, list[tuple[float, Mapping[str, Any]]]],
    source: Mapping[str, str],
) -> Timeline:
    begin, time, name = window
    events = [_event(name, runs, begin) for name, runs in operators.items()]
    return Timeline(name, tuple(events), time, source=source)


def _event(name: str, runs: list[tuple[float, Mapping[str, Any]]], begin: float) -> Event:
    args = runs[0][1]
    track = args.get("stream")
    known = isinstance(track, int) and 1 <= track <= len(STREAMS)
    work = Work(*(float(args.get(key, 0.0)) for key in _NUMBERS[:4]))
    return Event(
        name=name,
        kind=str(args.get("kind", "")),
        time=args["dur_ns"] * _NANO,
        starts=np.array([start - begin for start, _ in runs]),
        block=str(args.get("block", "")),
        stream=STREAMS[track - 1] if known and track else f"stream {track}",
        limiter=str(args.get("limiter", "")),
        slack=float(args.get("slack_us", 0.0)) * 1e-6,
        work=work,
        algorithm=str(args.get("algorithm", "")),
        group_size=args.get("Group size", 1),
        count=len(runs),
    )
