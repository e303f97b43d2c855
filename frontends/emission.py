"""From a program in kernels to operators in named dimensions."""

from collections.abc import Callable, Iterable, Sequence

from frontends.dimensions import Dim, Dimensions
from frontends.flow import Flow
from frontends.fusion import is_activation
from frontends.naming import Naming
from frontends.program import Node, Program, Value
from frontends.writer import Writer
from opgraph.encoding import UnmaskedAttention
from opgraph.operator import (
    Activation,
    Add,
    Attention,
    Einsum,
    Elementwise,
    Last,
    Lookup,
    Norm,
    Operator,
    Rotary,
    Sample,
    View,
)
from opgraph.tensor import Format, Tensor, as_format

_FORMATS = {"int64": "int32", "bool": "int8"}
_WEIGHTLESS = frozenset({"iota"})
# maximum, difference, exponential, sum, quotient
_SOFTMAX_FLOP = 5


class Emitter:
    """Writes the operators of one program."""

    def __init__(self, program: Program, flow: Flow, naming: Naming, writer: Writer) -> None:
        self.program, self.flow, self.naming, self.writer = program, flow, naming, writer
        self.dims: Dimensions = naming.dims
        self.operators: list[Operator] = []
        self.inputs: dict[str, Tensor] = {}
        self.tensors: dict[Value, Tensor] = {}
        self.parts: dict[Value, Value] = {}
        self._names: dict[str, int] = {}

    def run(self) -> None:
        """Append every operator of the program."""
        for node in self.flow.nodes:
            rule = EMIT.get(node.op)
            if rule is None:
                raise self.program.refuse(f"nothing is known of the cost of {node.op} at {node.where}")
            if any(v is not None and self.is_data(v) for v in node.inputs):
                rule(self, node)
        for value in self.flow.results:
            if self.names(value)[-1:] == ("vocab",):
                self.add(Sample(name=self.unique("sample"), inputs=(self.tensor(value),)))

    def is_data(self, value: Value) -> bool:
        """Whether a value is no table of positions."""
        return value in self.flow.weighted or value in self.tensors or value in self.parts or value.kind in ("weight", "input")

    # names

    def names(self, value: Value) -> tuple[str, ...]:
        """The dimensions of a value, outermost first."""
        return self.named(self.dims.atoms(value))

    def named(self, atoms: Iterable[Dim]) -> tuple[str, ...]:
        """What atoms are called: a name that two of them have gets a qualifier."""
        found: list[str] = []
        for atom in atoms:
            name = self.naming.name(atom, self.writer)
            if name in found and isinstance(atom.root.size, int):
                name = self.writer.dim(f"{name}.other", atom.root.size)
            found.append(name)
        return tuple(found)

    def unique(self, name: str) -> str:
        """*name*, numbered if it is taken."""
        self._names[name] = self._names.get(name, 0) + 1
        return name if self._names[name] == 1 else f"{name}.{self._names[name] - 1}"

    def together(self, node: Node) -> str:
        """A name for several projections at once."""
        names = [v.name.rpartition(".")[0] for v in node.inputs if v is not None and v.kind == "weight"]
        return "_".join([names[0], *(name.rpartition(".")[2] for name in names[1:])])

    def placed(self, value: Value) -> Tensor:
        """Queries, keys or values as ``batch seq heads head_dim``."""
        axes = self.dims.of[value]
        order = [axes[axis] for axis in (0, 2, 1, 3)]
        names = self.named(atom for dim in order if dim is not None for atom in dim.atoms)
        return self.arranged(value, names)

    def called(self, node: Node, otherwise: str) -> str:
        """A name for what *node* becomes: after the module of its weight."""
        weights = [v for v in node.inputs if v is not None and v.kind == "weight"]
        name = weights[0].name.rpartition(".")[0] if weights else ""
        return self.unique(name or otherwise)

    # tensors

    def tensor(self, value: Value) -> Tensor:
        """The tensor that holds a value."""
        if value not in self.tensors:
            if value in self.parts:
                self._split(self.parts[value])
            else:
                self.tensors[value] = self._outside(value)
        return self.tensors[value]

    def _outside(self, value: Value) -> Tensor:
        dims, dtype = " ".join(self.names(value)), format_of(value)
        if value.kind == "weight":
            return Tensor.of(value.name, dims, dtype, "weight")
        name = "tokens" if dims == "batch seq" and dtype.name == "int32" else value.name
        return self.inputs.setdefault(name, Tensor.of(name, dims, dtype))

    def add(self, operator: Operator, *values: Value) -> tuple[Tensor, ...]:
        """Append an operator, whose results are *values*."""
        self.operators.append(operator)
        self.tensors |= dict(zip(values, operator.outputs, strict=False))
        return operator.outputs

    def arranged(self, value: Value, names: tuple[str, ...]) -> Tensor:
        """The tensor of a value with its dimensions in the order of *names*."""
        tensor = self.tensor(value)
        if tensor.dims == names:
            return tensor
        parts = (("", " ".join(names)),)
        return self.add(View(name=self.unique(f"{tensor.name}.view"), inputs=(tensor,), parts=parts), value)[0]

    def alias(self, value: Value, source: Value) -> None:
        """*value* is *source*, if need be under other names."""
        if source in self.parts and not set(self.names(value)) ^ set(self.names(source)):
            self.parts[value] = source
            return
        tensor = self.tensor(source)
        if set(self.names(value)) == set(tensor.dims):
            self.tensors[value] = tensor
        else:
            parts = (("", " ".join(self.names(value))),)
            self.add(View(name=self.unique(f"{tensor.name}.view"), inputs=(tensor,), parts=parts), value)

    def part(self, value: Value, source: Value) -> None:
        """*value* is a part of *source*; all parts are split off together when one is read."""
        self.parts[value] = source

    def _split(self, source: Value) -> None:
        """Split *source* into its parts; what is a part under another name is an alias."""
        if source in self.parts:
            source_tensor = self.tensor(source)
            for value in [v for v, s in self.parts.items() if s is source]:
                self.tensors[value] = source_tensor
            return
        whole, values = self.tensor(source), [v for v, s in self.parts.items() if s is source]
        names = [self.names(value) for value in values]
        labels = _labels(self.flow, values)
        parts = tuple((label, " ".join(dims)) for label, dims in zip(labels, names, strict=True))
        self.add(View(name=self.unique(f"{whole.name}.split"), inputs=(whole,), parts=parts), *values)


