"""Platforms: equal chips under nested levels of links."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from hardware.chip import Chip
from hardware.errors import SpecError, nearest, shown
from hardware.link import STRICT, TOPOLOGIES, Link
from hardware.specs import Count, Flag, Name, Text, one_of
from hardware.units import Number

__all__ = ["Level", "Link", "Platform", "Span", "spread"]


@dataclass(frozen=True)
class Level:
    """One level of links: *size* members of the level below, joined by equal links.

    link is what one chip has at this level. shape gives the sides of a mesh or torus;
    their product is size. in_switch_reduction: the switches add up what they forward.
    Raises SpecError if the topology does not exist or the shape does not fit the size.
    """

    name: Name
    size: Count
    link: Link
    topology: Annotated[str, one_of(TOPOLOGIES)] = "switch"
    shape: tuple[Count, ...] = ()
    in_switch_reduction: Flag = False

    __pydantic_config__: ClassVar = STRICT

    def __post_init__(self) -> None:
        if self.topology not in TOPOLOGIES:
            known = nearest(self.topology, TOPOLOGIES)
            raise SpecError(f"unknown topology {self.topology!r} of level {self.name}{known}")
        if self.size < 1:
            raise SpecError(f"level {self.name} needs a size of at least 1, not {self.size}")
        needs_shape = self.topology in ("mesh", "torus")
        if needs_shape != bool(self.shape) or (needs_shape and math.prod(self.shape) != self.size):
            raise SpecError(
                f"level {self.name} is a {self.topology} of {self.size}, but its shape is "
                f"{list(self.shape)}; a mesh or torus needs sides whose product is its size, "
                "the others need none"
            )


class Span(NamedTuple):
    """How far a group of chips reaches at one level: over *ways* members of it."""

    level: Level
    ways: Number


def spread(count: Number, sizes: Sequence[int], stride: Number = 1) -> tuple[Number, ...]:
    """Return over how many members of each level *count* chips lie, innermost first.

    Member i of the group is chip i·stride. The group lies evenly over the fewest domains
    that hold it, so the product is *count*; a count that does not divide evenly gives a
    fraction (9 chips on nodes of 8 lie 4.5 on each of 2). Arrays broadcast.
    """
    scalar = isinstance(count, int | float) and isinstance(stride, int | float)
    ceil: Any = math.ceil if scalar else np.ceil
    ways: list[Number] = []
    domains, reach = count, 1
    for size in sizes:
        reach *= size
        needed = ceil(count / ceil(reach / stride))
        ways.append(_divide(domains, needed) if scalar else domains / needed)
        domains = needed
    return tuple(ways)


def _divide(a: Any, b: int) -> Number:
    """Divide, and keep whole what comes out whole."""
    whole: Number = a // b if a % b == 0 else a / b
    return whole


@dataclass(frozen=True)
class Platform:
    """Equal chips joined by nested levels of links, innermost first.

    scale_out is what each chip has to leave the platform, None if there is no such
    network. Raises SpecError if two levels share a name.
    """

    name: Name
    source: Text
    chip: Chip
    levels: tuple[Level, ...]
    scale_out: Link | None = None

    __pydantic_config__: ClassVar = STRICT

    def __post_init__(self) -> None:
        names = [level.name for level in self.levels]
        if len(set(names)) < len(names):
            raise SpecError(f"levels of {self.name} need different names: {', '.join(names)}")

    @property
    def num_chips(self) -> int:
        """Chips in the whole platform."""
        return math.prod(level.size for level in self.levels)

    def with_chip(self, **changes: Any) -> "Platform":
        """Return this platform with other chip figures, named as in `Chip.replace`."""
        return dataclasses.replace(self, chip=self.chip.replace(**changes))

    def with_link(
        self, level_name: str, bandwidth: Number | None = None, latency: Number | None = None
    ) -> "Platform":
        """Return this platform with another bandwidth or latency of the links of one level.

        Raises SpecError if it has no such level, or the number is not one a link can have.
        """
        names = [level.name for level in self.levels]
        if level_name not in names:
            raise SpecError(f"{self.name} has no level {level_name!r}{nearest(level_name, names)}")
        levels = list(self.levels)
        level = levels[names.index(level_name)]
        link = dataclasses.replace(
            level.link,
            bandwidth=level.link.bandwidth if bandwidth is None else bandwidth,
            latency=level.link.latency if latency is None else latency,
        )
        levels[names.index(level_name)] = dataclasses.replace(level, link=link)
        return dataclasses.replace(self, levels=tuple(levels))

    def replicate(self, n: int) -> "Platform":
        """Return *n* of this platform, joined over scale_out by a switch level "cluster".

        Raises SpecError if the platform has no scale_out link or n is not positive.
        """
        if n < 1:
            raise SpecError(f"cannot join {n} of {self.name}; use a positive number")
        if n == 1:
            return self
        if self.scale_out is None:
            raise SpecError(f"{self.name} has no scale_out link to join {n} of it")
        names = [level.name for level in self.levels]
        outer = "cluster" if "cluster" not in names else f"cluster-{len(names)}"
        level = Level(outer, n, self.scale_out)
        return dataclasses.replace(self, name=f"{self.name}:{n}", levels=(*self.levels, level))

    def spans(self, group_size: Number, stride: Number = 1) -> tuple[Span, ...]:
        """Return how a group of chips, each *stride* after the last, lies over the levels.

        Innermost first, only the levels the group reaches over: 16 chips on nodes of 8
        give (node, 8) and (cluster, 2); 8 chips with stride 8 give (cluster, 8). See
        `spread` for groups that do not divide evenly. With arrays, ways are arrays.
        Raises SpecError if the group does not fit.
        """
        beyond = group_size * stride > self.num_chips
        if np.any(beyond):
            size, step = (int(np.max(value)) for value in (group_size, stride))
            every = f" with stride {step}" if step > 1 else ""
            raise SpecError(
                f"a group of {size} chips{every} does not fit {self.name}, "
                f"which has {self.num_chips}"
            )
        if np.any(np.less(group_size, 1)) or np.any(np.less(stride, 1)):
            sizes = f"{shown(group_size)} chips with stride {shown(stride)}"
            raise SpecError(f"a group of {sizes} is none; use numbers from 1 up")
        ways = spread(group_size, [level.size for level in self.levels], stride)
        return tuple(
            Span(level, way)
            for level, way in zip(self.levels, ways, strict=True)
            if (way > 1 if isinstance(way, int | float) else np.any(way > 1))
        )
