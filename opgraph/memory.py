"""What a chip must hold: weights, KV cache, and activations at their peak."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware import Number
from opgraph.arithmetic import larger, where
from opgraph.graph import Graph
from opgraph.operator import Collective, Operator
from opgraph.sizes import Axes, Sizes
from opgraph.tensor import Tensor


@dataclass(frozen=True)
class Footprint:
    """Bytes on the fullest chip.

    Attributes
    ----------
    weights, kv_cache, activations : what takes the memory.
    capacity : what the chip has.
    """

    weights: Number
    kv_cache: Number
    activations: Number
    capacity: Number

    @property
    def total(self) -> Number:
        """Bytes needed."""
        return self.weights + self.kv_cache + self.activations

    def fuller(self, other: "Footprint") -> "Footprint":
        """The fuller one of two, point by point."""
        mine = self.total >= other.total
        pick = partial(where, mine) if isinstance(mine, np.ndarray) else None
        if pick is None:
            return self if mine else other
        names = ("weights", "kv_cache", "activations")
        chosen = {name: pick(getattr(self, name), getattr(other, name)) for name in names}
        return replace(self, **chosen)

    @property
    def spare(self) -> Number:
        """Bytes left over; negative: bytes too few."""
        return self.capacity - self.total

    @property
    def fits(self) -> bool | NDArray[np.bool_]:
        """Whether it fits."""
        fits: Any = self.total <= self.capacity
        return fits if np.ndim(fits) else bool(fits)


def peak_activations(graph: Graph, sizes: Sizes) -> Number:
    """Bytes of activations alive at once, at the worst moment of a step.

    An activation lives from the operator that makes it to the last that reads it; what comes from
    outside is there from the beginning. What works in place, views included, owns no memory: its
    results keep alive what they lie in. A collective among a single chip only hands on its input.
    """
    peak: Number = 0
    for alone, here in _company(sizes.degrees, _transfer_axes(graph)):
        tensors, moments = _moments(graph, alone)
        nbytes = [tensor.nbytes(sizes) for tensor in tensors]
        worst: Number = 0
        for moment in moments:
            worst = larger(worst, sum(count * nbytes[i] for i, count in moment))
        peak = where(here, worst, peak)
    return peak


@lru_cache(maxsize=1024)
def _transfer_axes(graph: Graph) -> Axes:
    """The axes of the plan along which something is transferred into a buffer."""
    axes = (op.axes for op, _ in graph.operators if isinstance(op, Collective) and not op.in_place)
    return tuple(dict.fromkeys(axis for group in axes for axis in group))


def _company(degrees: Mapping[str, Number], axes: Axes) -> list[tuple[frozenset[str], Any]]:
    """Each set of *axes* along which a chip is alone at some point, and at which points."""
    cases: list[tuple[frozenset[str], Any]] = [(frozenset(), True)]
    for axis in axes:
        alone: Any = np.equal(degrees.get(axis, 1), 1)
        cases = [
            (single | also, here & side)
            for single, here in cases
            for also, side in ((frozenset({axis}), alone), (frozenset[str](), ~alone))
            if np.any(here & side)
        ]
    return cases


Moment = tuple[tuple[int, int], ...]
"""What is alive at once: indices of tensors, and how many like each of them."""


@lru_cache(maxsize=1024)
def _moments(graph: Graph, alone: frozenset[str]) -> tuple[tuple[Tensor, ...], tuple[Moment, ...]]:
    """The tensors of *graph*, alike ones once, and the moments that may be the worst.

    The chip is alone along the axes *alone*. Of the numbers nothing need be known: of all moments
    those are left out at which nothing is alive that is not also alive at another one.
    """
    operators = [op for op, _ in _shortened(graph).unroll().operators]
    buffers, lives = _lives(graph.inputs, operators, alone)
    kinds = {name: (t.dims, t.split, t.format) for name, t in buffers.items()}
    alike = {kind: buffers[name] for name, kind in kinds.items()}
    index = {kind: i for i, kind in enumerate(alike)}
    found: dict[Moment, Counter[int]] = {}
    alive: Counter[int] = Counter()
    for names, dead in _changes(lives, len(operators)):
        alive.update(index[kinds[name]] for name in names)
        found[tuple(sorted(alive.items()))] = alive.copy()
        alive.subtract(index[kinds[name]] for name in dead)
        alive = +alive
    worst = (m for m, here in found.items() if not any(here < other for other in found.values()))
    return tuple(alike.values()), tuple(worst)


def _shortened(graph: Graph) -> Graph:
    """*graph* with no more repetitions than there can be different ones.

    A tensor reaches across as many repetitions as the block carries tensors, handed from one
    carried name to the next; besides there are a first and a last repetition.
    """
    blocks = (
        replace(block, count=min(block.count, 2 + len(block.carried))) for block in graph.blocks
    )
    return replace(graph, blocks=tuple(blocks))


def _lives(
    inputs: Sequence[Tensor], operators: Sequence[Operator], alone: frozenset[str]
) -> tuple[dict[str, Tensor], dict[str, tuple[int, int]]]:
    """The tensors that own memory, and the first and last operator for which each is there."""
    buffers = {tensor.name: tensor for tensor in inputs}
    owner = {name: name for name in buffers}
    first = dict.fromkeys(buffers, 0)
    last: dict[str, int] = {}
    for index, operator in enumerate(operators):
        for place, tensor in enumerate(operator.outputs):
            if _is_in_place(operator, alone):
                source = operator.activations[min(place, len(operator.activations) - 1)]
                owner[tensor.name] = owner[source.name]
            else:
                buffers[tensor.name], owner[tensor.name] = tensor, tensor.name
                first[tensor.name] = last[tensor.name] = index
        last |= {owner[tensor.name]: index for tensor in operator.activations}
    return buffers, {name: (first[name], last[name]) for name in buffers if name in last}


def _is_in_place(operator: Operator, alone: frozenset[str]) -> bool:
    return operator.in_place or (isinstance(operator, Collective) and alone >= {*operator.axes})


def _changes(
    lives: Mapping[str, tuple[int, int]], steps: int
) -> Iterator[tuple[list[str], list[str]]]:
    """What begins to live at each step, and what lives no longer after it."""
    born: list[list[str]] = [[] for _ in range(steps)]
    dead: list[list[str]] = [[] for _ in range(steps)]
    for name, (first, last) in lives.items():
        born[first].append(name)
        dead[last].append(name)
    return zip(born, dead, strict=True)
