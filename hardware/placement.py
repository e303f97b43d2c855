"""Placement: which chips work together, and over how many members of each level they lie.

Chips are laid out from the innermost level outwards. A plan's axes are laid in the same
order: the innermost has stride 1, the next one the degree of the first, and so on, so that
an axis of stride s joins blocks of s chips. No block lies over two domains if one can hold
it, and no domain is filled more than the others; chips that this leaves over stay idle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hardware.arithmetic import ceil, divide, floor, in_double, larger
from hardware.errors import SpecError, shown
from hardware.units import Number


@dataclass(frozen=True)
class Group:
    """Chips that work together: *size* of them, each *stride* chips after the last.

    With tp inside a node and pp over nodes, Plan(tp=8, pp=4) has the groups Group(8) and
    Group(4, stride=8). outer: the same again so many times, along an axis laid further out,
    where axes between the two do not belong to the group; see `along`. All may be arrays,
    one element for each design point, and then broadcast.
    Raises SpecError for numbers that are not whole or below 1, and arrays that do not fit.
    """

    size: Number
    stride: Number = 1
    outer: "Group | None" = None

    def __post_init__(self) -> None:
        for value in (self.size, self.stride):
            if not _counts(value):
                sizes = f"{shown(self.size)} chips with stride {shown(self.stride)}"
                raise SpecError(f"a group of {sizes} is none; use numbers from 1 up")
        shapes = [np.shape(value) for value in (self.size, self.stride)]
        if all(shapes):
            try:
                np.broadcast_shapes(*shapes)
            except ValueError:
                raise SpecError(
                    f"sizes of shape {shapes[0]} and strides of shape {shapes[1]} do not broadcast"
                ) from None

    @classmethod
    def along(cls, axes: Sequence[tuple[Number, Number]]) -> "Group":
        """Return the group along several axes of a plan: size and stride of each, innermost first.

        >>> Group.along([(2, 1), (4, 8)]).axes
        ((2, 1), (4, 8))
        """
        outer: Group | None = None
        for size, stride in reversed(axes):
            outer = cls(size, stride, outer)
        return outer or cls(1)

    @property
    def axes(self) -> tuple[tuple[Number, Number], ...]:
        """Size and stride along each axis, innermost first."""
        return ((self.size, self.stride), *(self.outer.axes if self.outer else ()))


class Places(NamedTuple):
    """Where blocks of chips fit at one level: *room* for so many, *apart* members each."""

    room: Number
    apart: Number


def places(sizes: Sequence[int], block: Number) -> tuple[Places, ...]:
    """Return how many blocks of *block* chips a domain of each level holds, innermost first.

    Levels that one block fills or lies across hold one. On nodes of 8, blocks of 4 fit
    twice and blocks of 3 too; a block of 12 takes two nodes.
    """
    found = []
    apart = block
    for size in sizes:
        found.append(Places(larger(floor(size / apart), 1), apart))
        apart = ceil(apart / size)
    return tuple(found)


def spread(count: Number, within: Sequence[Places]) -> tuple[Number, ...]:
    """Return over how many members of each level *count* blocks of chips lie, innermost first.

    They lie evenly over the fewest domains that hold them, so the product is *count*; a
    count that does not divide evenly gives a fraction (9 chips on nodes of 8 lie 4.5 on
    each of 2: 5 and 4). Arrays broadcast.
    """
    ways: list[Number] = []
    domains = count
    for place in within:
        needed = ceil(domains / place.room)
        ways.append(divide(domains, needed))
        domains = needed
    return tuple(ways)


def _counts(value: Any) -> bool:
    """Whether *value* is a whole number from 1 up, or an array of them."""
    if type(value) is int:
        return value >= 1
    number = in_double(value)
    if isinstance(number, bool) or not isinstance(number, int | float | np.ndarray):
        return False
    known = np.asarray(number)
    if known.dtype.kind not in "iuf" or not known.size or not np.isfinite(known).all():
        return False
    return bool(np.all((known >= 1) & (known == np.floor(known))))
