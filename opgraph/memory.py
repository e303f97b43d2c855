"""What a chip must hold: weights, KV cache, and activations at their peak."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardware import Number, SpecError
from hardware.arithmetic import larger, where
from hardware.errors import shown
from opgraph.counts import as_count, is_within
from opgraph.graph import Block, Graph, repetitions
from opgraph.operator import Collective, Operator
from opgraph.sizes import Axes, Sizes
from opgraph.tensor import Tensor

if TYPE_CHECKING:
    import pandas as pd


# tokens of a block of the KV cache: vLLM's default (Kwon et al. 2023, section 4)
BLOCK = 16
# what a weight belongs to, by the words that its dimensions are made up of; the first that fits
_CLASSES = (
    ("experts", {"experts"}),
    ("embedding and head", {"vocab", "positions"}),
    ("attention", {"heads", "kv_heads", "kv_rank", "query_rank", "index_heads"}),
    ("recurrence", {"inner", "ssm_heads", "groups", "state"}),
    ("ffn", {"ffn"}),
)
_OTHER = "norms and others"


@dataclass(frozen=True, kw_only=True)
class Reserve:
    """What of a chip's memory is not for the model, and how the KV cache is handed out.

    Parameters
    ----------
    share : part of the capacity that is left alone (vLLM's ``gpu_memory_utilization`` is the
        rest); a number or an array.
    block : tokens of a block of the KV cache; a sequence has whole blocks.
    """

    share: Number = 0.0
    block: int = BLOCK

    def __post_init__(self) -> None:
        if not is_within(self.share, 0, np.nextafter(1, 0)):
            raise SpecError(f"reserve: share is {shown(self.share)}, but must be from 0 to below 1")
        as_count("block", self.block)


@dataclass(frozen=True)
class Footprint:
    """Bytes on the fullest chip.

    Attributes
    ----------
    by_class : weights by what they belong to (``attention ffn experts …``).
    kv_cache : caches of all sequences, in whole blocks.
    activations : at the worst moment of a prefill, transfers' buffers among them.
    reserved : what is left alone.
    capacity : what the chip has.
    buffers : through which comes what is offloaded.
    offloaded : weights and caches in a farther tier.
    tier_capacity : what that has for each chip.
    """

    by_class: Mapping[str, Number]
    kv_cache: Number
    activations: Number
    reserved: Number
    capacity: Number
    buffers: Number = 0.0
    offloaded: Number = 0.0
    tier_capacity: Number = np.inf

    @property
    def weights(self) -> Number:
        """Bytes of all weights."""
        return sum(self.by_class.values())

    @property
    def total(self) -> Number:
        """Bytes needed."""
        return self.weights + self.kv_cache + self.activations + self.buffers + self.reserved

    @property
    def spare(self) -> Number:
        """Bytes left over; negative: bytes too few."""
        return self.capacity - self.total

    @property
    def fits(self) -> bool | NDArray[np.bool_]:
        """Whether it fits."""
        fits: Any = np.less_equal(self.total, self.capacity)
        fits = fits & np.less_equal(self.offloaded, self.tier_capacity)
        return fits if np.ndim(fits) else bool(fits)

    @property
    def parts(self) -> dict[str, Number]:
        """What takes what, in bytes; adds up to the capacity."""
        weights = {f"weights: {name}": nbytes for name, nbytes in self.by_class.items()}
        rest = {"KV cache": self.kv_cache, "activations": self.activations}
        rest |= {"buffers": self.buffers} if np.any(self.buffers) else {}
        return {**weights, **rest, "reserved": self.reserved, "spare": self.spare}

    def to_frame(self) -> "pd.DataFrame":
        """What takes what: ``part GB share``, one design point only."""
        import pandas as pd

        if np.ndim(self.total):
            raise SpecError("this footprint holds many design points: pick one with report.at()")
        giga = 1e9
        rows = [
            {"part": name, "GB": float(nbytes) / giga, "share": float(nbytes / self.capacity)}
            for name, nbytes in self.parts.items()
        ]
        return pd.DataFrame(rows)

    def fuller(self, other: "Footprint") -> "Footprint":
        """The fuller one of two, point by point."""
        mine = self.total >= other.total
        if not isinstance(mine, np.ndarray):
            return self if mine else other
        classes = dict.fromkeys((*self.by_class, *other.by_class))
        weights = {
            name: where(mine, self.by_class.get(name, 0.0), other.by_class.get(name, 0.0))
            for name in classes
        }
        names = ("kv_cache", "activations", "buffers", "offloaded")
        rest = {name: where(mine, getattr(self, name), getattr(other, name)) for name in names}
        return replace(self, by_class=weights, **rest)


def weight_class(tensor: Tensor, graph: Graph) -> str:
    """What a weight of *graph* belongs to."""
    words = {word.partition(".")[0] for dim in tensor.dims for word in graph.basis(dim)}
    return next((name for name, those in _CLASSES if words & those), _OTHER)


def peak_activations(graph: Graph, sizes: Sizes) -> Number:
    """Bytes of activations alive at once, at the worst moment of a step.

    An activation lives from the operator that makes it to the last that reads it; what comes from
    outside is there from the beginning. What works in place, views included, owns no memory: its
    results keep alive what they lie in. A collective among a single chip only hands on its input.
    """
    tensors, guards, moments = _moments(graph)
    nbytes = [tensor.nbytes(sizes) for tensor in tensors]
    copied = [sizes.ways(axes) > 1 for axes in guards]
    owned = {
        (i, g): nbytes[i] if g < 0 else nbytes[i] * copied[g]
        for i, g in {(i, g) for moment in moments for i, g, _ in moment}
    }
    peaks = (sum(owned[i, g] * count for i, g, count in moment) for moment in moments)
    none: Number = 0
    return reduce(larger, peaks, none)


Moment = tuple[tuple[int, int, int], ...]
"""What is alive at once: indices of a tensor and of a guard (-1: none), and how many like it."""


Moments = tuple[tuple[Tensor, ...], tuple[Axes, ...], tuple[Moment, ...]]
"""Tensors, guards, and the moments that may be the worst."""


@lru_cache(maxsize=1024)
def _moments(graph: Graph) -> Moments:
    """Those of *graph*, which are those of all that differ only in how often blocks repeat."""
    made = tuple(operator.outputs for operator, _ in graph.operators)
    return _moments_of(_shortened(graph.blocks), made, graph.inputs)


@lru_cache(maxsize=1024)
def _moments_of(
    blocks: tuple[Block, ...], made: tuple[tuple[Tensor, ...], ...], inputs: tuple[Tensor, ...]
) -> Moments:
    """The tensors of a graph, alike ones once, and the moments that may be the worst.

    *made*, what each operator makes, tells apart those that differ in their layout alone.
    What a transfer makes is no copy where the chip is alone along the axes that are its *guard*,
    as long as what it was made from is alive. Of the numbers nothing need be known: of all moments
    those are left out at which nothing is alive that is not also alive at another one.
    """
    ran = list(_executions(blocks))
    buffers, lives, owner = _lives(inputs, ran)
    sources = {
        made[0]: (owner[read[0]], op.axes)
        for op, read, made in ran
        if isinstance(op, Collective) and not op.in_place
    }
    alike: dict[Any, Tensor] = {}
    kinds = {name: (t.dims, t.split, t.format) for name, t in buffers.items()}
    for name, kind in kinds.items():
        alike.setdefault(kind, buffers[name])
    index = {kind: i for i, kind in enumerate(alike)}
    guards: dict[Axes, int] = {}
    found: dict[frozenset[Any], Counter[tuple[int, int]]] = {}
    alive: set[str] = set()
    for born, dead in _changes(lives, len(ran)):
        alive.update(born)
        moment: Counter[tuple[int, int]] = Counter()
        for name in alive:
            axes = _guard(name, sources, alive)
            guard = guards.setdefault(axes, len(guards)) if axes else -1
            moment[index[kinds[name]], guard] += 1
        found[frozenset(moment.items())] = moment
        alive.difference_update(dead)
    worst = tuple(
        tuple((i, g, count) for (i, g), count in moment.items())
        for moment in _undominated(list(found.values()))
    )
    return tuple(alike.values()), tuple(guards), worst


def _undominated(moments: list[Counter[tuple[int, int]]]) -> list[Counter[tuple[int, int]]]:
    """The moments at which something is alive that is not at any other one."""
    places = {key: i for i, key in enumerate({key for moment in moments for key in moment})}
    counts = np.zeros((len(moments), len(places)), int)
    for row, moment in zip(counts, moments, strict=True):
        for key, count in moment.items():
            row[places[key]] = count
    below = np.all(counts[:, None, :] <= counts[None, :, :], axis=2)
    np.fill_diagonal(below, val=False)
    return [moment for moment, some in zip(moments, below, strict=True) if not some.any()]


def _guard(name: str, sources: Mapping[str, tuple[str, Axes]], alive: set[str]) -> Axes:
    """The axes along which a chip must not be alone for *name* to be a copy; none: it is one."""
    axes: list[str] = []
    while name in sources:
        name, along = sources[name]
        axes += along
        if name in alive:
            return tuple(dict.fromkeys(axes))
    return ()


def _shortened(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """*blocks* with no more repetitions than there can be different ones.

    A tensor reaches across as many repetitions as the block carries tensors, handed from one
    carried name to the next; besides there are a first and a last repetition.
    """
    return tuple(replace(block, count=min(block.count, 2 + len(block.carried))) for block in blocks)


Execution = tuple[Operator, tuple[str, ...], tuple[str, ...]]
"""An operator, and the names of what one repetition of it reads and makes."""


def _executions(blocks: Iterable[Block]) -> Iterator[Execution]:
    """All operators of all repetitions, in order."""
    called: dict[str, str] = {}
    for block in blocks:
        names = [
            (op, [t.name for t in op.activations], [t.name for t in op.outputs])
            for op in block.operators
        ]
        for prefix in repetitions(block, called):
            for op, reads, makes in names:
                read = tuple(called.get(name, name) for name in reads)
                made = tuple(prefix + name for name in makes)
                called.update(zip(makes, made, strict=True))
                yield op, read, made


def _lives(
    inputs: Sequence[Tensor], ran: Sequence[Execution]
) -> tuple[dict[str, Tensor], dict[str, tuple[int, int]], dict[str, str]]:
    """The tensors that own memory, the first and last execution for which each is there, and in
    which of them every tensor lies.
    """
    buffers = {tensor.name: tensor for tensor in inputs}
    owner = {name: name for name in buffers}
    first = dict.fromkeys(buffers, 0)
    last: dict[str, int] = {}
    for index, (operator, read, made) in enumerate(ran):
        for place, (name, tensor) in enumerate(zip(made, operator.outputs, strict=True)):
            if operator.in_place:
                owner[name] = owner[read[min(place, len(read) - 1)]]
            else:
                buffers[name], owner[name] = tensor, name
                first[name] = last[name] = index
        last |= {owner[name]: index for name in read}
    lives = {name: (first[name], last[name]) for name in buffers if name in last}
    return buffers, lives, owner


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
