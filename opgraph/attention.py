"""Attention: over all keys, over latent vectors, over chosen or compressed tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from hardware import Number
from hardware.arithmetic import product, smaller
from opgraph.sizes import Axes, Sizes
from opgraph.tensor import Tensor, as_format
from opgraph.work import Basis, Operator, Work, unlike


@dataclass(frozen=True, kw_only=True)
class Attention(Operator):
    """Fused softmax(QKᵀ)V with the KV cache: scores stay on the chip (Dao et al. 2022).

    Inputs are queries, new keys, new values and the caches. Each key and value is read once per
    KV head: the new ones as they come, the older ones from the cache, to which the new ones are
    written. A query attends to the positions up to its own (*causal*): to the last *window* of
    them, to those of its own *chunk*, or to the *chosen* many, where such a dimension is named.
    *kept* names the share of the older positions that the cache still holds.

    Where a prefill's queries are split over chips, each has all new keys, and its share of the
    pairs (queries dealt out so that all have as many, Llama 3 report, 2024, section 3.3.2). Where
    the cached positions are split, each chip attends to its own, and the results are summed.
    """

    causal: bool = True
    window: str | None = None
    chunk: str | None = None
    chosen: str | None = None
    kept: str | None = None

    kind = "attention"
    unit = "matrix"
    contracted = frozenset({"context"})
    # the inputs that are keys or values
    KEYS: ClassVar[slice] = slice(1, 3)

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        query, _, value, *_ = self.inputs
        return (self._make(self.name, (*query.dims[:-1], value.dims[-1]), query.format),)

    def wants(self, tensor: Tensor, layout: Mapping[str, Axes]) -> Mapping[str, Axes]:
        if tensor.name not in {key.name for key in self.inputs[self.KEYS]}:
            return layout
        return {dim: axes for dim, axes in layout.items() if dim != "seq"}

    def complaint(self, basis: Basis) -> str:
        _, key, value, *_ = self.inputs
        if key.dims[:-1] != value.dims[:-1]:
            return f"the values {value} do not fit the keys {key}"
        return self._mismatch((0, 1)) or self._unlike_caches(basis, key, value)

    def _mismatch(self, *pairs: tuple[int, int]) -> str:
        """What to say of queries that cannot be multiplied with keys: *pairs* of inputs."""
        for query, key in ((self.inputs[i], self.inputs[j]) for i, j in pairs):
            if query.dims[:1] != key.dims[:1] or query.dims[-1] != key.dims[-1]:
                return f"the queries {query} do not fit the keys {key}"
        return ""

    def _unlike_caches(self, basis: Basis, *new: Tensor) -> str:
        """What to say of a cache that is not as the *new* tensors that it keeps."""
        caches = [tensor for tensor in self.inputs if tensor.role == "cache"]
        places = [dim for cache in caches for dim in cache.dims if dim.startswith("context")]
        known = (dim for tensor in new for dim in tensor.dims)
        return unlike(caches, dict.fromkeys((*known, *places)), basis)

    def pairs(self, sizes: Sizes) -> Number:
        """Query–key pairs of one sequence and head on one chip: ``seq × context`` less what is
        masked.
        """
        seq, context = sizes["seq"], self.context(sizes)
        if not self.causal:
            return self._own(sizes, seq * self._keys(sizes), "seq", "context")
        pairs = self._visible(sizes, context) - self._visible(sizes, context - seq)
        return self._own(sizes, pairs, "seq", "context")

    def context(self, sizes: Sizes) -> Number:
        """Positions that are there to attend to: the new ones, and what is kept of the older."""
        seq, context = sizes["seq"], sizes["context"]
        return context if self.kept is None else seq + (context - seq) * sizes[self.kept]

    def keys(self, sizes: Sizes) -> Number:
        """Positions of which at least one query needs the key, on one chip."""
        return self._own(sizes, self._keys(sizes), "context")

    def _own(self, sizes: Sizes, count: Number, *dims: str) -> Number:
        """A chip's part of *count*, where *dims* are split."""
        ways = product(sizes.ways(self.layout.get(dim, ())) for dim in dims)
        return count if isinstance(ways, int) and ways == 1 else count / ways

    def _keys(self, sizes: Sizes) -> Number:
        """Positions of which at least one query needs the key."""
        seq, context = sizes["seq"], self.context(sizes)
        if self.window is not None:
            return smaller(context, seq + sizes[self.window] - 1)
        if self.chunk is not None:
            chunk = sizes[self.chunk]
            return context - (context - seq) // chunk * chunk
        if self.chosen is not None:
            return smaller(context, seq * sizes[self.chosen])
        return context

    def _visible(self, sizes: Sizes, length: Number) -> Number:
        """Pairs of the first *length* queries: Σ min(i, limit) for i = 1 … length."""
        if self.chunk is not None:
            chunk = sizes[self.chunk]
            full, rest = length // chunk, length % chunk
            return full * chunk * (chunk + 1) / 2 + rest * (rest + 1) / 2
        limit = self.window or self.chosen
        near = length if limit is None else smaller(length, sizes[limit])
        return near * (near + 1) / 2 + (length - near) * near

    def shape(self, sizes: Sizes) -> dict[str, Number]:
        """``batch seq context heads kv_heads head_dim value_dim pairs keys`` on one chip."""
        query, key, value, *_ = self.inputs
        heads, head_dim = query.dims[-2:]
        seq, pairs = self.size(sizes, "seq"), self.pairs(sizes)
        return {
            "batch": self.size(sizes, *query.dims[:-3]),
            "seq": seq,
            "context": self.context(sizes),
            "heads": self.size(sizes, heads),
            "kv_heads": self.size(sizes, key.dims[-2]),
            "head_dim": self.size(sizes, head_dim),
            "value_dim": self.size(sizes, value.dims[-1]),
            "pairs": pairs,
            "keys": self.keys(sizes),
        }

    def flop(self, sizes: Sizes) -> Number:
        query, _, value, *_ = self.inputs
        rows = self.size(sizes, *query.dims[:-3], query.dims[-2])
        width = self.size(sizes, query.dims[-1]) + self.size(sizes, value.dims[-1])
        return 2 * rows * self.pairs(sizes) * width

    def work(self, sizes: Sizes) -> Work:
        fresh = sum(tensor.nbytes(sizes) for tensor in self.activations)
        position = sum(
            product(
                sizes.local(dim, axes)
                for dim, axes in cache.layout.items()
                if not dim.startswith("context")
            )
            * cache.format.nbytes
            for cache in self.inputs
            if cache.role == "cache"
        )
        old = self._own(sizes, self._keys(sizes) - sizes["seq"], "context")
        # each chip stores its part of the new positions, whether they or the cached are split
        new = self._own(sizes, sizes["seq"], "seq", "context")
        written = self.outputs[0].nbytes(sizes) + position * new
        return Work(self.flop(sizes), fresh + position * old, written)


