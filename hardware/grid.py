"""Grids: the boxes that groups of chips take in a ring, mesh or torus, and the links they use."""

import functools
import math
from typing import NamedTuple, TypeAlias

import numpy as np

from hardware.arithmetic import ceil, larger, smaller, where
from hardware.errors import SpecError
from hardware.placement import places, spread
from hardware.units import Number

Sides: TypeAlias = tuple[Number, ...]
"""A number for each dimension of a ring, mesh or torus."""


class Box(NamedTuple):
    """Where a group lies in a grid: what holds of it along each dimension.

    sides: its members. closed: whether they close a ring. apart: links from one member to
    the next; as many groups lie between each other and share these links. streams: members
    forward, copy and add while data pass, so that a line is one step.
    """

    sides: Sides
    closed: Sides
    apart: Sides
    streams: bool = False


def box(
    n: Number, shape: tuple[int, ...], *, wraps: bool, streams: bool = False, apart: Number = 1
) -> Box:
    """Return the box in which *n* members, each *apart* after the last, work best together.

    The members between two of them fill the best box of their own that leaves room, and
    this one is made of such boxes. A number of members that has no box takes a larger one.
    A grid that wraps is a torus. Arrays broadcast. Raises SpecError if there is no room.
    """
    if isinstance(n, int | float) and isinstance(apart, int | float):
        return _box(n, shape, wraps, apart)._replace(streams=streams)
    sizes, steps = np.broadcast_arrays(n, apart)
    pairs, where = np.unique(np.stack([sizes.ravel(), steps.ravel()]), axis=1, return_inverse=True)
    found = np.array([_box(float(n), shape, wraps, float(apart))[:3] for n, apart in pairs.T])
    columns = np.moveaxis(found[where.ravel()], 0, -1).reshape(3, len(shape), *sizes.shape)
    sides, closed, gaps = (tuple(rows) for rows in columns)
    return Box(sides, closed, gaps, streams)


def links_used(found: Box) -> Sides:
    """Of a chip's bandwidth, the part that a box keeps busy along each dimension.

    A chip has two links per dimension. A closed ring keeps both busy; an open line runs at
    the pace of its ends, which have one; groups that lie between each other share them.
    """
    return tuple(
        (side > 1) * (1 + closed) / (2 * apart * len(found.sides))
        for side, closed, apart in zip(*found[:3], strict=True)
    )


def exchange_rate(found: Box) -> Number:
    """Of a chip's bandwidth, the part at which the bytes of an all-to-all pass its links.

    Half of what a line of k holds has to pass its middle: a byte crosses k/4 links of a
    ring, and an open line has half of them for it. The slowest dimension sets the pace of
    all. This is the bound of the bisection, which routing along one dimension after the
    other reaches.
    """
    sides = [side * (side > 1) for side in found.sides]
    slowest: Number = 0.0
    for side, rate in zip(sides, links_used(found), strict=True):
        slowest = larger(slowest, side / (rate + (side == 0)))
    return (sum(sides) + (slowest == 0)) / (slowest + (slowest == 0))


def line_steps(found: Box, *, both_ways: bool = True) -> tuple[Number, Number]:
    """Return the messages one after the other along all dimensions, and the hops beyond them.

    both_ways: round a ring, the same data go both ways and meet after half of it; otherwise,
    and along an open line, they go from end to end. A message to a member that is some
    links apart passes so many.
    """
    steps: Number = 0
    links: Number = 0
    for side, closed, apart in zip(*found[:3], strict=True):
        length = where(closed, ceil((side - 1) / 2), side - 1) if both_ways else side - 1
        steps = steps + ((side > 1) * 1 if found.streams else length)
        links = links + length * apart
    return steps, links - steps


def nearest_member(found: Box) -> Number:
    """Return the links to the next member along the dimension where it is nearest."""
    nearest: Number = math.inf
    for side, apart in zip(found.sides, found.apart, strict=True):
        nearest = smaller(nearest, where(side > 1, apart, math.inf))
    found_one: Number = where(nearest < math.inf, nearest, 1)
    return found_one


@functools.lru_cache(maxsize=4096)  # group sizes times shapes
def _box(n: float, shape: tuple[int, ...], wraps: bool, apart: float) -> Box:
    """Most links busy, then fewest hops."""
    blocks = [tuple(1 for _ in shape)]
    if n > 1 and apart > 1:
        blocks = sorted(_boxes(apart, shape), key=lambda sides: _worth(_lying(sides, shape, wraps)))
        blocks = blocks or [_hull(apart, shape)]
    for block in blocks:
        room = tuple(length // side for length, side in zip(shape, block, strict=True))
        if math.prod(room) >= n:
            candidates = _boxes(n, room) or [_hull(n, room)]
            return min((_lying(sides, shape, wraps, block) for sides in candidates), key=_worth)
    across = " × ".join(str(side) for side in shape)
    raise SpecError(
        f"{n:.0f} blocks of {apart:.0f} do not lie side by side in a grid of {across}; "
        "use numbers that divide its sides"
    )


def _lying(
    sides: tuple[int, ...], shape: tuple[int, ...], wraps: bool, block: tuple[int, ...] = ()
) -> Box:
    """Put members, or blocks of them, side by side."""
    apart = block or tuple(1 for _ in shape)
    reach = [side * step for side, step in zip(sides, apart, strict=True)]
    closed = tuple(wraps and far >= length for far, length in zip(reach, shape, strict=True))
    return Box(sides, closed, apart)


def _worth(found: Box) -> tuple[float, float]:
    return -float(sum(links_used(found))), float(sum(found.sides))


def _hull(n: float, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The box that holds *n* members which have none: full along one side after the other."""
    return tuple(math.ceil(way) for way in spread(n, places(shape, 1)))


def _boxes(n: float, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All boxes of exactly *n* members inside *shape*."""
    first, *rest = shape
    if not rest:
        return [(int(n),)] if n <= first else []
    return [
        (side, *others)
        for side in range(1, first + 1)
        if n % side == 0
        for others in _boxes(n // side, tuple(rest))
    ]
