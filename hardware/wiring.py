"""Wiring: which of its links a group of chips can use within one level."""

import functools
from typing import Any, TypeAlias

import numpy as np

from hardware.arithmetic import larger
from hardware.level import Level
from hardware.placement import places, spread
from hardware.units import Number

Sides: TypeAlias = tuple[Number, ...]
"""How many chips a group has along each dimension of a ring, mesh or torus."""


def wiring(level: Level, n: Number) -> tuple[Any, Number]:
    """Return the chips as the cost functions count them, and what part of a link they use."""
    if level.topology == "switch":
        return n, 1.0
    if level.topology == "full":
        others = larger(n - 1, 1)
        return n, others / larger(level.size - 1, 1)
    shape = level.shape or (level.size,)
    sides = _box(n, shape, level.topology)
    return sides, _links_used(sides, shape, level.topology)


def one_link(level: Level) -> float:
    """What part of a chip's bandwidth one of its links has."""
    if level.topology == "switch":
        return 1.0
    if level.topology == "full":
        return 1 / max(level.size - 1, 1)
    return 1 / (2 * len(level.shape or (1,)))


def _links_used(sides: Sides, shape: tuple[int, ...], topology: str) -> Number:
    """Of a chip's links, two per dimension, the part that a box of *sides* keeps busy.

    A side as long as a ring of the torus is closed and keeps both busy; an open line runs
    at the pace of its ends, which have one. The box of one chip, which sends nothing,
    counts as one line.
    """
    closed = topology != "mesh"
    lines = [
        (side > 1) * (1 + closed * (side >= length)) / 2
        for side, length in zip(sides, shape, strict=True)
    ]
    return larger(sum(lines), 1 / 2) / len(shape)


def _box(n: Number, shape: tuple[int, ...], topology: str) -> Sides:
    """Return the sides of the box in a mesh or torus where *n* chips work best together."""
    if isinstance(n, int | float):
        return _best_box(n, shape, topology)
    values, where = np.unique(n, return_inverse=True)
    boxes = np.array([_best_box(float(value), shape, topology) for value in values])
    return tuple(boxes[where.reshape(np.shape(n)), i] for i in range(len(shape)))


@functools.lru_cache(maxsize=4096)  # group sizes times shapes
def _best_box(n: float, shape: tuple[int, ...], topology: str) -> Sides:
    """Most links busy, then fewest hops; along one side after the other if *n* has no box."""
    boxes = _boxes(n, shape) or [spread(n, places(shape, 1))]
    return min(boxes, key=lambda box: (-_links_used(box, shape, topology), sum(box)))


def _boxes(n: float, shape: tuple[int, ...]) -> list[Sides]:
    """All boxes of exactly *n* chips inside *shape*."""
    first, *rest = shape
    if not rest:
        return [(n,)] if n <= first else []
    return [
        (side, *box)
        for side in range(1, first + 1)
        if n % side == 0
        for box in _boxes(n / side, tuple(rest))
    ]
