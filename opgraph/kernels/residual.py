"""The `corrected` level: a smooth, bounded factor on the physics, tabled over few features.

ln(measured / physics) is written as a sum of small tables, each over one to three features and
interpolated multilinearly (a generalised additive model with interactions: Lou et al. 2013,
"Accurate intelligible models with pairwise interactions"). Outside the ranges that were fitted
the factor falls back to 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

LIMIT = 0.7  # largest |ln factor|: the physics is never moved by more than a factor of two
FADE = 0.3  # how far beyond the fitted range, in parts of it, the correction has faded to 1/e


@dataclass(frozen=True)
class Residual:
    """Knots of each feature, and one table of ln factors per term (group of features)."""

    knots: Mapping[str, np.ndarray]
    tables: Mapping[tuple[str, ...], np.ndarray]

    def factor(self, features: Mapping[str, Any]) -> Any:
        """Return what to multiply the physics by."""
        total: Any = 0.0
        for term, table in self.tables.items():
            total = total + _interpolated(table, [self.place(name, features) for name in term])
        return np.exp(LIMIT * np.tanh(total / LIMIT) * self.trust(features))

    def place(self, name: str, features: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the knot below a feature's value and how far it is to the next (0 to 1)."""
        return place(self.knots[name], features[name])

    def trust(self, features: Mapping[str, Any]) -> Any:
        """Return 1 within the fitted range of every feature, fading to 0 outside."""
        beyond: Any = 0.0
        for name, knots in self.knots.items():
            low, high = knots[0], knots[-1]
            outside = np.maximum(np.maximum(low - features[name], features[name] - high), 0)
            beyond = beyond + (outside / ((high - low) * FADE)) ** 2
        return np.exp(-beyond)


def place(knots: np.ndarray, values: Any) -> tuple[Any, Any]:
    """Return the index of the knot below each value and the fraction of the way to the next."""
    index = np.clip(np.searchsorted(knots, values, side="right") - 1, 0, len(knots) - 2)
    fraction = (values - knots[index]) / (knots[index + 1] - knots[index])
    return index, np.clip(fraction, 0, 1)


def corners(places: list[tuple[Any, Any]], shape: tuple[int, ...]) -> list[tuple[Any, Any]]:
    """Return (flat index, weight) of each corner of the cell that holds each point."""
    answer = []
    for sides in product((0, 1), repeat=len(places)):
        flat: Any = 0
        weight: Any = 1.0
        for (index, fraction), side, size in zip(places, sides, shape, strict=True):
            flat = flat * size + index + side
            weight = weight * (fraction if side else 1 - fraction)
        answer.append((flat, weight))
    return answer


def _interpolated(table: np.ndarray, places: list[tuple[Any, Any]]) -> Any:
    """Return the multilinear interpolation of a table."""
    values = table.ravel()
    return sum(values[flat] * weight for flat, weight in corners(places, table.shape))
