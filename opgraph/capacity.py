"""Capacity: what a platform's memory holds, and how much more it would."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware import Number
from opgraph.counts import LARGEST
from opgraph.memory import Footprint
from opgraph.point import Point

# places tried at once, for each point and in all
_TRIED, _MOST = 128, 1 << 16


def footprint(point: Point) -> Footprint:
    """The memory of every design point; with arrays in the plan, of the shape of them all."""
    stages = [(place, _footprint(part)) for place, part in point.by_stages]
    plan = point.plan
    if len(stages) == 1 and not (np.ndim(plan.num_chips) or np.ndim(plan.ep)):
        return stages[0][1]
    return _together(stages, point.shape)


def _footprint(point: Point) -> Footprint:
    """The same of points with equally many stages."""
    parts = [(place, part.footprint()) for place, part in point.by_axes]
    return parts[0][1] if len(parts) == 1 else _together(parts, point.shape)


def _together(parts: Sequence[tuple[Any, Footprint]], shape: tuple[int, ...]) -> Footprint:
    """One footprint of the points of a *shape* of which each part has its place."""

    def spread(values: Iterable[Number]) -> NDArray[np.float64]:
        whole = np.zeros(shape)
        for (place, _), value in zip(parts, values, strict=True):
            whole[place] = value
        return whole

    found = [part for _, part in parts]
    classes = dict.fromkeys(name for part in found for name in part.by_class)
    names = [entry.name for entry in fields(Footprint) if entry.name != "by_class"]
    return Footprint(
        by_class={name: spread(p.by_class.get(name, 0.0) for p in found) for name in classes},
        **{name: spread(getattr(part, name) for part in found) for name in names},
    )


def largest(point: Point, word: str) -> Number:
    """The largest number of the workload's *word* (``batch``, ``prompt``) that fits; 0 if none."""
    most = np.zeros(point.shape)
    for place, stages in point.by_stages:
        found = np.zeros(stages.shape)
        for inside, part in stages.by_axes:
            found[inside] = _largest(part, word)
        most[place] = found
    return most if point.shape else int(most)


def _largest(point: Point, word: str) -> NDArray[np.float64]:
    """The same of points that use the same axes.

    Memory grows with either: powers of two are tried, then places between the largest that fits
    and the least that does not, many at once.
    """

    def fits(numbers: NDArray[np.float64]) -> Any:
        workload = replace(point.workload, **{word: numbers})
        fitting = replace(point, workload=workload).footprint().fits
        return np.broadcast_to(fitting, (len(numbers), *point.shape))

    powers = 2.0 ** np.arange(int(np.log2(LARGEST)) + 1)
    low, high = np.zeros(point.shape), np.full(point.shape, LARGEST + 1.0)
    tried: NDArray[np.float64] = np.expand_dims(powers, tuple(range(1, 1 + len(point.shape))))
    while True:
        good = fits(np.maximum(tried, 1)) & (tried >= 1)
        low = np.maximum(low, np.max(np.where(good, tried, low), axis=0))
        high = np.minimum(high, np.min(np.where(good | (tried <= low), high, tried), axis=0))
        if np.all(high - low <= 1):
            return np.asarray(low)
        count = max(2, min(_TRIED, _MOST // max(low.size, 1)))
        parts = np.expand_dims(np.arange(1, count) / count, tuple(range(1, 1 + low.ndim)))
        tried = np.clip(np.floor(low + parts * (high - low)), low + 1, None)
