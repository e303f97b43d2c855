"""Operators: what each reads, what it writes and how much work that is.

To add one, subclass `Operator`: say what comes out (`outputs`) and how much arithmetic that is
(`flop`); override `work` where the traffic is not simply that of its tensors. How it is sharded
follows from the names of its dimensions; say what it contracts (`contracted`) and which
dimensions it needs whole (`whole`). What `Graph.check` should refuse, `complaint` says.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

from hardware import Number
from opgraph.attention import Attention
from opgraph.routing import imbalance, routing
from opgraph.sizes import Axes, Sizes
from opgraph.tensor import Format, Tensor, as_format
from opgraph.work import Basis, Operator, Work, unlike

__all__ = [
    "Activation",
    "Add",
    "Attention",
    "Collective",
    "CollectiveKind",
    "Einsum",
    "Elementwise",
    "Last",
    "Lookup",
    "Norm",
    "Opaque",
    "Operator",
    "Quantize",
    "Reduce",
    "Rotary",
    "Sample",
    "Scale",
    "Send",
    "View",
    "Work",
]

CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"]


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
    """A product of two given by names: ``"batch seq model, model ffn -> batch seq ffn"``.

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
        return tuple(self.pattern.partition("->")[2].split())

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        return (
            self._make(self.name, self.result, as_format(self.dtype_out or self.inputs[0].format)),
        )

    @cached_property
    def contracted(self) -> frozenset[str]:
        return frozenset(dim for dims in self.operands for dim in dims) - set(self.result)

    def complaint(self, basis: Basis) -> str:
        if "->" not in self.pattern:
            return f"{self.pattern!r} has no '->' before its result"
        if len(self.operands) != len(self.inputs[:2]):
            return f"{self.pattern!r} is not a product of two: write several"
        for dims, tensor in zip(self.operands, self.inputs, strict=False):
            if dims != tensor.dims:
                return f"the pattern reads [{' '.join(dims)}] but the tensor is {tensor}"
        known = tuple(dict.fromkeys(dim for dims in self.operands for dim in dims))
        for dim in self.result:
            if dim not in known:
                return f"{dim!r} of the result is in no operand of {self.pattern!r}"
        return unlike(self.inputs[2:], known, basis)

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
        # a product without a sum only multiplies
        each = 2 if self.contracted else 1
        return each * self.size(sizes, *every) + biases * self.size(sizes, *self.result)

    @property
    def unpacks(self) -> bool:
        """Whether the weights are stored in a narrower format than that of the product."""
        first, second = (tensor.format for tensor in self.inputs[:2])
        return self.inputs[1].role == "weight" and second.bits < first.bits

    def work(self, sizes: Sizes) -> Work:
        work = super().work(sizes)
        unpacked = self.inputs[1].numel(sizes) if self.unpacks else 0
        return replace(work, unpacked=unpacked)


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
class Add(Elementwise):
    """The sum of the inputs; partial sums may wait until after it."""

    @property
    def summands(self) -> tuple[Tensor, ...]:
        return self.activations

    def complaint(self, basis: Basis) -> str:
        return unlike(self.inputs, self.outputs[0].dims, basis)


@dataclass(frozen=True, kw_only=True)
class Scale(Elementwise):
    """The first input times the others, which are whole; partial sums may wait until after it."""

    @property
    def summands(self) -> tuple[Tensor, ...]:
        return self.inputs[:1]


@dataclass(frozen=True, kw_only=True)
class Reduce(Operator):
    """A sum, mean or extreme over all dimensions but *dims*."""

    dims: str

    kind = "reduce"

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        return (self._make(self.name, tuple(self.dims.split()), self.inputs[0].format),)

    @property
    def contracted(self) -> frozenset[str]:
        return frozenset(self.inputs[0].dims) - set(self.dims.split())

    def complaint(self, basis: Basis) -> str:
        return _missing(self.dims, self.inputs[0])

    def flop(self, sizes: Sizes) -> Number:
        return self.inputs[0].numel(sizes)


@dataclass(frozen=True, kw_only=True)
class Quantize(Operator):
    """Find each group's scale and round to a narrower format."""

    dtype_out: str | Format

    kind = "quantize"
    # absolute value, maximum, quotient
    FLOP_PER_ELEMENT: ClassVar[int] = 3

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        return (self._make(self.name, self.inputs[0].dims, as_format(self.dtype_out)),)

    def flop(self, sizes: Sizes) -> Number:
        return self.FLOP_PER_ELEMENT * self.inputs[0].numel(sizes)


@dataclass(frozen=True, kw_only=True)
class Activation(Elementwise):
    """SiLU, GELU and the like, gated or not."""

    kind = "activation"