def _labels(flow: Flow, values: Sequence[Value]) -> list[str]:
    del flow
    return [str(index) for index in range(len(values))]


def format_of(value: Value) -> Format:
    """The number format of a value."""
    return as_format(_FORMATS.get(value.dtype, value.dtype) if isinstance(value.dtype, str) else value.dtype)


Emit = Callable[[Emitter, Node], None]
EMIT: dict[str, Emit] = {}


def _emit(*ops: str) -> Callable[[Emit], Emit]:
    def enter(rule: Emit) -> Emit:
        EMIT.update(dict.fromkeys(ops, rule))
        return rule

    return enter


@_emit("reshape", "transpose", "expand", "cast")
def _view(emitter: Emitter, node: Node) -> None:
    (source,) = node.inputs
    assert source is not None
    emitter.alias(node.output, source)


@_emit("slice")
def _slice(emitter: Emitter, node: Node) -> None:
    (source,) = node.inputs
    assert source is not None
    emitter.part(node.output, source)


@_emit("gather")
def _gather(emitter: Emitter, node: Node) -> None:
    table, index = node.inputs[:2]
    assert table is not None
    assert index is not None
    inputs = (emitter.tensor(index), emitter.tensor(table))
    emitter.add(Lookup(name=emitter.called(node, "lookup"), inputs=inputs), node.output)


@_emit("norm")
def _norm(emitter: Emitter, node: Node) -> None:
    x, weight, bias, *residual = (None if v is None else emitter.tensor(v) for v in node.inputs)
    assert x is not None
    inputs = (x, *residual, weight, bias)
    norm = Norm(name=emitter.called(node, "norm"), inputs=tuple(t for t in inputs if t is not None))
    emitter.add(norm, *node.outputs)


@_emit("rotary")
def _rotary(emitter: Emitter, node: Node) -> None:
    inputs = tuple(emitter.tensor(v) for v in node.inputs if v is not None)
    emitter.add(Rotary(name=emitter.unique("rotary"), inputs=inputs, share=float(node["share"])), *node.outputs)


@_emit("project")
def _project(emitter: Emitter, node: Node) -> None:
    x, *rest = node.inputs
    assert x is not None
    weights, biases = [v for v in rest[::2] if v], rest[1::2]
    first, second = str(node["equation"]).partition("->")[0].split(",")
    inner = [emitter.dims.of[weights[0]][i] for i, letter in enumerate(second) if letter in first]
    contracted = emitter.named(a for dim in inner if dim for a in dim.atoms)
    before = emitter.tensor(x)
    outer = [_kept(emitter, weight, first, second) for weight in weights]
    if len(weights) == 1:
        tensor = emitter.tensor(weights[0])
        made, name = emitter.named(a for dim in outer[0] for a in dim.atoms), emitter.called(node, "product")
        extra = tuple(emitter.tensor(v) for v in biases if v is not None)
    else:
        name = emitter.unique(emitter.together(node))
        made = (_joined(emitter, name, outer),)
        tensor = Tensor.of(f"{name}.weight", " ".join((*contracted, *made)), format_of(weights[0]), "weight")
        extra = _biases(emitter, name, outer, biases)
    kept = [dim for dim in before.dims if dim not in contracted]
    pattern = f"{' '.join(before.dims)}, {' '.join(tensor.dims)} -> {' '.join((*kept, *made))}"
    product = Einsum(name=name, inputs=(before, tensor, *extra), pattern=pattern)
    if len(weights) == 1:
        emitter.add(product, node.output)
        return
    whole = Value(name, (), node.output.dtype)
    emitter.add(product, whole)
    for value in node.outputs:
        emitter.part(value, whole)


