"""Levels: equal members joined by equal links, and how far a group reaches over them."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

from hardware.errors import SpecError, nearest
from hardware.link import STRICT, TOPOLOGIES, Link
from hardware.specs import Count, Flag, Name, one_of
from hardware.units import Number


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
    """How far a group of chips reaches at one level: over *ways* members of it.

    apart: members from one of them to the next, as many as lie between for other groups.
    """

    level: Level
    ways: Number
    apart: Number = 1