@dataclass(frozen=True, kw_only=True)
class Norm(Operator):
    """RMS or layer normalisation with the residual sum fused into it.

    Inputs are the activation, then the residual if there is one, then weight and bias. With a
    residual, what comes out is the normalised sum and the sum. The mean is taken over the
    dimensions *over*: if not given, those of the weight, or the last one where there is none.
    Where these are split, each chip has a part of the mean, and 4 bytes a token are summed over
    chips (as by vLLM's ``MiniMaxText01RMSNormTP``).
    """

    over: str = ""

    kind = "norm"
    # square, accumulate, scale, weight: RMSNorm (Zhang & Sennrich 2019); a mean and a bias more
    # for LayerNorm are counted as the inputs they come with.
    FLOP_PER_ELEMENT: ClassVar[int] = 4

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        first, *residual = self.activations
        normed = self._make(self.name, first.dims, first.format)
        return (normed, *(self._make(f"{self.name}.sum", r.dims, r.format) for r in residual))

    @property
    def statistics(self) -> tuple[str, ...]:
        weights = (tensor.dims for tensor in self.inputs if tensor.role == "weight")
        return tuple(self.over.split()) or next(weights, self.inputs[0].dims[-1:])

    def complaint(self, basis: Basis) -> str:
        first, *residual = self.activations
        for tensor in residual:
            if tensor.dims != first.dims:
                return f"{tensor} is not like {first}"
        kept = tuple(tensor for tensor in self.inputs if tensor.role != "activation")
        return unlike(kept, first.dims, basis) or _missing(self.over, first)

    def flop(self, sizes: Sizes) -> Number:
        extra = len(self.inputs) - 2
        return (self.FLOP_PER_ELEMENT + extra) * self.outputs[0].numel(sizes)


@dataclass(frozen=True, kw_only=True)
class Rotary(Operator):
    """Rotary position embedding of queries and keys, in place (Su et al. 2021).

    *share* is the part of each head that turns; the rest is not touched.
    """

    share: float = 1.0

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
        turned = sum(tensor.numel(sizes) for tensor in self.inputs)
        return self.FLOP_PER_ELEMENT * self.share * turned

    def work(self, sizes: Sizes) -> Work:
        nbytes = self.share * sum(tensor.nbytes(sizes) for tensor in self.inputs)
        return Work(self.flop(sizes), nbytes, nbytes)


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
    """The last position of each sequence: all that the language-model head needs.

    A chip that holds other positions has nothing to add to the sum over chips.
    """

    kind = "select"
    contracted = frozenset({"seq"})

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
class Opaque(Operator):
    """Something of which only the results and the amount of work are known, as of a pooling.

    *results* gives the dimensions and the format of each result; *flop_per_element* counts for the
    product of the dimensions *over*, those of the first result if not given. Nothing but the batch
    is split: what the other dimensions mean to it is not known.
    """

    results: tuple[tuple[str, str | Format], ...]
    flop_per_element: float = 0.0
    over: str = ""

    kind = "other"

    @property
    def whole(self) -> frozenset[str]:  # type: ignore[override]
        """Every dimension but the batch."""
        dims = (dim for tensor in self.inputs for dim in tensor.dims)
        made = (dim for words, _ in self.results for dim in words.split())
        return frozenset(dim for dim in (*dims, *made) if dim.partition(".")[0] != "batch")

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        names = (self.name, *(f"{self.name}.{i}" for i in range(1, len(self.results))))
        return tuple(
            self._make(name, tuple(dims.split()), as_format(dtype))
            for name, (dims, dtype) in zip(names, self.results, strict=True)
        )

    def flop(self, sizes: Sizes) -> Number:
        over = self.over.split() or self.outputs[0].dims
        return self.flop_per_element * self.size(sizes, *over)


@dataclass(frozen=True, kw_only=True)
class Collective(Operator):
    """A transfer among the chips along *axes* of the plan, derived by `passes.shard`.

    If *over* is given, what is exchanged is not the input but a 32-bit mean over those dimensions.
    *dealt*: the rows' dimension and that of the experts to which they go or from which they come;
    the chip with the most popular experts has the most of them.
    """

    collective: CollectiveKind
    axes: Axes
    over: tuple[str, ...] = ()
    dealt: tuple[str, str] | None = None

    stream = "communication"

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The collective's own name."""
        return self.collective

    @property
    def in_place(self) -> bool:  # type: ignore[override]
        """Whether the result replaces what was there: a sum does, the others need a buffer."""
        return self.collective == "all_reduce"

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        first = self.inputs[0]
        left = tuple(axis for axis in first.partial if axis not in self.axes)
        return (Tensor(self.name, first.dims, first.format).laid_out(self.layout, left),)

    @property
    def message(self) -> Tensor:
        """What each chip brings."""
        first = self.inputs[0]
        if not self.over:
            return first
        dims = tuple(dim for dim in first.dims if dim not in self.over)
        return Tensor(self.name, dims, as_format("fp32")).laid_out(first.layout)

    def work(self, sizes: Sizes) -> Work:
        held = self.outputs[0] if self.collective == "all_gather" else self.message
        nbytes = held.nbytes(sizes)
        if self.dealt:
            nbytes = nbytes * imbalance(*routing(sizes, *self.dealt, self.axes))
        return Work(sent=nbytes * (sizes.ways(self.axes) > 1))


@dataclass(frozen=True, kw_only=True)
class Send(Operator):
    """What stage *hop* hands to the next one, the last to the first: each chip sends its part."""

    hop: int = 0

    kind = "send"
    stream = "communication"
    axes: ClassVar[Axes] = ("pp",)
    spares = frozenset({"model"})

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        return (self._make(self.name, self.inputs[0].dims, self.inputs[0].format),)

    @property
    def message(self) -> Tensor:
        """What each chip sends."""
        return self.inputs[0]

    def work(self, sizes: Sizes) -> Work:
        return Work(sent=self.message.nbytes(sizes))


def _missing(dims: str, tensor: Tensor) -> str:
    """What to say where *tensor* has not all of *dims*."""
    missing = [dim for dim in dims.split() if dim not in tensor.dims]
    return f"{tensor} has no {missing[0]!r}" if missing else ""