def _kept(emitter: Emitter, weight: Value, first: str, second: str) -> list[Dim]:
    axes = zip(second, emitter.dims.of[weight], strict=True)
    return [dim for letter, dim in axes if letter not in first and dim is not None]


def _joined(emitter: Emitter, name: str, outer: Sequence[Sequence[Dim]]) -> str:
    """The dimension of several sets of columns side by side."""
    terms: dict[str, int] = {}
    for dims in outer:
        text = "*".join(emitter.named(atom for dim in dims for atom in dim.atoms))
        terms[text] = terms.get(text, 0) + 1
    text = " + ".join(f"{count}*{term}" if count > 1 else term for term, count in terms.items())
    return emitter.writer.derive(name.rpartition(".")[2], text)


def _biases(
    emitter: Emitter, name: str, outer: Sequence[Sequence[Dim]], biases: Sequence[Value | None]
) -> tuple[Tensor, ...]:
    have = [dims for dims, bias in zip(outer, biases, strict=True) if bias is not None]
    if not have:
        return ()
    bias = next(bias for bias in biases if bias is not None)
    dims = _joined(emitter, name, have)
    return (Tensor.of(f"{name}.bias", dims, format_of(bias), "weight"),)


@_emit("attention")
def _attention(emitter: Emitter, node: Node) -> None:
    query, key, value = (emitter.placed(v) for v in node.inputs[:3] if v is not None)
    sinks = tuple(emitter.tensor(v) for v in node.inputs[4:5] if v is not None)
    emitter.writer.attends(_kind(node))
    name = emitter.unique("attention")
    if not node["causal"]:
        operator: Operator = UnmaskedAttention(name=name, inputs=(query, key, value))
    else:
        window = emitter.writer.dim("window", node["window"]) if node["window"] else None
        places = "context"
        if window:
            places = emitter.writer.derive("context.window", f"min(context, {window})")
        caches = tuple(
            Tensor.of(f"{name}.{label}_cache", " ".join(("batch", places, *t.dims[-2:])), t.format, "cache")
            for label, t in (("k", key), ("v", value))
        )
        operator = Attention(name=name, inputs=(query, key, value, *sinks, *caches), window=window)
    emitter.add(operator, node.output)


def _kind(node: Node) -> str:
    heads, shared = (v.shape[1] for v in node.inputs[:2] if v is not None)
    kind = "MHA" if heads == shared else "MQA" if shared == 1 else "GQA"
    return f"local {kind}" if node["window"] else kind


@_emit("map")
def _map(emitter: Emitter, node: Node) -> None:
    whole = _whole(emitter, node)
    values = [v for v in node.inputs if v is not None and emitter.is_data(v)]
    inputs = whole or tuple(emitter.tensor(v) for v in values)
    out = emitter.names(node.output)
    dims = "" if set(inputs[0].dims) == set(out) else " ".join(out)
    plain = all(t.role == "activation" and t.dims == inputs[0].dims for t in inputs)
    if set(node["names"]) == {"add"} and plain and not dims:
        operator: Operator = Add(name=emitter.unique("sum"), inputs=inputs)
    else:
        active = is_activation(node["names"])
        kind = Activation if active else Elementwise
        name = emitter.unique("activation" if active else node["names"][-1])
        operator = kind(name=name, inputs=inputs, dims=dims, flop_per_element=float(node["flop"]))
    emitter.add(operator, node.output)


def _whole(emitter: Emitter, node: Node) -> tuple[Tensor, ...]:
    """What all operands are the parts of, if nothing else is."""
    sources = {emitter.parts.get(v) for v in node.inputs if v is not None and v not in emitter.tensors}
    if len(node.inputs) < 2 or len(sources) != 1 or None in sources:
        return ()
    (source,) = sources
    parts = {v for v, s in emitter.parts.items() if s is source}
    assert source is not None
    return (emitter.tensor(source),) if parts == set(node.inputs) else ()


@_emit("concat")
def _concat(emitter: Emitter, node: Node) -> None:
    inputs = tuple(emitter.tensor(v) for v in node.inputs if v is not None and emitter.is_data(v))
    dims = " ".join(emitter.names(node.output))
    operator = Elementwise(name=emitter.unique("concat"), inputs=inputs, dims=dims, flop_per_element=0)
    emitter.add(operator, node.output)


@_emit("softmax")
def _softmax(emitter: Emitter, node: Node) -> None:
    (x,) = node.inputs
    assert x is not None
    operator = Elementwise(name=emitter.unique("softmax"), inputs=(emitter.tensor(x),), flop_per_element=_SOFTMAX_FLOP)
    emitter.add(operator, node.output)


@_emit("last")
def _last(emitter: Emitter, node: Node) -> None:
    (x,) = node.inputs
    assert x is not None
    emitter.add(Last(name=emitter.unique("last"), inputs=(emitter.tensor(x),)), node.output)
