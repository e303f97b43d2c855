"""Collectives: how long chips take to exchange data over the links of a platform.

The α-β model: an algorithm takes steps · latency + volume / bandwidth, without contention
and without the time to add. `collective` tries every algorithm that the wiring allows and
keeps the fastest.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hardware.algorithms import ALGORITHMS, Algorithm
from hardware.arithmetic import ceil, floor, larger, nearest_whole, product
from hardware.errors import SpecError, nearest, shown
from hardware.level import Span
from hardware.units import Number
from hardware.wiring import one_link, wiring


class CollectiveCost(NamedTuple):
    """What one collective costs, in seconds and bytes; arrays if the question had any.

    sent: bytes per chip on its links, in the busier direction, over all levels.
    algorithm: the index into names of the fastest algorithm.
    """

    time: Number
    latency_time: Number
    bandwidth_time: Number
    sent: Number
    algorithm: Any
    names: tuple[str, ...]


_INSIDE = {
    "all_reduce": ("reduce_scatter", "all_gather"),
    "all_gather": ("all_gather",),
    "reduce_scatter": ("reduce_scatter",),
    "all_to_all": ("all_to_all",),
    "broadcast": ("broadcast",),
}
"""What a hierarchical collective does within the innermost level; across the levels above,
it does the collective itself."""

_SCATTERED = ("all_reduce", "all_gather", "reduce_scatter")  # a member's share goes across


def collective(
    kind: str, nbytes: Number, spans: Sequence[Span], sharing: Number = 1
) -> CollectiveCost:
    """Return the cost of the fastest way to do one collective in a group of chips.

    kind: a key of `ALGORITHMS`. nbytes: the whole buffer of one chip. spans: where the
    group lies, from `Platform.spans`. sharing: how many such collectives the links carry
    at once. A group over several levels is priced flat, at the rate of the outermost link,
    and hierarchically: the sum of the parts within and across; an all-to-all also straight,
    every byte over the links of the level where it has to go.
    A group of one chip and an empty buffer cost nothing. Numbers and arrays broadcast,
    and the fastest way is chosen for each element. Raises SpecError for an unknown kind,
    and a sharing below 1.
    """
    if kind not in ALGORITHMS:
        raise SpecError(f"unknown collective {kind!r}{nearest(kind, ALGORITHMS)}")
    if not np.all(np.greater_equal(sharing, 1)):
        raise SpecError(f"{shown(sharing)} collectives cannot share a link; use numbers from 1 up")
    if not spans:
        zero = nbytes * 0.0
        return CollectiveCost(zero, zero, zero, zero, 0, ("none",))
    # What n equal collectives send over a link takes as long as n times the bytes.
    found = _best(kind, nbytes * sharing, spans)
    return found._replace(sent=found.sent / sharing)


def _best(kind: str, nbytes: Number, spans: Sequence[Span]) -> CollectiveCost:
    *within, outermost = spans
    if not within or kind == "send":  # which crosses the outermost link only
        offers = _offers(kind, nbytes, outermost)
    else:
        everyone = outermost._replace(ways=nearest_whole(product([span.ways for span in spans])))
        flat = _offers(kind, nbytes, everyone) if outermost.level.topology == "switch" else []
        straight = [_straight(nbytes, spans)] if kind == "all_to_all" else []
        offers = [_hierarchical(kind, nbytes, spans), *flat, *straight]
    best = _fastest(offers)
    if within and isinstance(outermost.ways, np.ndarray):  # an element may not reach so far
        best = _where(outermost.ways > 1, best, _best(kind, nbytes, within))
    return best


def algorithm_name(cost: CollectiveCost) -> str:
    """Return the name of the fastest algorithm of a scalar cost."""
    return cost.names[int(cost.algorithm)]


def _hierarchical(kind: str, nbytes: Number, spans: Sequence[Span]) -> CollectiveCost:
    """Work within the innermost level, and across the others.

    Where a group lies unevenly, the fullest domain is the slowest within, and a chip of the
    emptiest one has the largest share to send across.
    """
    inner, *outer = spans
    filled = inner._replace(ways=ceil(inner.ways))
    legs = [_fastest(_offers(part, nbytes, filled)) for part in _INSIDE[kind]]
    share = nbytes / floor(inner.ways) if kind in _SCATTERED else nbytes
    across = _best(kind, share, outer)
    legs.insert(0 if kind in ("all_gather", "broadcast") else 1, across)
    return _after_another(legs)


def traffic_shares(ways: Sequence[Number]) -> tuple[Number, ...]:
    """Return which part of its buffer a chip sends over each level in an all-to-all.

    ways: members of the group at each level. At a level go the parts for all chips of a
    domain but those of the chip's own domain one level in. Where the group lies unevenly,
    each level has what its busiest chip sends, and their sum is more than (n-1)/n.
    """
    everyone = nearest_whole(product(ways))
    shares: list[Number] = []
    emptiest: Number = 1
    for level in range(len(ways)):
        domains = nearest_whole(product(ways[level + 1 :]))
        shares.append((ceil(everyone / domains) - emptiest) / everyone)
        emptiest = everyone // domains
    return tuple(shares)


def _straight(nbytes: Number, spans: Sequence[Span]) -> CollectiveCost:
    """All to all, every byte over the links of the level where it has to go, all at once."""
    ways = [span.ways for span in spans]
    everyone = nearest_whole(product(ways))
    legs = []
    for span, share in zip(spans, traffic_shares(ways), strict=True):
        members = ceil(span.ways)
        held = nbytes * share * members / larger(members - 1, 1)
        filled = span._replace(ways=members)
        legs.append(_fastest(_offers("all_to_all", held, filled, share * everyone)))
    return _at_once(legs)


def _after_another(legs: Sequence[CollectiveCost]) -> CollectiveCost:
    """One leg after the other."""
    time = sum(leg.time for leg in legs)
    latency = sum(leg.latency_time for leg in legs)
    bandwidth = sum(leg.bandwidth_time for leg in legs)
    return CollectiveCost(time, latency, bandwidth, *_joined("hierarchical", legs))


def _at_once(legs: Sequence[CollectiveCost]) -> CollectiveCost:
    """All legs at the same time: the slowest one counts."""
    slowest, *others = (leg._replace(names=leg.names[:1], algorithm=0) for leg in legs)
    for leg in others:
        slowest = _where(leg.time > slowest.time, leg, slowest)
    return CollectiveCost(*slowest[:3], *_joined("straight", legs))


def _joined(how: str, legs: Sequence[CollectiveCost]) -> tuple[Number, Any, tuple[str, ...]]:
    """Return what all legs send, and the algorithm of each."""
    index: Any = 0
    for leg in legs:
        index = index * len(leg.names) + leg.algorithm
    return (
        sum(leg.sent for leg in legs),
        index,
        _joined_names(how, tuple(leg.names for leg in legs)),
    )


@functools.lru_cache(maxsize=1024)  # combinations of kinds and wirings; a few in practice
def _joined_names(how: str, names: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    return tuple(f"{how}({'+'.join(legs)})" for legs in itertools.product(*names))


def _offers(
    kind: str, nbytes: Number, span: Span, partners: Number | None = None
) -> list[CollectiveCost]:
    """Price every algorithm that the wiring of a level allows among the members of a span.

    partners: how many chips each one sends to, where those of a level are not its members
    themselves but all chips in them.
    """
    level, n, _ = span
    members, usable = wiring(level, n)
    offers = []
    for algorithm in _applicable(kind, level.topology, level.in_switch_reduction):
        allowed = algorithm.allows(n if partners is None else partners + 1)
        if not isinstance(allowed, np.ndarray) and not allowed:
            continue
        steps, volume = algorithm.cost(nbytes, members)
        if partners is not None:
            if algorithm.forwards:
                continue
            steps = partners if algorithm.step_per_partner else steps
        rate = level.link.bandwidth * (one_link(level) if algorithm.one_link else usable)
        latency, bandwidth = steps * level.link.latency * (nbytes > 0), volume / rate
        cost = CollectiveCost(latency + bandwidth, latency, bandwidth, volume, 0, (algorithm.name,))
        offers.append(_only_where(cost, allowed))
    return offers


@functools.cache
def _applicable(kind: str, topology: str, in_switch: bool) -> tuple[Algorithm, ...]:
    return tuple(
        algorithm
        for algorithm in ALGORITHMS[kind]
        if topology in algorithm.topologies and in_switch >= algorithm.in_switch
    )


def _only_where(cost: CollectiveCost, allowed: Any) -> CollectiveCost:
    """Make a cost infinite where an algorithm does not apply."""
    if allowed is True or np.all(allowed):
        return cost
    return cost._replace(time=np.where(allowed, cost.time, math.inf))


def _fastest(offers: Sequence[CollectiveCost]) -> CollectiveCost:
    """Choose the least time, for each element if there are arrays."""
    if all(isinstance(offer.time, int | float) for offer in offers):
        return min(offers, key=lambda offer: offer.time)
    best, *others = offers
    for offer in others:
        best = _where(offer.time < best.time, offer, best)
    return best


def _where(condition: Any, first: CollectiveCost, second: CollectiveCost) -> CollectiveCost:
    """Take *first* where the condition holds, *second* elsewhere."""
    if not isinstance(condition, np.ndarray):
        return first if condition else second
    time, latency, bandwidth, sent = (
        np.where(condition, first[i], second[i]) for i in range(len(first) - 2)
    )
    index = np.where(condition, len(second.names) + first.algorithm, second.algorithm)
    return CollectiveCost(time, latency, bandwidth, sent, index, second.names + first.names)
