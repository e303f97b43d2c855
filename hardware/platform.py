"""Platforms: equal chips under nested levels of links."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from hardware.arithmetic import always, first_false, floor, larger, product, where
from hardware.chip import Chip
from hardware.collectives import collective, traffic_shares
from hardware.errors import SpecError, nearest, shown
from hardware.level import Level, Span
from hardware.link import STRICT, Link
from hardware.offers import CollectiveCost
from hardware.placement import Group, Places, places, spread
from hardware.specs import Name, Text
from hardware.tier import Tier
from hardware.units import Number, format_range, in_unit

_UNITS = {"bandwidth": "B/s", "latency": "s", "hop_latency": "s"}
Spec = TypeVar("Spec", Link, Level)


@dataclass(frozen=True)
class Platform:
    """Equal chips joined by nested levels of links, innermost first.

    scale_out is what each chip has to leave the platform, None if there is no such
    network. tiers: memory beyond the chips' own, nearest first.
    Raises SpecError if two levels or two tiers share a name.
    """

    name: Name
    source: Text
    chip: Chip
    levels: tuple[Level, ...]
    scale_out: Link | None = None
    tiers: tuple[Tier, ...] = ()

    __pydantic_config__: ClassVar = STRICT

    def __post_init__(self) -> None:
        names = [level.name for level in self.levels]
        if len(set(names)) < len(names):
            raise SpecError(f"levels of {self.name} need different names: {', '.join(names)}")
        names = [tier.name for tier in self.tiers]
        if len(set(names)) < len(names):
            raise SpecError(f"tiers of {self.name} need different names: {', '.join(names)}")

    def __str__(self) -> str:
        levels = "".join(
            f", {level.name} of {level.size}: {level.topology} of "
            f"{format_range(level.link.bandwidth, 'B/s')}"
            for level in self.levels
        )
        return f"{self.name}: {self.num_chips} × {self.chip.name}{levels}"

    @property
    def num_chips(self) -> int:
        """Chips in the whole platform."""
        return math.prod(level.size for level in self.levels)

    def tier(self, name: str) -> Tier:
        """Return the tier of memory called *name*; SpecError with those there are if none is."""
        for tier in self.tiers:
            if tier.name == name:
                return tier
        known = nearest(name, [tier.name for tier in self.tiers])
        raise SpecError(f"{self.name} has no tier {shown(name)}{known}")

    def with_tier(self, tier: Tier) -> "Platform":
        """Return this platform with one more tier of memory, farther than those it has."""
        return dataclasses.replace(self, tiers=(*self.tiers, tier))

    def with_chip(self, **changes: Any) -> "Platform":
        """Return this platform with other chip figures, named as in `Chip.replace`."""
        return dataclasses.replace(self, chip=self.chip.replace(**changes))

    def with_link(
        self,
        level_name: str | None = None,
        bandwidth: Number | str | None = None,
        latency: Number | str | None = None,
        **changes: Any,
    ) -> "Platform":
        """Return this platform with other links at one level, which it may leave out if it has
        no other.

        bandwidth, latency: a number, an array, or text with a unit. changes: hop_latency, or
        protocols (see `load_protocols`).
        Raises SpecError if it has no such level, or the figure is not one a link can have.
        """
        given = {"bandwidth": bandwidth, "latency": latency}
        changes |= {name: value for name, value in given.items() if value is not None}
        changes = {name: in_unit(name, value, _UNITS.get(name)) for name, value in changes.items()}
        link = _changed(self._level(level_name).link, "link", changes)
        return self.with_level(level_name, link=link)

    def with_level(self, level_name: str | None = None, **changes: Any) -> "Platform":
        """Return this platform with one level wired in another way; its only one if not named.

        changes: topology, shape, oversubscription, reconfiguration, in_switch_reduction,
        size or link. Raises SpecError if it has no such level, or no level can be like that.
        """
        old = self._level(level_name)
        new = _changed(old, "level", changes)
        return dataclasses.replace(
            self, levels=tuple(new if level is old else level for level in self.levels)
        )

    def _level(self, name: str | None) -> Level:
        if name is None and len(self.levels) == 1:
            return self.levels[0]
        for level in self.levels:
            if level.name == name:
                return level
        names = [level.name for level in self.levels]
        if name is None or not names:
            words = f"several levels; say which: {', '.join(names)}" if names else "no links"
            raise SpecError(f"{self.name} has {words}")
        raise SpecError(f"{self.name} has no level {name!r}{nearest(name, names)}")

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

    def group(self, size: Number, stride: Number = 1) -> tuple[Number, ...]:
        """Return the members that a group has at each level, innermost first.

        size: chips in the group; stride: chips from one to the next, which is the product of
        the degrees of the axes laid further in. The product of the members is the size: on
        nodes of 8, 16 chips are (8, 2), 4 chips with stride 8 are (1, 4), and 12 chips lie
        6 on each node. See `placement` for the rule. Arrays broadcast.
        Raises SpecError if the group does not fit.
        """
        return tuple(ways for ways, _ in self._lay(Group(size, stride)))

    def spans(self, group_size: Number, stride: Number = 1) -> tuple[Span, ...]:
        """Return how so many chips, each *stride* after the last, lie over the levels.

        See `place`: 16 chips on nodes of 8 give (node, 8) and (cluster, 2); 8 chips with
        stride 8 give (cluster, 8). Raises SpecError if the group does not fit.
        """
        return self.place(Group(group_size, stride))

    def place(self, group: Group) -> tuple[Span, ...]:
        """Return the levels that a group reaches over, innermost first, for `collective`.

        Like `group`, without the levels at which it has one member.
        Raises SpecError if the group does not fit.
        """
        return tuple(
            Span(level, ways, apart)
            for level, (ways, apart) in zip(self.levels, self._lay(group), strict=True)
            if (ways > 1 if isinstance(ways, int | float) else np.any(ways > 1))
        )

    def _lay(self, group: Group) -> list[tuple[Number, Number]]:
        """Return members at each level, and how far they are apart on average."""
        first, *others = group.axes
        found = self._places(*first)
        laid = [
            (ways, place.apart) for ways, place in zip(spread(first[0], found), found, strict=True)
        ]
        for size, stride in others:
            found = self._places(size, stride)
            for i, (more, place) in enumerate(zip(spread(size, found), found, strict=True)):
                ways, apart = laid[i]
                whole = larger(floor(place.apart / ways), 1)
                laid[i] = ways * more, where(more > 1, whole, apart)
        return laid

    def collective(
        self, kind: str, nbytes: Number, group: Group | Number, sharing: Number = 1
    ) -> CollectiveCost:
        """Return the cost of the fastest way to do one collective on this platform.

        kind: all_reduce, all_gather, reduce_scatter, all_to_all, broadcast or send, which
        goes from one member to the next and is priced at its slowest hop. nbytes: the whole
        buffer of one chip. group: a placed `Group`, or a number of neighbouring chips.
        sharing: how many such collectives the links carry at once. Everything but the kind
        may be an array; the fastest way is chosen for each element.
        Raises SpecError for an unknown kind, bytes below 0 and a group that does not fit.

        >>> from hardware import Group, load_platform
        >>> nodes = load_platform("dgx-h100:4")
        >>> inside = nodes.collective("all_reduce", 1e6, Group(4))
        >>> across = nodes.collective("all_reduce", 1e6, Group(4, stride=8))
        >>> bool(across.time > inside.time)
        True
        """
        if not always(nbytes >= 0):
            raise SpecError(f"a buffer of {shown(nbytes)} bytes is none; use numbers from 0 up")
        placed = group if isinstance(group, Group) else Group(group)
        return collective(kind, nbytes, self.place(placed), sharing)

    def send(self, nbytes: Number, distance: Number = 1, sharing: Number = 1) -> CollectiveCost:
        """Return the cost of one message between two chips that are *distance* apart.

        The two lie in one domain if it can hold both: on nodes of 8, stages of 4 chips are
        neighbours inside a node, stages of 8 are not. Raises SpecError if they do not fit.
        """
        return self.collective("send", nbytes, Group(2, distance), sharing)

    def traffic(self, group: Group | Number) -> tuple[Number, ...]:
        """Return which part of its buffer a chip sends over each level in an all-to-all.

        Innermost first; the rest, one part of the group, stays with the chip. Where the
        group lies unevenly, each level has what its busiest chip sends.
        """
        placed = group if isinstance(group, Group) else Group(group)
        return traffic_shares([ways for ways, _ in self._lay(placed)])

    def _places(self, size: Number, stride: Number) -> tuple[Places, ...]:
        """Return where blocks of *stride* chips fit; SpecError if there is no room for all."""
        found = places([level.size for level in self.levels], stride)
        room = product([place.room for place in found])
        for fits in (size * stride <= self.num_chips, size <= room):
            if not always(fits):
                raise SpecError(self._no_room(*first_false(fits, size, stride, room)))
        return found

    def _no_room(self, size: int, stride: int, room: int) -> str:
        every = f" with stride {stride}" if stride > 1 else ""
        has = f"which has {self.num_chips}"
        if size * stride <= self.num_chips:
            sizes = " × ".join(str(level.size) for level in self.levels)
            has = (
                f"whose levels of {sizes} have room for {room} blocks of {stride} chips that "
                "lie whole inside"
            )
        return f"a group of {size} chips{every} does not fit {self.name}, {has}"


def _changed(spec: Spec, kind: str, changes: dict[str, Any]) -> Spec:
    """Return a link or level with other figures."""
    known = [field.name for field in dataclasses.fields(spec)]
    for name in changes:
        if name not in known:
            raise SpecError(f"a {kind} has no {name!r} to replace{nearest(name, known)}")
    return dataclasses.replace(spec, **changes)
