"""Routing: how many rows go to the experts of a chip, and to how many of them."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardware import Number
from opgraph.sizes import Axes, Sizes


class Routing(NamedTuple):
    """Who the rows go to: *experts*, of which a token chooses *topk*, with Zipf's *skew*.

    The experts and *redundant* copies of the most popular ones are dealt out to *parts* chips.
    """

    experts: int
    topk: int
    skew: Number
    parts: Number
    redundant: Number = 0


def routing(sizes: Sizes, topk: str, experts: str, axes: Axes) -> Routing:
    """The routing of rows along *topk* to *experts*, which are split over *axes*."""
    redundant = sizes.numbers.get("redundant", 0)
    count = int(np.max(sizes[experts] - redundant))
    return Routing(count, int(sizes[topk]), sizes["skew"], sizes.ways(axes), redundant)


def popularity(experts: int, topk: int, skew: float) -> NDArray[np.float64]:
    """The chance of each expert to be among a token's *topk*, most popular first.

    Proportional to Zipf's law (1/rank^skew; 0: all equal), as far as no chance exceeds 1; what is
    above goes to the others, so that the chances add up to *topk*.
    """
    weights = np.arange(1, experts + 1, dtype=float) ** -skew
    for certain in range(topk):
        rest = weights[certain:] * (topk - certain) / weights[certain:].sum()
        if rest[0] <= 1:
            return np.concatenate([np.ones(certain), rest])
    return np.concatenate([np.ones(topk), np.zeros(experts - topk)])


@lru_cache(maxsize=256)
def slots(experts: int, topk: int, skew: float, redundant: int) -> NDArray[np.float64]:
    """The chance of each copy of an expert to get a token's row, most popular first.

    A further copy goes to the expert whose copies have most to do, which then share it equally
    (EPLB, DeepSeek 2025).
    """
    chances = popularity(experts, topk, skew)
    copies = np.ones(experts)
    for _ in range(redundant):
        copies[np.argmax(chances / copies)] += 1
    each = np.repeat(chances / copies, copies.astype(int))
    return np.sort(each)[::-1]


def touched_experts(
    experts: int, topk: int, skew: Number, parts: Number, tokens: Number, redundant: Number = 0
) -> Number:
    """Experts that at least one of *tokens* is routed to, on the busiest of *parts* chips.

    The expected number. Tokens choose independently: Σₑ 1 − (1 − pₑ)^tokens over the chip's
    experts; with equal chances E(1 − (1 − K/E)^tokens)/parts (LLM-Viewer, Yuan et al. 2024).
    Experts are dealt out to the chips in turn, most popular first; so the first chip is the
    busiest. *redundant* copies of experts count as experts.
    """

    def touched(exponent: float, chips: float, more: float) -> Number:
        if not exponent and not more:
            return experts * (1 - (1 - topk / experts) ** tokens) / chips
        chances = slots(experts, topk, exponent, int(more))[:: int(chips)]
        some, count = np.unique(chances, return_counts=True)
        pairs = zip(some.tolist(), count.tolist(), strict=True)
        found: Number = sum(n * (1 - (1 - chance) ** tokens) for chance, n in pairs)
        return found

    return _by_values(touched, skew, parts, redundant)


def imbalance(
    experts: int, topk: int, skew: Number, parts: Number, redundant: Number = 0
) -> Number:
    """How many times the mean number of rows the busiest of *parts* chips has, expected."""

    def factor(exponent: float, chips: float, more: float) -> Number:
        if not exponent and not more:
            return 1.0
        mine = slots(experts, topk, exponent, int(more))[:: int(chips)]
        return float(mine.sum() * chips / topk)

    return _by_values(factor, skew, parts, redundant)


def _by_values(function: Callable[..., Number], *keys: Number) -> Number:
    """*function* of each combination of *keys*, evaluated once for each that there is."""
    if not any(isinstance(key, np.ndarray) for key in keys):
        return function(*keys)
    spread = np.stack(np.broadcast_arrays(*keys), axis=-1)
    answer: Number = np.zeros(())
    for one in np.unique(spread.reshape(-1, len(keys)), axis=0):
        here = np.all(spread == one, axis=-1)
        answer = np.where(here, function(*one.tolist()), answer)
    return answer
