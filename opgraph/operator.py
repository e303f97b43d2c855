"""Operators: what each reads, what it writes and how much work that is.

To add one, subclass `Operator`: say what comes out (`outputs`) and how much arithmetic that is
(`flop`); override `work` where the traffic is not simply that of its tensors. How it is sharded
follows from the names of its dimensions; say what it contracts (`contracted`) and which
dimensions it needs whole (`whole`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

from hardware import Number
from opgraph.arithmetic import product, smaller
from opgraph.sizes import Axes, Sizes
from opgraph.tensor import Format, Tensor, as_format

CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"]


@dataclass(frozen=True, slots=True)
class Work:
    """What an operator asks of one chip; adds up and scales.

    Attributes
    ----------
    flop : floating-point operations (a multiply–add is two).
    read, written : bytes from and to the chip's memory.
    sent : bytes of the buffer that a chip brings to a collective.
    """

    flop: Number = 0
    read: Number = 0
    written: Number = 0
    sent: Number = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.flop + other.flop,
            self.read + other.read,
            self.written + other.written,
            self.sent + other.sent,
        )

    def __mul__(self, factor: Number) -> "Work":
        return Work(
            self.flop * factor, self.read * factor, self.written * factor, self.sent * factor
        )

    @property
    def moved(self) -> Number:
        """Bytes through the chip's memory."""
        return self.read + self.written

    @property
    def intensity(self) -> Number:
        """FLOP per byte of memory traffic."""
        return self.flop / self.moved


@dataclass(frozen=True, kw_only=True)
class Operator(ABC):
    """A vertex of the graph: named inputs in, named outputs out.

    *layout* says, in a sharded graph, which axes split each dimension that it runs over.

    What a kind of operator is, besides: the *stream* it runs on and the *unit* that computes it;
    *whole*: dimensions it needs whole; *linear*: a sum of partial inputs may wait until after it;
    *in_place*: its outputs take no memory of their own; *is_view*: it costs nothing.
    """

    name: str
    inputs: tuple[Tensor, ...]
    layout: Mapping[str, Axes] = field(default_factory=dict, compare=False, repr=False)

    kind: ClassVar[str]
    stream: ClassVar[Literal["compute", "communication", "copy"]] = "compute"
    unit: ClassVar[Literal["matrix", "vector"]] = "vector"
    whole: ClassVar[frozenset[str]] = frozenset()
    in_place: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    is_view: ClassVar[bool] = False

    @property
    @abstractmethod
    def outputs(self) -> tuple[Tensor, ...]:
        """What comes out; the first is named after the operator."""

    @property
    def contracted(self) -> frozenset[str]:
        """Dimensions summed over: where they are split, the result is partial."""
        return frozenset()

    @property
    def follows(self) -> Mapping[str, str]:
        """Dimensions that are split as another one is, whatever they are called."""
        return {}

    def flop(self, sizes: Sizes) -> Number:
        """Floating-point operations on one chip."""
        return 0

    def work(self, sizes: Sizes) -> Work:
        """What the operator asks of one chip: every input read once, every output written once."""
        return Work(
            self.flop(sizes),
            sum(tensor.nbytes(sizes) for tensor in self.inputs),
            sum(tensor.nbytes(sizes) for tensor in self.outputs),
        )

    @property
    def dtype(self) -> str:
        """The chip's rate that the arithmetic uses: that of the first input."""
        given = self.inputs[0].format
        return given.compute or given.name

    @property
    def activations(self) -> tuple[Tensor, ...]:
        """The inputs that other operators produce."""
        return tuple(tensor for tensor in self.inputs if tensor.role == "activation")

    def size(self, sizes: Sizes, *dims: str) -> Number:
        """Product of the sizes of *dims* on one chip."""
        return product(sizes.local(dim, self.layout.get(dim, ())) for dim in dims)

    @property
    def partial(self) -> Axes:
        """The axes over whose chips the outputs have still to be summed."""
        split = [axis for dim in sorted(self.contracted) for axis in self.layout.get(dim, ())]
        passed = [axis for tensor in self.activations for axis in tensor.partial]
        return tuple(dict.fromkeys(split + passed))

    def _make(self, name: str, dims: tuple[str, ...], dtype: Format) -> Tensor:
        return Tensor(name, dims, dtype).laid_out(self.layout, self.partial)

    def __str__(self) -> str:
        inputs = ", ".join(
            tensor.name if tensor.role == "activation" else str(tensor) for tensor in self.inputs
        )
        return f"{', '.join(map(str, self.outputs))} = {self.kind}({inputs})"


@dataclass(frozen=True, kw_only=True)
class Lookup(Operator):
    """Rows of a table (vocab × model) by index: an embedding.

    Only the rows asked for are read. A chip that holds a part of the vocabulary finds its share
    of the rows and leaves the rest to be summed from the others.
    """

    kind = "lookup"

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        index, table = self.inputs
        return (self._make(self.name, index.dims + table.dims[1:], table.format),)

    @property
    def contracted(self) -> frozenset[str]:
        return frozenset(self.inputs[1].dims[:1])

    def work(self, sizes: Sizes) -> Work:
        index, table = self.inputs
        vocab = table.dims[0]
        share = self.size(sizes, vocab) / sizes[vocab]
        rows = self.outputs[0].nbytes(sizes)
        return Work(0, index.nbytes(sizes) + rows * share, rows)


