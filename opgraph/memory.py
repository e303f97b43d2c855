"""What a chip must hold: weights, KV cache, and activations at their peak."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware import Number
from opgraph.arithmetic import larger
from opgraph.graph import Block, Graph
from opgraph.sizes import Sizes


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

    An activation lives from the operator that makes it to the last that reads it. A view and an
    operator that works in place take no memory of their own. A block's repetitions are alike.
    """
    peak: Number = 0
    for index, block in enumerate(graph.blocks):
        later = {
            tensor.name
            for follower in graph.blocks[index + 1 :]
            for operator in follower.operators
            for tensor in operator.activations
        }
        peak = larger(peak, _peak(block, later, sizes))
    return peak


def _peak(block: Block, later: set[str], sizes: Sizes) -> Number:
    last = {t.name: i for i, op in enumerate(block.operators) for t in op.activations}
    forever = later | {leave for _, leave in block.carried}
    owner: dict[str, str] = {}
    alive: dict[str, Number] = {}
    peak: Number = 0
    for tensor in (t for op in block.operators for t in op.activations):
        made = any(tensor.name == o.name for op in block.operators for o in op.outputs)
        if not made:
            alive[tensor.name] = tensor.nbytes(sizes)
    for index, operator in enumerate(block.operators):
        for position, tensor in enumerate(operator.outputs):
            if operator.in_place:
                source = operator.activations[min(position, len(operator.activations) - 1)].name
                owner[tensor.name] = owner.get(source, source)
            else:
                alive[tensor.name] = tensor.nbytes(sizes)
        peak = larger(peak, sum(alive.values()))
        for name in list(alive):
            names = {name, *(alias for alias, whose in owner.items() if whose == name)}
            if not names & forever and all(last.get(n, -1) <= index for n in names):
                del alive[name]
    return peak
