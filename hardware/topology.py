"""Topologies: how the members of a level are joined, one entry for each way.

A topology says where a group lies in it (its `Layout`, from which the algorithms take what
they need), what its worst cut lets through, how far its farthest members are, and to which
family it belongs: the algorithms name the families in which they work. To add a topology,
write its functions and its line in `TOPOLOGIES`.

References
----------
Leiserson: C. Leiserson, "Fat-trees: universal networks for hardware-efficient
supercomputing", IEEE Transactions on Computers 34(10), 1985.
Kim: J. Kim, W. Dally, S. Scott, D. Abts, "Technology-driven, highly-scalable dragonfly
topology", ISCA 2008.
Dally: W. Dally, B. Towles, "Principles and Practices of Interconnection Networks", 2004.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from hardware.arithmetic import floor, larger, product, smaller
from hardware.grid import box, exchange_rate, links_used, nearest_member
from hardware.placement import places, spread
from hardware.units import Number

if TYPE_CHECKING:
    from hardware.level import Level


class Layout(NamedTuple):
    """What the algorithms need to know of a group in one level.

    members: as the cost functions count them: a number, in a grid a `Box`. near, far: of a
    chip's bandwidth, the part that it has when all members send to the next one, or to all
    others. one: the part that one link has. hops: what a message passes beyond the first
    switch; in a grid the cost functions count them.
    """

    members: Any
    near: Number
    far: Number
    one: Number
    hops: Number = 0


@dataclass(frozen=True, slots=True)
class Topology:
    """One way to join the members of a level.

    family: the word by which algorithms say that they work here. layout: of a group of so
    many members, each so many apart. cut: what passes between two halves of all members, at
    worst, as so many times the bandwidth of one. diameter: links or switches that a message
    passes between the farthest two. sides: the least and the most that the shape of a level
    has. passes: whether messages pass several switches, whose latency a level needs
    to say. tapers, rewires: whether a level may say its oversubscription, or has to say how
    long it takes to reconfigure.
    """

    family: str
    layout: Callable[["Level", Number, Number], Layout]
    cut: Callable[["Level"], Number]
    diameter: Callable[["Level"], int]
    sides: tuple[float, float] = (0, 0)
    passes: bool = False
    tapers: bool = False
    rewires: bool = False


def _any_to_any(_level: "Level", n: Number, _apart: Number) -> Layout:
    return Layout(n, 1.0, 1.0, 1.0)


def _half(level: "Level") -> float:
    return level.size // 2


def _one(_level: "Level") -> int:
    return 1


def _pairs(level: "Level", n: Number, _apart: Number) -> Layout:
    """An equal link to every other member; a group has those between its members."""
    links = max(level.size - 1, 1)
    usable = larger(n - 1, 1) / links
    return Layout(n, usable, usable, 1 / links)


def _pairs_cut(level: "Level") -> float:
    half = level.size // 2
    return half * (level.size - half) / max(level.size - 1, 1)


def _grid(*, wraps: bool, streams: bool = False) -> Callable[["Level", Number, Number], Layout]:
    """Links to the two neighbours in each dimension, of which a group has a box."""

    def layout(level: "Level", n: Number, apart: Number) -> Layout:
        found = box(n, _sides(level), wraps=wraps, streams=streams, apart=apart)
        used = sum(links_used(found))
        nearest = 2 * len(found.sides) * nearest_member(found)
        return Layout(found, used + (used == 0), exchange_rate(found), 1 / nearest)

    return layout


def _grid_cut(*, wraps: bool) -> Callable[["Level"], float]:
    """Cut the longest side: each line along it has one link there, a ring two (Dally, 5.2)."""

    def cut(level: "Level") -> float:
        sides = _sides(level)
        lines = level.size / max(sides)
        return lines * (1 + wraps) / (2 * len(sides)) * (level.size > 1)

    return cut


def _grid_diameter(*, wraps: bool) -> Callable[["Level"], int]:
    return lambda level: sum(side // 2 if wraps else side - 1 for side in _sides(level))


def _sides(level: "Level") -> tuple[int, ...]:
    return level.shape or (level.size,)


def _domains(taper: int, hops: tuple[int, ...]) -> Callable[["Level", Number, Number], Layout]:
    """Domains inside domains, any to any in each; those of tier *taper* have fewer links out.

    Of what a member sends to all others, the part for other domains goes at the rate of
    its bandwidth over the oversubscription. In a ring, one member of each domain sends out,
    for all groups that lie between each other. hops: passed in addition beyond each tier.
    """

    def layout(level: "Level", n: Number, apart: Number) -> Layout:
        ways = spread(n, places(level.shape, apart))
        inside = [floor(product(ways[:tier])) for tier in range(1, len(ways))]
        members = inside[taper]
        leaving = (n - members) / larger(n - 1, 1) * level.oversubscription
        alone = 1.0 * (n <= members)
        near = larger(smaller(members / level.oversubscription, 1), alone)
        passed = sum(
            hops[min(tier, len(hops) - 1)] * (n > within) for tier, within in enumerate(inside)
        )
        return Layout(n, near, 1 / larger(leaving, 1), near, passed)

    return layout


def _tapered_half(level: "Level") -> Number:
    return level.size // 2 / level.oversubscription


_MANY = math.inf

TOPOLOGIES: dict[str, Topology] = {
    # one switch, or parallel ones
    "switch": Topology("switched", _any_to_any, _half, _one),
    "full": Topology("full", _pairs, _pairs_cut, _one),
    "ring": Topology("ring", _grid(wraps=True), _grid_cut(wraps=True), _grid_diameter(wraps=True)),
    "torus": Topology(
        "grid", _grid(wraps=True), _grid_cut(wraps=True), _grid_diameter(wraps=True), (1, _MANY)
    ),
    "mesh": Topology(
        "grid", _grid(wraps=False), _grid_cut(wraps=False), _grid_diameter(wraps=False), (1, _MANY)
    ),
    # dies of one wafer: a mesh whose routers forward, copy and add while data stream by
    "wafer": Topology(
        "grid",
        _grid(wraps=False, streams=True),
        _grid_cut(wraps=False),
        _grid_diameter(wraps=False),
        (2, 2),
        passes=True,
    ),
    # members of a leaf switch, leaves of a pod, …; leaves have less bandwidth up (Leiserson)
    "fat-tree": Topology(
        "switched",
        _domains(0, hops=(2,)),
        _tapered_half,
        lambda level: 2 * len(level.shape) - 1,
        (2, _MANY),
        passes=True,
        tapers=True,
    ),
    # members of a router, routers of a group, groups: all pairs of routers of a group are
    # joined, and all pairs of groups; four routers lie on the longest way (Kim)
    "dragonfly": Topology(
        "switched",
        _domains(-1, hops=(1, 2)),
        _tapered_half,
        lambda _: 4,
        (3, 3),
        passes=True,
        tapers=True,
    ),
    # a circuit switch: each member has one partner at a time, at full rate
    "photonic": Topology("circuits", _any_to_any, _half, _one, rewires=True),
}
"""The topologies by the word that a platform file has for each."""
