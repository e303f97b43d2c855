"""Collectives: how long chips take to exchange data over the links of a platform.

In one level, the fastest of its `offers`. Over several levels, a group works flat over the
outermost one, or level by level: whichever is faster.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from hardware.algorithms import ALGORITHMS
from hardware.arithmetic import always, ceil, floor, larger, nearest_whole, product, where
from hardware.errors import SpecError, nearest, shown
from hardware.level import Span
from hardware.offers import CollectiveCost, choose, fastest, offers
from hardware.units import Number

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
    if not always(sharing >= 1):
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
        found = offers(kind, nbytes, outermost)
    else:
        found = [_hierarchical(kind, nbytes, spans)]
        if outermost.level.family == "switched":
            everyone = nearest_whole(product([span.ways for span in spans]))
            found += offers(kind, nbytes, outermost, chips=everyone)
        if kind == "all_to_all":
            found.append(_straight(nbytes, spans))
    best = fastest(found)
    if within and isinstance(outermost.ways, np.ndarray):  # an element may not reach so far
        reaches = outermost.ways > 1
        nearer = [span._replace(ways=where(reaches, 1, span.ways)) for span in within]
        best = choose(reaches, best, _best(kind, nbytes, nearer))
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
    legs = [fastest(offers(part, nbytes, filled)) for part in _INSIDE[kind]]
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
        legs.append(fastest(offers("all_to_all", held, filled, partners=share * everyone)))
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
        slowest = choose(leg.time > slowest.time, leg, slowest)
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