@dataclass(frozen=True, kw_only=True)
class AbsorbedAttention(Attention):
    """Attention of all heads to the latent cache, which is key and value (DeepSeek-V2, 2024).

    Inputs are the queries in the latent space and their rotary part, the new latents and the
    rotary part of their keys, what an indexer chose if there is one, and the cache. A latent is
    read once for all heads and serves as key and as value.
    """

    KEYS = slice(2, 4)

    def complaint(self, basis: Basis) -> str:
        return self._mismatch((0, 2), (1, 3)) or self._unlike_caches(basis, *self.inputs[2:4])

    def flop(self, sizes: Sizes) -> Number:
        query, rotary, value, *_ = self.inputs
        rows = self.size(sizes, *query.dims[:-3], query.dims[-2])
        width = self.size(sizes, query.dims[-1]) + self.size(sizes, rotary.dims[-1])
        return 2 * rows * self.pairs(sizes) * (width + self.size(sizes, value.dims[-1]))


@dataclass(frozen=True, kw_only=True)
class DecompressedAttention(Attention):
    """Attention with a key and a value per head, decompressed from the latents.

    Inputs are queries and their rotary part, keys, the rotary part that all heads' keys share,
    and values, for every token of the context; then what an indexer chose, if there is one. Each
    head reads its keys whole, the shared part too; there is no cache but that of the latents.
    """

    contracted = frozenset[str]()
    whole = frozenset({"context"})
    KEYS = slice(2, 5)

    def complaint(self, basis: Basis) -> str:
        return self._mismatch((0, 2), (1, 3))

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        query, value = self.inputs[0], self.inputs[4]
        return (self._make(self.name, (*query.dims[:-1], value.dims[-1]), query.format),)

    def flop(self, sizes: Sizes) -> Number:
        query = self.inputs[0]
        rows = self.size(sizes, *query.dims[:-3], query.dims[-2])
        return 2 * rows * self.pairs(sizes) * self._width(sizes)

    def work(self, sizes: Sizes) -> Work:
        queries = sum(tensor.nbytes(sizes) for tensor in (*self.inputs[:2], *self.inputs[5:]))
        key = self.inputs[2]
        position = self.size(sizes, key.dims[0], key.dims[-2]) * key.format.nbytes
        keys = self.keys(sizes) * position * self._width(sizes)
        return Work(self.flop(sizes), queries + keys, self.outputs[0].nbytes(sizes))

    def _width(self, sizes: Sizes) -> Number:
        """Numbers of one head's key and value."""
        return sum(self.size(sizes, tensor.dims[-1]) for tensor in self.inputs[2:5])


