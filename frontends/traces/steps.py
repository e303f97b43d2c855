"""Steps of a trace: which operators belong to which, and the median of those that are alike."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hardware import SpecError
from hardware.errors import nearest, shown
from opgraph.operator import Work
from opgraph.timeline import Event, Timeline

MICRO = 1e-6
MEASURED = "measured"


@dataclass(frozen=True, slots=True)
class Span:
    """Something that ran: seconds since the trace's own beginning, and on which track."""

    start: float
    end: float
    track: Any
    name: str


def time_of(event: Mapping[str, Any], where: str) -> tuple[float, float]:
    """Start and end of an event, in seconds of the trace's clock.

    Raises
    ------
    SpecError : it has none, or what is no number of 0 or more.
    """
    times = []
    for key in ("ts", "dur"):
        value = event.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # what is no number, NaN among them, is not within these either
        if not is_number or not 0 <= (value or 0) < _LONGEST:
            raise SpecError(f"{where}: {_told(event)} has {key}={shown(value)}: no time")
        times.append(float(value or 0) * MICRO)
    return times[0], times[0] + times[1]


# µs: a century; clocks count from the start of a machine or from 1970
_LONGEST = 3.2e15


def _told(event: Mapping[str, Any]) -> str:
    return shown(event.get("name", "an event without a name"))


def measured_event(name: str, kind: str, span: Span, origin: float, **known: Any) -> Event:
    """A measured operator as an event; *known* are its block, stream and FLOP."""
    flop = known.pop("flop", 0.0)
    return Event(
        name=name, kind=kind, time=span.end - span.start,
        starts=np.array([span.start - origin]), work=Work(flop), provenance=MEASURED, **known,
    )  # fmt: skip


def chosen(steps: Sequence[Timeline], step: str | None, where: str) -> Timeline:
    """The step of that name, as the median of all steps of the name.

    Raises
    ------
    SpecError : there is none, or no name is given where there are several.
    """
    names = list(dict.fromkeys(each.name for each in steps))
    if step is None and len(names) > 1:
        known = ", ".join(map(repr, names[:_SHOWN])) + (" …" if len(names) > _SHOWN else "")
        raise SpecError(f"{where} has the steps {known}: say which, step={names[0]!r}")
    name = names[0] if step is None else step
    if name not in names:
        raise SpecError(f"{where} has no step {name!r}{nearest(name, names)}")
    return median([each for each in steps if each.name == name])


_SHOWN = 6


def median(steps: Sequence[Timeline]) -> Timeline:
    """The median of each operator's time over steps that ran the same operators.

    Of steps that differ, as a first one does that still compiles, those with the most common
    list of operators count. ``source["steps"]`` says how many of how many.
    """
    lists = [tuple(event.name for event in step.events) for step in steps]
    common = Counter(lists).most_common(1)[0][0]
    alike = [step for step, names in zip(steps, lists, strict=True) if names == common]
    events = tuple(_middle(same) for same in zip(*(step.events for step in alike), strict=True))
    times = statistics.median(float(step.time) for step in alike)
    source = {**alike[0].source, "steps": f"{len(alike)} of {len(steps)}"}
    return replace(alike[0], events=events, time=times, source=source)


def _middle(events: Sequence[Event]) -> Event:
    times, starts = (
        np.median([getattr(event, name) for event in events], axis=0) for name in ("time", "starts")
    )
    return replace(events[0], time=float(times), starts=starts)
