"""Levels: equal members joined by equal links, and how far a group reaches over them."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np

from hardware.errors import SpecError, nearest, shown
from hardware.link import STRICT, Link, check_positive, widen
from hardware.specs import Count, Flag, Name, Ratio, Seconds, one_of
from hardware.topology import TOPOLOGIES, Layout
from hardware.units import Number


@dataclass(frozen=True)
class Level:
    """One level of links: *size* members of the level below, joined by equal links.

    link: what one chip has at this level. shape: the sides of a mesh, torus or wafer; of a
    fat tree, members of a leaf switch, then leaves of a pod, and so on; of a dragonfly,
    members of a router, routers of a group, groups; their product is size.
    in_switch_reduction: the switches add up what they forward. oversubscription: of a fat
    tree, how much more bandwidth its leaves have down than up; of a dragonfly, its groups.
    reconfiguration: how long a photonic switch takes to change its circuits.

    Raises SpecError if the topology does not exist, the shape does not fit the size, or a
    figure is missing or does not belong to the topology.
    """

    name: Name
    size: Count
    link: Link
    topology: Annotated[str, one_of(tuple(TOPOLOGIES))] = "switch"
    shape: tuple[Count, ...] = ()
    in_switch_reduction: Flag = False
    oversubscription: Ratio = 1.0
    reconfiguration: Seconds | None = None

    __pydantic_config__: ClassVar = STRICT

    def __post_init__(self) -> None:
        if self.topology not in TOPOLOGIES:
            known = nearest(self.topology, TOPOLOGIES)
            raise SpecError(f"unknown topology {self.topology!r} of level {self.name}{known}")
        if self.size < 1:
            raise SpecError(f"level {self.name} needs a size of at least 1, not {self.size}")
        self._check_shape()
        self._check_figures()
        widen(self)

    def _check_shape(self) -> None:
        least, most = TOPOLOGIES[self.topology].sides
        fits = math.prod(self.shape) == self.size if self.shape else True
        if least <= len(self.shape) <= most and fits:
            return
        needs = {0: "no shape", math.inf: f"at least {least} sides"}.get(most, f"{least} sides")
        raise SpecError(
            f"level {self.name} is a {self.topology} of {self.size}, but its shape is "
            f"{list(self.shape)}; it needs {needs}" + (" whose product is its size" if most else "")
        )

    def _check_figures(self) -> None:
        kind, what = TOPOLOGIES[self.topology], f"level {self.name} is a {self.topology}"
        if kind.passes and self.link.hop_latency is None:
            raise SpecError(f"{what} and needs the 'hop_latency' of its links")
        if kind.rewires and self.reconfiguration is None:
            raise SpecError(f"{what} and needs its time of 'reconfiguration'")
        if not kind.rewires and self.reconfiguration is not None:
            raise SpecError(f"{what} and has no circuits; leave 'reconfiguration' out")
        check_positive(f"level {self.name}", oversubscription=self.oversubscription)
        if np.any(np.less(self.oversubscription, 1)) or (
            not kind.tapers and np.any(np.not_equal(self.oversubscription, 1))
        ):
            allowed = "1 or more" if kind.tapers else "left out"
            raise SpecError(
                f"{what}, whose oversubscription is {allowed}, not {shown(self.oversubscription)}"
            )

    def layout(self, ways: Number, apart: Number = 1) -> Layout:
        """Return how *ways* members, each *apart* after the last, lie in this level."""
        return TOPOLOGIES[self.topology].layout(self, ways, apart)

    @property
    def family(self) -> str:
        """The word by which algorithms say that they work at this level."""
        return TOPOLOGIES[self.topology].family

    @property
    def bisection(self) -> Number:
        """Bytes per second from one half of the members to the other, over the worst cut.

        Of one chip of each member; a level of nodes of 8 chips has eight times that.
        """
        return self.link.bandwidth * TOPOLOGIES[self.topology].cut(self)

    @property
    def diameter(self) -> int:
        """Links or switches that a message passes between the farthest two members."""
        return TOPOLOGIES[self.topology].diameter(self)


class Span(NamedTuple):
    """How far a group of chips reaches at one level: over *ways* members of it.

    apart: members from one of them to the next, as many as lie between for other groups.
    """

    level: Level
    ways: Number
    apart: Number = 1