@dataclass(frozen=True, kw_only=True)
class Append(Operator):
    """Write new latents to the cache; what comes out is the cache in its parts.

    Inputs are the parts for the new tokens, then the cache.
    """

    kind = "cache"
    in_place = True
    whole = frozenset({"seq", "context"})

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        cache = self.inputs[-1]
        return tuple(
            self._make(f"{part.name}.all", (*cache.dims[:-1], part.dims[-1]), cache.format)
            for part in self.activations
        )

    def work(self, sizes: Sizes) -> Work:
        new = sum(tensor.nbytes(sizes) for tensor in self.activations)
        written = sum(tensor.numel(sizes) for tensor in self.activations)
        return Work(0, new, written * self.inputs[-1].format.nbytes)


@dataclass(frozen=True, kw_only=True)
class Choose(Attention):
    """Score every key with a few narrow heads, and choose the *best* many for each query.

    The lightning indexer of DeepSeek-V3.2 (2025), equation 1. Inputs are queries, new keys, the
    heads' weights if there are any, and the cache of keys; what comes out are positions. A key
    stands for *ratio* tokens. The scores are written in 32 bits and read again, in pieces: they
    are never whole in memory.
    """

    best: str
    ratio: int = 1

    kind = "index"
    contracted = frozenset[str]()
    whole = frozenset({"context"})
    KEYS = slice(1, 2)
    SCORE: ClassVar[float] = as_format("fp32").nbytes
    # rectify, weigh, sum over the heads
    FLOP_PER_SCORE: ClassVar[int] = 3

    def complaint(self, basis: Basis) -> str:
        return self._mismatch((0, 1)) or self._unlike_caches(basis, self.inputs[1])

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        dims = (*self.inputs[0].dims[:-2], self.best)
        return (self._make(self.name, dims, as_format("int32")),)

    def scores(self, sizes: Sizes) -> Number:
        """Pairs of a query and a key, of all sequences."""
        return self.size(sizes, self.inputs[0].dims[0]) * self.pairs(sizes) / self.ratio

    def flop(self, sizes: Sizes) -> Number:
        heads, dim = (self.size(sizes, name) for name in self.inputs[0].dims[-2:])
        return self.scores(sizes) * heads * (2 * dim + self.FLOP_PER_SCORE)

    def work(self, sizes: Sizes) -> Work:
        key, cache = self.inputs[1], self.inputs[-1]
        old = (sizes["context"] - sizes["seq"]) // self.ratio
        position = self.size(sizes, key.dims[0], key.dims[-1]) * cache.format.nbytes
        fresh = sum(tensor.nbytes(sizes) for tensor in self.activations)
        scores = self.scores(sizes) * self.SCORE
        written = self.outputs[0].nbytes(sizes) + key.numel(sizes) * cache.format.nbytes
        return Work(self.flop(sizes), fresh + old * position + scores, written + scores)


