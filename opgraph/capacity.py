"""Capacity: what a platform's memory holds, and how much more it would."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware import Number
from opgraph.counts import LARGEST
from opgraph.memory import Footprint
from opgraph.point import Point

# places tried at once, for each point and in all
_TRIED, _MOST = 64, 1 << 16


def footprint(point: Point) -> Footprint:
    """The memory of every design point."""
    parts = [(place, part.footprint()) for place, part in point.by_stages()]
    if isinstance(parts[0][0], tuple):
        return parts[0][1]

    def spread(values: list[Number]) -> NDArray[np.float64]:
        whole = np.zeros(point.shape)
        for (place, _), value in zip(parts, values, strict=True):
            whole[place] = value
        return whole

    found = [part for _, part in parts]
    classes = dict.fromkeys(name for part in found for name in part.by_class)
    names = [entry.name for entry in fields(Footprint) if entry.name != "by_class"]
    return Footprint(
        by_class={name: spread([p.by_class.get(name, 0.0) for p in found]) for name in classes},
        **{name: spread([getattr(part, name) for part in found]) for name in names},
    )


def largest(point: Point, word: str) -> Number:
    """The largest number of the workload's *word* (``batch``, ``prompt``) that fits; 0 if none.

    Memory grows with either: powers of two are tried, then places between the largest that fits
    and the least that does not, many at once.
    """

    def fits(numbers: NDArray[np.float64]) -> Any:
        workload = replace(point.workload, **{word: numbers})
        return np.broadcast_to(
            footprint(replace(point, workload=workload)).fits, (len(numbers), *point.shape)
        )

    powers = 2.0 ** np.arange(int(np.log2(LARGEST)) + 1)
    low, high = np.zeros(point.shape), np.full(point.shape, LARGEST + 1.0)
    tried: NDArray[np.float64] = np.expand_dims(powers, tuple(range(1, 1 + len(point.shape))))
    while True:
        good = fits(np.maximum(tried, 1)) & (tried >= 1)
        low = np.maximum(low, np.max(np.where(good, tried, low), axis=0))
        high = np.minimum(high, np.min(np.where(good | (tried <= low), high, tried), axis=0))
        if np.all(high - low <= 1):
            return low if point.shape else int(low)
        count = max(2, min(_TRIED, _MOST // max(low.size, 1)))
        parts = np.expand_dims(np.arange(1, count) / count, tuple(range(1, 1 + low.ndim)))
        tried = np.clip(np.floor(low + parts * (high - low)), low + 1, None)