@dataclass(frozen=True, kw_only=True)
class Einsum(Operator):
    """A contraction given by names: ``"batch seq model, model ffn -> batch seq ffn"``.

    Inputs beyond those of the pattern are biases, added to the result. *dtype_out* is the
    result's format, that of the first input if not given.
    """

    pattern: str
    dtype_out: str | Format | None = None

    kind = "gemm"
    unit = "matrix"

    @cached_property
    def operands(self) -> tuple[tuple[str, ...], ...]:
        """The dimensions of each operand in the pattern."""
        return tuple(tuple(part.split()) for part in self.pattern.split("->")[0].split(","))

    @cached_property
    def result(self) -> tuple[str, ...]:
        """The dimensions of the result."""
        return tuple(self.pattern.split("->")[1].split())

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        return (
            self._make(self.name, self.result, as_format(self.dtype_out or self.inputs[0].format)),
        )

    @cached_property
    def contracted(self) -> frozenset[str]:
        return frozenset(dim for dims in self.operands for dim in dims) - set(self.result)

    @cached_property
    def roles(self) -> dict[str, tuple[str, ...]]:
        """The dimensions that make up ``batch m n k`` of the matrix product."""
        first, second = (self.operands[0], self.operands[-1])
        shared = set(first) & set(second)
        return {
            "batch": tuple(dim for dim in self.result if dim in shared),
            "m": tuple(dim for dim in self.result if dim not in second),
            "n": tuple(dim for dim in self.result if dim not in first),
            "k": tuple(dim for dim in first if dim in shared and dim not in self.result),
        }

    def shape(self, sizes: Sizes) -> dict[str, Number]:
        """``batch m n k`` on one chip: *batch* products of m×k by k×n."""
        return {role: self.size(sizes, *dims) for role, dims in self.roles.items()}

    def flop(self, sizes: Sizes) -> Number:
        biases = len(self.inputs) - len(self.operands)
        every = tuple(dict.fromkeys(dim for dims in self.operands for dim in dims))
        return 2 * self.size(sizes, *every) + biases * self.size(sizes, *self.result)


@dataclass(frozen=True, kw_only=True)
class Attention(Operator):
    """Fused softmax(QKᵀ)V with the KV cache: scores stay on the chip (Dao et al. 2022).

    Inputs are queries, new keys, new values and the caches. Each key and value is read once per
    KV head: the new ones as they come, the older ones from the cache, to which the new ones are
    written. A query attends to the positions up to its own (*causal*), to the last *window* of
    them if a window is named.
    """

    causal: bool = True
    window: str | None = None

    kind = "attention"
    unit = "matrix"
    whole = frozenset({"context"})

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        query, _, value, *_ = self.inputs
        return (self._make(self.name, (*query.dims[:-1], value.dims[-1]), query.format),)

    def pairs(self, sizes: Sizes) -> Number:
        """Query–key pairs of one sequence and head: ``seq × context`` less what is masked."""
        seq, context = self.size(sizes, "seq"), self.size(sizes, "context")
        if not self.causal:
            return seq * context
        return self._visible(sizes, context) - self._visible(sizes, context - seq)

    def keys(self, sizes: Sizes) -> Number:
        """Positions of which at least one query needs the key."""
        seq, context = self.size(sizes, "seq"), self.size(sizes, "context")
        if self.window is None:
            return context
        return smaller(context, seq + sizes[self.window] - 1)

    def _visible(self, sizes: Sizes, length: Number) -> Number:
        """Σ min(i, window) for i = 1 … length."""
        near = length if self.window is None else smaller(length, sizes[self.window])
        return near * (near + 1) / 2 + (length - near) * near

    def shape(self, sizes: Sizes) -> dict[str, Number]:
        """``batch seq context heads kv_heads head_dim value_dim pairs keys`` on one chip."""
        query, key, value, *_ = self.inputs
        heads, head_dim = query.dims[-2:]
        return {
            "batch": self.size(sizes, *query.dims[:-3]),
            "seq": self.size(sizes, "seq"),
            "context": self.size(sizes, "context"),
            "heads": self.size(sizes, heads),
            "kv_heads": self.size(sizes, key.dims[-2]),
            "head_dim": self.size(sizes, head_dim),
            "value_dim": self.size(sizes, value.dims[-1]),
            "pairs": self.pairs(sizes),
            "keys": self.keys(sizes),
        }

    def flop(self, sizes: Sizes) -> Number:
        query, _, value, *_ = self.inputs
        rows = self.size(sizes, *query.dims[:-3], query.dims[-2])
        width = self.size(sizes, query.dims[-1]) + self.size(sizes, value.dims[-1])
        return 2 * rows * self.pairs(sizes) * width

    def work(self, sizes: Sizes) -> Work:
        seq = self.size(sizes, "seq")
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
        old = self.keys(sizes) - seq
        written = self.outputs[0].nbytes(sizes) + position * seq
        return Work(self.flop(sizes), fresh + position * old, written)


