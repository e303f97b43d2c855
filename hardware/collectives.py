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
from hardware.errors import SpecError, nearest
from hardware.platform import Level, Span
from hardware.units import Number
from hardware.wiring import one_link, product, wiring


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


def collective(kind: str, nbytes: Number, spans: Sequence[Span]) -> CollectiveCost:
    """Return the cost of the fastest way to do one collective in a group of chips.

    kind: a key of `ALGORITHMS`. nbytes: the whole buffer of one chip. spans: where the
    group lies, from `Platform.spans`. A group over several levels is priced flat, at the
    rate of the outermost link, and hierarchically: the sum of the parts within and across.
    A group of one chip and an empty buffer cost nothing. Numbers and arrays broadcast,
    and the fastest way is chosen for each element. Raises SpecError for an unknown kind.
    """
    if kind not in ALGORITHMS:
        raise SpecError(f"unknown collective {kind!r}{nearest(kind, ALGORITHMS)}")
    if not spans:
        zero = nbytes * 0.0
        return CollectiveCost(zero, zero, zero, zero, 0, ("none",))
    *within, (outermost, ways) = spans
    if not within or kind == "send":  # which crosses the outermost link only
        offers = _offers(kind, nbytes, outermost, ways)
    else:
        everyone = product([span.ways for span in spans])
        flat = _offers(kind, nbytes, outermost, everyone) if outermost.topology == "switch" else []
        offers = [_hierarchical(kind, nbytes, spans), *flat]
    best = _fastest(offers)
    if within and isinstance(ways, np.ndarray):  # an element may not reach the outermost level
        best = _where(ways > 1, best, collective(kind, nbytes, within))
    return best


def algorithm_name(cost: CollectiveCost) -> str:
    """Return the name of the fastest algorithm of a scalar cost."""
    return cost.names[int(cost.algorithm)]


def _hierarchical(kind: str, nbytes: Number, spans: Sequence[Span]) -> CollectiveCost:
    """Work within the innermost level, and across the others."""
    (level, ways), *outer = spans
    legs = [_fastest(_offers(part, nbytes, level, ways)) for part in _INSIDE[kind]]
    share = nbytes / ways if kind in _SCATTERED else nbytes
    across = collective(kind, share, outer)
    legs.insert(0 if kind in ("all_gather", "broadcast") else 1, across)
    return _sum(legs)


def _sum(legs: Sequence[CollectiveCost]) -> CollectiveCost:
    """One leg after the other."""
    first, *others = legs
    time, latency, bandwidth, sent, index, _ = first
    for leg in others:
        time, latency = time + leg.time, latency + leg.latency_time
        bandwidth, sent = bandwidth + leg.bandwidth_time, sent + leg.sent
        index = index * len(leg.names) + leg.algorithm
    names = _joined_names(tuple(leg.names for leg in legs))
    return CollectiveCost(time, latency, bandwidth, sent, index, names)


@functools.lru_cache(maxsize=1024)  # combinations of kinds and wirings; a few in practice
def _joined_names(names: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    return tuple(f"hierarchical({'+'.join(legs)})" for legs in itertools.product(*names))


def _offers(kind: str, nbytes: Number, level: Level, n: Number) -> list[CollectiveCost]:
    """Price every algorithm that the wiring of *level* allows for *n* of its members."""
    members, usable = wiring(level, n)
    offers = []
    for algorithm in _applicable(kind, level.topology, level.in_switch_reduction):
        allowed = algorithm.allows(n)
        if not isinstance(allowed, np.ndarray) and not allowed:
            continue
        steps, volume = algorithm.cost(nbytes, members)
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
