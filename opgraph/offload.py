"""Offloading: weights and caches that lie in a farther tier of memory, fetched ahead of their use.

While a layer runs, what the next one needs of the tier is copied into the second of two buffers, on
the copy stream; a layer waits until its own has come (FlexGen, Sheng et al. 2023, section 4; Zero-
Inference, Aminabadi et al. 2022). A step is as long as the slower of computing and copying.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hardware import Number, Platform, SpecError, Tier, load_tier
from hardware.arithmetic import larger
from hardware.errors import shown
from opgraph.counts import is_within
from opgraph.graph import Block, Graph
from opgraph.operator import Lookup
from opgraph.sizes import Sizes
from opgraph.tensor import Format, Tensor
from opgraph.work import Operator, Work

if TYPE_CHECKING:
    from opgraph.stages import Piece

# of a buffer that is used and one that is filled
BUFFERS = 2
# what a fetch makes that others wait for: nothing that takes memory
_DONE = Format(0, name="done")


@dataclass(frozen=True, kw_only=True)
class Offload:
    """What lies in a farther tier; shares from 0 to 1, each a number or an array.

    Parameters
    ----------
    weights : share of each layer's weights; tables that are looked up in stay on the chip.
    kv_cache : share of each layer's cache: a decode step fetches it, a prefill writes it.
    tier : a tier of the platform or of the catalogue (``host-pcie5``); the platform's nearest if
        empty.

    Raises
    ------
    SpecError : a share that is none.
    """

    weights: Number = 0.0
    kv_cache: Number = 0.0
    tier: str = ""

    def __post_init__(self) -> None:
        for name in ("weights", "kv_cache"):
            share = getattr(self, name)
            if not is_within(share, 0, 1):
                raise SpecError(f"offload: {name} is {shown(share)}, but must be from 0 to 1")
        if not isinstance(self.tier, str):
            raise SpecError(f"offload: tier is {shown(self.tier)}, but must be a name")

    @property
    def is_used(self) -> bool:
        """Whether anything is offloaded."""
        return bool(np.any(self.weights) or np.any(self.kv_cache))

    def find_tier(self, platform: Platform) -> Tier:
        """The tier of *platform* that is meant.

        Raises
        ------
        SpecError : there is none of that name, or none at all.
        """
        known = {tier.name: tier for tier in platform.tiers}
        if not self.tier and not known:
            raise SpecError(
                f"{platform.name} names no memory beyond that of its chips: say which, such as "
                "tier='host-pcie5'"
            )
        return (known.get(self.tier) or load_tier(self.tier)) if self.tier else platform.tiers[0]


@dataclass(frozen=True, kw_only=True)
class Fetch(Operator):
    """Copy what the next repetition of a block needs from the farther tier.

    Inputs are the block's weights and caches; their shares are the dimensions
    ``offloaded_weights`` and ``offloaded_kv``.
    """

    SHARES: ClassVar[dict[str, str]] = {"weight": "offloaded_weights", "cache": "offloaded_kv"}

    kind = "fetch"
    stream = "copy"

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        return (Tensor(self.name, (), _DONE),)

    def work(self, sizes: Sizes) -> Work:
        return Work(sent=sum(sizes[self.SHARES[t.role]] * t.nbytes(sizes) for t in self.inputs))


@lru_cache(maxsize=1024)
def offloaded(piece: "Piece") -> "Piece":
    """*piece* with a fetch in each block that has weights or caches."""
    blocks = [_with_fetch(block) for block in piece.graph.blocks]
    entries = tuple(
        Tensor(entry, (), _DONE)
        for block in blocks
        for entry, leave in block.carried
        if leave == f"{block.name}.fetch"
    )
    graph = replace(piece.graph, blocks=tuple(blocks), inputs=(*piece.graph.inputs, *entries))
    return replace(piece, graph=graph)


def fetched(graph: Graph) -> tuple[Tensor, ...]:
    """What the fetches of *graph* bring."""
    fetches = (op for op, _ in graph.operators if isinstance(op, Fetch))
    return tuple(tensor for op in fetches for tensor in op.inputs)


def held(operators: Iterable[Operator]) -> tuple[Tensor, ...]:
    """The weights and caches of *operators*, but for tables that are looked up in."""
    found = {
        tensor.name: tensor
        for op in operators
        if not isinstance(op, Lookup)
        for tensor in op.inputs
        if tensor.role != "activation"
    }
    return tuple(found.values())


def buffer(graph: Graph, sizes: Sizes) -> Number:
    """Bytes of the buffers through which the largest block's share comes."""
    fetches = [op.work(sizes).sent for op, _ in graph.operators if isinstance(op, Fetch)]
    most: Number = 0
    for sent in fetches:
        most = larger(most, sent)
    return BUFFERS * most


def _with_fetch(block: Block) -> Block:
    tensors = held(block.operators)
    if not tensors:
        return block
    made = {tensor.name for op in block.operators for tensor in op.outputs}
    # the other buffer is free when the repetition before this one is done
    begins = {t.name for op in block.operators for t in op.activations} - made
    ready, name = f"{block.name}.fetched", f"{block.name}.fetch"
    fetch = Fetch(name=name, inputs=tensors, awaits=tuple(sorted(begins)))
    operators = tuple(replace(op, awaits=(*op.awaits, ready)) for op in block.operators)
    carried = (*block.carried, (ready, name))
    return replace(block, operators=(fetch, *operators), carried=carried)