@dataclass(frozen=True, kw_only=True)
class CompressedAttention(Attention):
    """Attention to the last tokens and to compressed groups of *ratio* tokens (DeepSeek-V4, 2026).

    Inputs are queries, the new keys, the new compressed keys if there is a *ratio*, what an
    indexer chose of these, further weights, and the caches: the last *window* tokens, then the
    compressed ones. A key is its own value, and all heads share it. *best* limits how many
    compressed keys a query attends to.
    """

    ratio: int = 0
    best: str | None = None

    contracted = frozenset[str]()
    whole = frozenset({"seq", "context"})

    def complaint(self, basis: Basis) -> str:
        return self._mismatch((0, 1)) or self._unlike_caches(basis, self.inputs[1])

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        query = self.inputs[0]
        return (self._make(self.name, query.dims, query.format),)

    def groups(self, sizes: Sizes) -> Number:
        """Query–group pairs of one sequence and head, whole groups counted."""
        if not self.ratio:
            return 0
        seq, context = self.size(sizes, "seq"), self.size(sizes, "context")
        return self._grouped(sizes, context) - self._grouped(sizes, context - seq)

    def _grouped(self, sizes: Sizes, length: Number) -> Number:
        """Σ min(⌊i/ratio⌋, best) for i = 1 … length."""
        full, rest = length // self.ratio, length % self.ratio
        near = full if self.best is None else smaller(full, sizes[self.best])
        # each number of groups is seen by ratio queries, the last by those of the rest
        before = near * (near - 1) / 2 + (full - near) * near
        return self.ratio * before + near * (rest + 1)

    def flop(self, sizes: Sizes) -> Number:
        rows = self.size(sizes, *self.inputs[0].dims[:-3], self.inputs[0].dims[-2])
        width = self.size(sizes, self.inputs[0].dims[-1])
        # product with the key as key and as value
        return 2 * 2 * rows * (self.pairs(sizes) + self.groups(sizes)) * width

    def work(self, sizes: Sizes) -> Work:
        seq = self.size(sizes, "seq")
        key = self.inputs[1]
        position = self.size(sizes, key.dims[0], key.dims[-1])
        recent, *compressed = (tensor for tensor in self.inputs if tensor.role == "cache")
        fresh = sum(tensor.nbytes(sizes) for tensor in self.inputs if tensor.role != "cache")
        old = (self.keys(sizes) - seq) * position * recent.format.nbytes
        written = seq * position * recent.format.nbytes
        for cache in compressed:
            old += self._seen(sizes) * position * cache.format.nbytes
            written += self.inputs[2].numel(sizes) * cache.format.nbytes
        return Work(self.flop(sizes), fresh + old, written + self.outputs[0].nbytes(sizes))

    def _seen(self, sizes: Sizes) -> Number:
        """Groups of which at least one query needs the key."""
        groups = self.size(sizes, "context") // self.ratio
        if self.best is None:
            return groups
        return smaller(groups, self.size(sizes, "seq") * sizes[self.best])


@dataclass(frozen=True, kw_only=True)
class Compress(Operator):
    """A key for each group of tokens: their values weighted by a softmax of their gates.

    Inputs are values and gates side by side, what is added to the gates by the place in the
    group, and the weight of the norm that follows. *groups* is the dimension of the result.
    """

    groups: str

    kind = "compress"
    whole = frozenset({"seq"})
    # place, exponential, sum, quotient, product, sum for each value
    FLOP_PER_ELEMENT: ClassVar[int] = 6

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        mixed, _, norm = self.inputs
        dims = (mixed.dims[0], self.groups, norm.dims[0])
        return (self._make(self.name, dims, mixed.format),)

    def flop(self, sizes: Sizes) -> Number:
        # half of the input are values
        return self.FLOP_PER_ELEMENT * self.inputs[0].numel(sizes) / 2
