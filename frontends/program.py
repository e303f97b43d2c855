"""What is read from a PyTorch module or an ONNX file: a flat program over a few primitives.

A frontend for code or files has one table, from each of its operators to calls on `Program`; the
rest of the way to a model (`frontends.imported`) is the same for all. A *size* is an ``int`` or a
SymPy expression over positive integer symbols (the dimensions that stay open).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hardware import SpecError
from opgraph.tensor import Format

Size = Any
"""An ``int``, or a SymPy expression over the program's symbols."""

Shape = tuple[Size, ...]
Kind = Literal["weight", "input", "constant", "activation"]
COMPARISONS = frozenset(["eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "xor"])
VIEWS = frozenset(["reshape", "transpose", "expand", "slice", "cast"])


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the program.

    Attributes
    ----------
    name : unique in the program; of weights and inputs, the user's.
    dtype : a format's name (``bf16 fp16 fp32 fp8 int8 int4``), ``int64 int32 bool``, or a `Format`.
    kind : a weight, an input, a constant of known content, or what an operator makes.
    data : of a constant, its content: a number or a NumPy array (of objects where sizes are in it).
    """

    name: str
    shape: Shape
    dtype: str | Format
    kind: Kind = "activation"
    data: Any = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __str__(self) -> str:
        return f"{self.name}:{self.dtype}[{' '.join(map(str, self.shape))}]"


@dataclass(frozen=True, eq=False)
class Node:
    """A primitive applied: *where* is its place in the user's code or file, for messages.

    An input that is left out is None.
    """

    op: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""

    def __getitem__(self, attribute: str) -> Any:
        return self.attributes[attribute]

    def becomes(self, op: str, inputs: "Sequence[Value | None]", **attributes: Any) -> "Node":
        """A node in the place of this one, with its results."""
        return Node(op, tuple(inputs), self.outputs, attributes, self.where)

    def operand(self, index: int = 0) -> Value:
        """The input at *index*, which must be there."""
        value = self.inputs[index]
        if value is None:
            raise SpecError(f"{self.op} at {self.where}: input {index} is missing")
        return value

    @property
    def scope(self) -> str:
        """The module or the node of the user's that it comes from: *where* up to a bracket."""
        return self.where.partition(" (")[0]

    @property
    def output(self) -> Value:
        """The first output."""
        return self.outputs[0]

    def __str__(self) -> str:
        given = [str(v.name) if v else "–" for v in self.inputs]
        given += [f"{key}={value}" for key, value in self.attributes.items()]
        return f"{', '.join(map(str, self.outputs))} = {self.op}({', '.join(given)})"


class Program:
    """A flat program in order of execution, and the vocabulary to write it in.

    Each primitive is one method: it takes values, works out the shape and returns the result.
    *where* is the place that messages name: set it before the calls for one operator of the source.

    Examples
    --------
    >>> p = Program("mlp", "an example")
    >>> x = p.input("x", (2, 8), "bf16")
    >>> y = p.einsum("bm,fm->bf", x, p.weight("up", (32, 8), "bf16"))
    >>> p.output(p.elementwise("silu", y))
    >>> print(p)
    mlp(x:bf16[2 8])
      v0:bf16[2 32] = einsum(x, up, equation=bm,fm->bf)
      v1:bf16[2 32] = elementwise(v0, fn=silu)
      return v1
    """

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.where = ""
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.weights: dict[str, Value] = {}
        self.nodes: list[Node] = []
        self._made = 0

    # what there is before the first operator

    def input(self, name: str, shape: Sequence[Size], dtype: str | Format) -> Value:
        """Declare an input."""
        self.inputs.append(Value(name, tuple(shape), dtype, "input"))
        return self.inputs[-1]

    def weight(self, name: str, shape: Sequence[Size], dtype: str | Format) -> Value:
        """A weight; the same one where the name is known."""
        return self.weights.setdefault(name, Value(name, tuple(shape), dtype, "weight"))

    def constant(
        self, data: Any, shape: Sequence[Size] = (), dtype: str | Format = "fp32"
    ) -> Value:
        """A value whose content is known."""
        return Value(self._name(), tuple(shape), dtype, "constant", data)

    def output(self, *values: Value) -> None:
        """Declare what the program returns."""
        self.outputs += values

    # operators that only rename elements

    def reshape(self, x: Value, shape: Sequence[Size]) -> Value:
        """The same elements in row-major order under another *shape*, which has no -1."""
        return self.add("reshape", [x], [tuple(shape)])

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        """Axis *order[i]* becomes axis *i*."""
        order = tuple(axis % x.rank for axis in order)
        return self.add("transpose", [x], [tuple(x.shape[a] for a in order)], order=order)

    def expand(self, x: Value, shape: Sequence[Size]) -> Value:
        """Axes of size 1 repeated to *shape*; new ones in front."""
        return self.add("expand", [x], [tuple(shape)])

    def slice(self, x: Value, axis: int, start: Size, stop: Size, step: int = 1) -> Value:
        """Entries *start* up to *stop* of one axis, both counted from the front."""
        axis %= x.rank
        length = stop - start if step == 1 else -((start - stop) // step)
        shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
        return self.add("slice", [x], [shape], axis=axis, start=start, stop=stop, step=step)

    def cast(self, x: Value, dtype: str | Format) -> Value:
        """The same numbers in another format."""
        return self.add("cast", [x], [x.shape], dtype)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """Values one after the other along *axis*."""
        axis %= values[0].rank
        length = sum(value.shape[axis] for value in values)
        shape = (*values[0].shape[:axis], length, *values[0].shape[axis + 1 :])
        return self.add("concat", values, [shape], axis=axis)

    # arithmetic

    def elementwise(self, fn: str, *values: Value, dtype: str | Format | None = None) -> Value:
        """*fn* of each element, with broadcasting: ``add sub mul div pow neg exp rsqrt sqrt tanh
        sigmoid silu gelu relu softplus erf where clamp …``, comparisons (``eq lt le …``).
        """
        shape = self._broadcast(values)
        if dtype is None:
            operand = values[1] if fn == "where" else _leading(values)
            dtype = "bool" if fn in COMPARISONS else operand.dtype
        return self.add("elementwise", values, [shape], dtype, fn=fn)

    def einsum(self, equation: str, *values: Value, dtype: str | Format | None = None) -> Value:
        """A sum of products: one letter for each axis, ``bsm,fm->bsf``; no ellipsis."""
        terms, _, result = equation.partition("->")
        sizes: dict[str, Size] = {}
        for term, value in zip(terms.split(","), values, strict=True):
            for letter, size in zip(term, value.shape, strict=True):
                if sizes.get(letter, 1) == 1:
                    sizes[letter] = size
        shape = tuple(sizes[letter] for letter in result)
        return self.add("einsum", values, [shape], dtype, equation=equation)

    def reduce(self, fn: str, x: Value, axes: Sequence[int], keep: bool = False) -> Value:
        """``sum mean max min prod any all argmax`` over *axes*, which stay as 1 if *keep*."""
        axes = tuple(sorted(axis % x.rank for axis in axes))
        shape = tuple(
            1 if axis in axes else size
            for axis, size in enumerate(x.shape)
            if keep or axis not in axes
        )
        dtype = {"argmax": "int64", "any": "bool", "all": "bool"}.get(fn)
        return self.add("reduce", [x], [shape], dtype, fn=fn, axes=axes)

    def cumulate(self, fn: str, x: Value, axis: int) -> Value:
        """``sum`` or ``prod`` of all up to each element."""
        return self.add("cumulate", [x], [x.shape], fn=fn, axis=axis % x.rank)

    def softmax(self, x: Value, axis: int = -1) -> Value:
        """Softmax along one axis."""
        return self.add("softmax", [x], [x.shape], axis=axis % x.rank)

    def conv(
        self,
        x: Value,
        weight: Value,
        bias: Value | None,
        shape: Sequence[Size],
        groups: int = 1,
        **attributes: Any,
    ) -> Value:
        """A convolution of ``batch channels *places`` to *shape*; the weight is ``out in/groups
        *taps``; *attributes*: ``strides pads dilations transposed``.
        """
        return self.add("conv", [x, weight, bias], [tuple(shape)], groups=groups, **attributes)

    # operators that engines have kernels for; spelled out ones are recognised as these later

    def norm(
        self,
        kind: Literal["rms", "layer", "group"],
        x: Value,
        weight: Value | None = None,
        bias: Value | None = None,
        axes: int = 1,
        groups: int = 1,
    ) -> Value:
        """Normalisation over the last *axes*; ``group``: over *groups* of axis 1."""
        return self.add("norm", [x, weight, bias], [x.shape], kind=kind, axes=axes, groups=groups)

    def rotary(self, x: Value, *tables: Value, share: float = 1.0) -> Value:
        """Rotary positions on the last axis, of which *share* turns. *tables*: positions, cosines,
        sines, as far as there are any.
        """
        return self.add("rotary", [x, *tables], [x.shape], share=share)

    def attention(
        self,
        query: Value,
        key: Value,
        value: Value,
        *rest: Value | None,
        causal: bool = False,
        window: int = 0,
    ) -> Value:
        """softmax(QKᵀ)V: query ``batch heads seq head_dim``, key ``batch kv_heads context
        head_dim``, value ``batch kv_heads context value_dim``; caches are already joined to them
        (`concat`, `scatter`). *rest*: a mask, and a score for each head that takes part in the
        softmax (a sink). *window*: positions that a query sees, its own with them (0: all).
        """
        shape = (*query.shape[:-1], value.shape[-1])
        inputs = [query, key, value, *rest]
        return self.add("attention", inputs, [shape], causal=causal, window=window)

    def gather(self, x: Value, index: Value, axis: int = 0) -> Value:
        """Entries of *axis* by number: an embedding, if *x* is a weight."""
        axis %= x.rank
        shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
        return self.add("gather", [x, index], [shape], axis=axis)

    def scatter(self, x: Value, index: Value | None, updates: Value, axis: int) -> Value:
        """*x* with *updates* at the places *index* of *axis*: a cache of fixed length, written."""
        return self.add("scatter", [x, index, updates], [x.shape], axis=axis % x.rank)

    def topk(self, x: Value, k: int, axis: int = -1) -> tuple[Value, Value]:
        """The *k* largest along an axis, and their numbers."""
        axis %= x.rank
        shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
        self.add("topk", [x], [shape, shape], [x.dtype, "int64"], k=k, axis=axis)
        values, numbers = self.nodes[-1].outputs
        return values, numbers

    def experts(
        self,
        x: Value,
        routes: Value,
        weights: Sequence[Value | None],
        *,
        chosen: Value | None = None,
        **how: Any,
    ) -> Value:
        """A mixture of experts whole: tokens ``… model`` go to *k* of the experts each.

        *routes*: the router's scores, ``… experts``, or those of the ones that are *chosen*,
        ``… k``. *weights*: ``experts columns model`` and ``experts model ffn`` (*transposed*: the
        last two axes the other way round), then, as far as there are any, the biases of both, and
        the gate's matrix and bias. *how*: ``k gated transposed``; *gated*: columns hold gate and
        value, or the gate is apart.
        """
        rest = [*weights, *[None] * (6 - len(weights))]
        return self.add("experts", [x, routes, *rest, chosen], [x.shape], **how)

    def scan(
        self, kind: str, inputs: Sequence[Value | None], shape: Sequence[Size], **attributes: Any
    ) -> Value:
        """A recurrence along the sequence, whole: *kind* is ``ssd selective_scan delta_rule …``;
        of which inputs, `frontends.imported` says.
        """
        return self.add("scan", inputs, [tuple(shape)], kind=kind, **attributes)

    # what all of them come down to

    def add(
        self,
        op: str,
        inputs: Sequence[Value | None],
        shapes: Sequence[Shape],
        dtype: str | Format | Sequence[str | Format] | None = None,
        **attributes: Any,
    ) -> Value:
        """Append a primitive; its first result. *dtype*: the first input's if not given."""
        operand = next((value for value in inputs if value is not None), None)
        given = dtype or (operand.dtype if operand else "fp32")
        dtypes = [given] * len(shapes) if isinstance(given, str | Format) else list(given)
        outputs = tuple(
            Value(self._name(), tuple(shape), kind)
            for shape, kind in zip(shapes, dtypes, strict=True)
        )
        self.nodes.append(Node(op, tuple(inputs), outputs, attributes, self.where))
        return outputs[0]

    def refuse(self, what: str, way_out: str = "") -> SpecError:
        """The error for something at the present place that has no meaning here."""
        place = f" at {self.where}" if self.where else ""
        return SpecError(f"{self.name}: {what}{place}{'; ' + way_out if way_out else ''}")

    def _name(self) -> str:
        self._made += 1
        return f"v{self._made - 1}"

    def _broadcast(self, values: Sequence[Value]) -> Shape:
        rank = max(value.rank for value in values)
        shape: list[Size] = [1] * rank
        for value in values:
            for axis, size in enumerate(value.shape, rank - value.rank):
                if shape[axis] == 1:
                    shape[axis] = size
                elif size not in (1, shape[axis]) and isinstance(size, int):
                    if not isinstance(shape[axis], int):  # an open size that can only be this one
                        shape[axis] = size
                        continue
                    shapes = ", ".join(str(v.shape) for v in values)
                    raise self.refuse(f"the shapes {shapes} do not broadcast")
        return tuple(shape)

    def __str__(self) -> str:
        lines = [f"{self.name}({', '.join(map(str, self.inputs))})"]
        lines += [f"  {node}" for node in self.nodes]
        return "\n".join([*lines, f"  return {', '.join(v.name for v in self.outputs)}"])


def _leading(values: Sequence[Value]) -> Value:
    """The operand whose format the result has: no constant, and the one of most axes."""
    return max(values, key=lambda value: (value.kind != "constant", value.rank))
