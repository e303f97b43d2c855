"""Offers: what every algorithm takes among the members of one level, and the fastest of them.

The α-β model: steps · latency + volume / bandwidth, without contention and without the time
to add. Switches and chips on the way add a hop latency each, and circuits the time that they
take to change.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hardware.algorithms import ALGORITHMS, Algorithm
from hardware.level import Level, Span
from hardware.topology import TOPOLOGIES
from hardware.units import Number


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


def offers(
    kind: str,
    nbytes: Number,
    span: Span,
    *,
    chips: Number | None = None,
    partners: Number | None = None,
) -> list[CollectiveCost]:
    """Price every algorithm that a level allows among the members of a span.

    chips: how many take part in a flat algorithm, among all chips of the members.
    partners: how many chips each one sends to straight, among all of the other members.
    """
    level, n, apart = span
    layout = level.layout(n, apart)
    members = layout.members if chips is None else chips
    topology = TOPOLOGIES[level.topology]
    sends = nbytes > 0
    found = []
    for algorithm in applicable(kind, topology.family, level.in_switch_reduction):
        allowed = algorithm.allows(n if chips is None else chips)
        if partners is not None:
            allowed = algorithm.allows(partners + 1) & (not algorithm.forwards)
        if not isinstance(allowed, np.ndarray) and not allowed:
            continue
        steps, volume, *hops = algorithm.cost(nbytes, members)
        messages = steps if partners is None or not algorithm.step_per_partner else partners
        wait: Number = 0.0
        if hops or topology.passes or topology.rewires:
            wait = _wait(algorithm, level, messages, sum(hops) + messages * layout.hops)
        rate = level.link.bandwidth * getattr(layout, algorithm.reach)
        for name, start, step, efficiency in level.link.spoken:
            latency = (messages * step + start * (messages > 0) + wait) * sends
            bandwidth = volume / (rate * efficiency)
            names = (algorithm.name + name,)
            cost = CollectiveCost(latency + bandwidth, latency, bandwidth, volume, 0, names)
            found.append(cost if allowed is True else _only_where(cost, allowed))
    return found


def _wait(algorithm: Algorithm, level: Level, steps: Number, hops: Number) -> Number:
    """What messages wait on their way, for switches and chips to pass and circuits to change."""
    wait: Number = hops * level.link.passing
    if level.reconfiguration is not None:
        changes = 1.0 * (steps > 0) if algorithm.steady else steps
        wait = wait + changes * level.reconfiguration
    return wait


@functools.cache
def applicable(kind: str, family: str, in_switch: bool) -> tuple[Algorithm, ...]:
    return tuple(
        algorithm
        for algorithm in ALGORITHMS[kind]
        if family in algorithm.families and in_switch >= algorithm.in_switch
    )


def _only_where(cost: CollectiveCost, allowed: Any) -> CollectiveCost:
    """Make a cost infinite where an algorithm does not apply."""
    if np.all(allowed):
        return cost
    return cost._replace(time=np.where(allowed, cost.time, math.inf))


def fastest(offers: Sequence[CollectiveCost]) -> CollectiveCost:
    """Choose the least time, for each element if there are arrays."""
    if all(isinstance(offer.time, int | float) for offer in offers):
        return min(offers, key=lambda offer: offer.time)
    best, *others = offers
    for offer in others:
        best = choose(offer.time < best.time, offer, best)
    return best


def choose(condition: Any, first: CollectiveCost, second: CollectiveCost) -> CollectiveCost:
    """Take *first* where the condition holds, *second* elsewhere."""
    if not isinstance(condition, np.ndarray):
        return first if condition else second
    time, latency, bandwidth, sent = (
        np.where(condition, first[i], second[i]) for i in range(len(first) - 2)
    )
    index = np.where(condition, len(second.names) + first.algorithm, second.algorithm)
    return CollectiveCost(time, latency, bandwidth, sent, index, second.names + first.names)