@dataclass(frozen=True, kw_only=True)
class Elementwise(Operator):
    """*flop_per_element* on each element of the result: activations, sums, soft-caps.

    The result has the dimensions *dims* (those of the first input if not given): a gated
    activation folds its two halves into one.
    """

    flop_per_element: float = 1.0
    dims: str = ""

    kind = "elementwise"

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        first = self.inputs[0]
        return (self._make(self.name, tuple(self.dims.split()) or first.dims, first.format),)

    def flop(self, sizes: Sizes) -> Number:
        return self.flop_per_element * self.outputs[0].numel(sizes)


@dataclass(frozen=True, kw_only=True)
class Activation(Elementwise):
    """SiLU, GELU and the like, gated or not."""

    kind = "activation"


@dataclass(frozen=True, kw_only=True)
class Norm(Operator):
    """RMS or layer normalisation over the last dimension, with the residual sum fused into it.

    Inputs are the activation, then the residual if there is one, then weight and bias. With a
    residual, what comes out is the normalised sum and the sum.
    """

    kind = "norm"
    # square, accumulate, scale, weight: RMSNorm (Zhang & Sennrich 2019); a mean and a bias more
    # for LayerNorm are counted as the inputs they come with.
    FLOP_PER_ELEMENT: ClassVar[int] = 4

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        first, *residual = self.activations
        normed = self._make(self.name, first.dims, first.format)
        return (normed, *(self._make(f"{self.name}.sum", r.dims, r.format) for r in residual))

    def flop(self, sizes: Sizes) -> Number:
        extra = len(self.inputs) - 2
        return (self.FLOP_PER_ELEMENT + extra) * self.outputs[0].numel(sizes)


@dataclass(frozen=True, kw_only=True)
class Rotary(Operator):
    """Rotary position embedding of queries and keys, in place (Su et al. 2021)."""

    kind = "rotary"
    in_place = True
    # two products and a sum for each element
    FLOP_PER_ELEMENT: ClassVar[int] = 3

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        names = (self.name, *(f"{self.name}.{i}" for i in range(1, len(self.inputs))))
        return tuple(
            self._make(name, tensor.dims, tensor.format)
            for name, tensor in zip(names, self.inputs, strict=True)
        )

    def flop(self, sizes: Sizes) -> Number:
        return self.FLOP_PER_ELEMENT * sum(tensor.numel(sizes) for tensor in self.inputs)


@dataclass(frozen=True, kw_only=True)
class View(Operator):
    """The same data under other names: a reshape or a split. Costs nothing.

    *parts* gives each result a suffix and its dimensions.
    """

    parts: tuple[tuple[str, str], ...]

    kind = "view"
    in_place = True
    is_view = True

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        dtype = self.inputs[0].format
        return tuple(
            self._make(f"{self.name}.{suffix}" if suffix else self.name, tuple(dims.split()), dtype)
            for suffix, dims in self.parts
        )

    def work(self, sizes: Sizes) -> Work:
        return Work()


@dataclass(frozen=True, kw_only=True)
class Last(Operator):
    """The last position of each sequence: all that the language-model head needs."""

    kind = "select"
    whole = frozenset({"seq"})

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        first = self.inputs[0]
        kept = tuple(dim for dim in first.dims if dim != "seq")
        return (self._make(self.name, kept, first.format),)

    def work(self, sizes: Sizes) -> Work:
        nbytes = self.outputs[0].nbytes(sizes)
        return Work(0, nbytes, nbytes)


@dataclass(frozen=True, kw_only=True)
class Sample(Operator):
    """Softmax over the vocabulary and a draw from it."""

    kind = "sample"
    whole = frozenset({"vocab"})
    # maximum, difference, exponential, sum, quotient for each logit
    FLOP_PER_ELEMENT: ClassVar[int] = 5

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        return (self._make(self.name, self.inputs[0].dims[:-1], as_format("int32")),)

    def flop(self, sizes: Sizes) -> Number:
        return self.FLOP_PER_ELEMENT * self.inputs[0].numel(sizes)


@dataclass(frozen=True, kw_only=True)
class Collective(Operator):
    """A transfer among the chips along *axes* of the plan, derived by `passes.shard`."""

    collective: CollectiveKind
    axes: Axes

    stream = "communication"

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The collective's own name."""
        return self.collective

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        first = self.inputs[0]
        left = tuple(axis for axis in first.partial if axis not in self.axes)
        return (Tensor(self.name, first.dims, first.format).laid_out(self.layout, left),)

    def work(self, sizes: Sizes) -> Work:
        held = self.outputs[0] if self.collective == "all_gather" else self.inputs[0]
        return Work(sent=held.nbytes(sizes) * (sizes.ways(self.axes) > 1))
