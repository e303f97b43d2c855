"""From a program in kernels to operators in named dimensions."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from frontends.dim import Dim
from frontends.dimensions import Dimensions
from frontends.flow import Flow
from frontends.fusion import is_activation, is_causal
from frontends.naming import Naming
from frontends.program import Node, Program, Value
from frontends.writer import Writer
from opgraph.operator import (
    Activation,
    Add,
    Elementwise,
    Last,
    Norm,
    Operator,
    Reduce,
    Rotary,
    Sample,
    View,
)
from opgraph.recurrent import (
    GatedNorm,
)
from opgraph.tensor import Format, Tensor, as_format

_FORMATS = {"int64": "int32", "bool": "int8"}


# maximum, difference, exponential, sum, quotient
_SOFTMAX_FLOP = 5


class Emitter:
    """Writes the operators of one program; *decodes*: for a step of one token."""

    def __init__(
        self, program: Program, flow: Flow, naming: Naming, writer: Writer, decodes: bool = False
    ) -> None:
        self.program, self.flow, self.naming, self.writer = program, flow, naming, writer
        self.decodes = decodes
        self.dims: Dimensions = naming.dims
        self.early = _early(flow)
        self.operators: list[Operator] = []
        self.inputs: dict[str, Tensor] = {}
        self.tensors: dict[Value, Tensor] = {}
        self.parts: dict[Value, Value] = {}
        self.aliases: dict[Value, Value] = {}
        self._names: dict[str, int] = {}

    def run(self, rules: "Mapping[str, Emit]") -> None:
        """Append every operator of the program, each by its rule."""
        skipped = self.early if self.decodes else frozenset[Value]()
        for node in self.flow.nodes:
            if node.output in skipped or not any(v and self.is_data(v) for v in node.inputs):
                continue
            self.program.where = node.where
            rules.get(node.op, rules["other"])(self, node)
        for value in self.flow.results:
            if value not in skipped and self.names(value)[-1:] == ("vocab",):
                self.add(Sample(name=self.unique("sample"), inputs=(self.tensor(value),)))

    def is_data(self, value: Value) -> bool:
        """Whether a value is no table of positions."""
        return (
            value in self.flow.weighted
            or value in self.tensors
            or value in self.parts
            or value in self.aliases
            or value.kind in ("weight", "input")
        )

    # names

    def names(self, value: Value) -> tuple[str, ...]:
        """The dimensions of a value, outermost first."""
        return self.named(self.dims.atoms(value))

    def named(self, atoms: Iterable[Dim]) -> tuple[str, ...]:
        """What atoms are called: a name that two of them have gets a qualifier."""
        found: list[str] = []
        for atom in atoms:
            name = self.naming.name(atom, self.writer)
            while name in found:
                fixed, name = isinstance(atom.root.size, int), again(before := name)
                name = self.writer.dim(name, atom.root.size) if fixed else self.derive(name, before)
            found.append(name)
        return tuple(found)

    def unique(self, name: str) -> str:
        """*name*, numbered if it is taken."""
        self._names[name] = self._names.get(name, 0) + 1
        return name if self._names[name] == 1 else f"{name}_{self._names[name]}"

    def scoped(self, node: Node, name: str) -> str:
        """*name* in the module that *node* comes from."""
        return self.unique(f"{node.scope}.{name}" if node.scope else name)

    def together(self, node: Node) -> str:
        """A name for several projections at once: ``q_k_v_proj``."""
        paths = [v.name.rpartition(".")[0] for v in node.inputs[1::2] if v is not None]
        scope, _, first = paths[0].rpartition(".")
        words = [first, *(path.rpartition(".")[2] for path in paths[1:])]
        suffix = f"_{first.rpartition('_')[2]}" if "_" in first else ""
        if suffix and all(word.endswith(suffix) for word in words):
            words = [*(word.removesuffix(suffix) for word in words[:-1]), words[-1]]
        name = "_".join(words)
        return f"{scope}.{name}" if scope else name

    def placed(self, value: Value, heads: str) -> Tensor:
        """Queries, keys or values as ``batch seq heads head_dim``."""
        return self.arranged(value, self.shaped(value, heads))

    def shaped(self, value: Value, heads: str) -> tuple[str, ...]:
        """The dimensions of queries, keys or values in that order."""
        words = ((0, "batch"), (2, "seq"), (1, heads), (3, "head_dim"))
        return tuple(self.axis(self.dims.of[value][i], word) for i, word in words)

    def formed(self, value: Value, axes: Iterable[tuple[int, str]]) -> Tensor:
        """The tensor of a value with one dimension for each of *axes*, in their order."""
        return self.arranged(
            value, tuple(self.axis(self.dims.of[value][i], word) for i, word in axes)
        )

    def axis(self, dim: Dim | None, word: str) -> str:
        """What an axis is called: a product of dimensions gets *word* as a name of its own."""
        if dim is None:
            return self.writer.dim(word, 1)
        names = self.named(dim.atoms)
        return names[0] if len(names) == 1 else self.derive(word, "*".join(names))

    def called(self, node: Node, otherwise: str) -> str:
        """A name for what *node* becomes: after the module of its weight."""
        weights = [v for v in node.inputs if v is not None and v.kind == "weight"]
        name = weights[0].name.rpartition(".")[0] if weights else ""
        if not name or len(self.flow.readers[weights[0]]) > 1:
            name = node.scope
        return self.unique(name or otherwise)

    def apart(self, *values: Value) -> list[tuple[str, ...]]:
        """The dimensions of several values, different ones called differently."""
        roots = list(dict.fromkeys(a.root for value in values for a in self.dims.atoms(value)))
        known = dict(zip(roots, self.named(roots), strict=True))
        return [tuple(known[a.root] for a in self.dims.atoms(value)) for value in values]

    def derive(self, word: str, text: str) -> str:
        """The dimension that is the expression *text*, called *word* if that is free."""
        return self.naming.derive(self.writer, word, text)

    # tensors

    def tensor(self, value: Value) -> Tensor:
        """The tensor that holds a value."""
        if value not in self.tensors:
            if value in self.aliases:
                self.tensors[value] = self.tensor(self.aliases[value])
            elif value in self.parts:
                self._split(self.parts[value])
            else:
                self.tensors[value] = self._outside(value)
        return self.tensors[value]

    def _outside(self, value: Value) -> Tensor:
        dims, dtype = " ".join(self.names(value)), format_of(value)
        if value.kind == "weight":
            return Tensor.of(value.name, dims, dtype, "weight")
        whole = dtype.name == "int32"
        name = value.name if value.kind == "input" else "positions" if whole else value.name
        name = "tokens" if dims == "batch seq" and whole else name
        return self.inputs.setdefault(name, Tensor.of(name, dims, dtype))

    def add(self, operator: Operator, *values: Value) -> tuple[Tensor, ...]:
        """Append an operator, whose results are *values*."""
        self.operators.append(operator)
        self.tensors |= dict(zip(values, operator.outputs, strict=False))
        return operator.outputs

    def arranged(self, value: Value, names: tuple[str, ...]) -> Tensor:
        """The tensor of a value under the dimensions *names*, in their order."""
        tensor = self.tensor(value)
        if tensor.dims == names:
            return tensor
        parts = (("", " ".join(names)),)
        view = View(name=self.unique(f"{tensor.name}.view"), inputs=(tensor,), parts=parts)
        return self.add(view, value)[0]

    def alias(self, value: Value, source: Value) -> None:
        """*value* is *source*, if need be under other names."""
        if set(self.names(value)) == set(self.names(source)):
            self.aliases[value] = source
        else:
            tensor = self.tensor(source)
            parts = (("", " ".join(self.names(value))),)
            self.add(
                View(name=self.unique(f"{tensor.name}.view"), inputs=(tensor,), parts=parts), value
            )

    def same(self, value: Value) -> Value:
        """What *value* is only another name of."""
        while value in self.aliases:
            value = self.aliases[value]
        return value

    def part(self, value: Value, source: Value) -> None:
        """*value* is a part of *source*; all parts are split off together when one is read."""
        self.parts[value] = source

    def _split(self, source: Value) -> None:
        """Split *source* into its parts."""
        whole, values = self.tensor(source), [v for v, s in self.parts.items() if s is source]
        parts = tuple((f"part{i}", " ".join(self.names(v))) for i, v in enumerate(values))
        self.add(
            View(name=self.unique(f"{whole.name}.split"), inputs=(whole,), parts=parts), *values
        )


def _early(flow: Flow) -> frozenset[Value]:
    """What an encoder makes, once: the values that no recurrence and no masked attention reads the
    input of.
    """
    late: set[Value] = set()
    own = {v for n in flow.nodes if is_causal(n) for v in _roots(flow, n)}
    if not own:
        return frozenset()
    for node in flow.nodes:
        if any(v in own or v in late for v in node.inputs):
            late.update(node.outputs)
    made = {v for n in flow.nodes for v in n.outputs} - late
    return frozenset(v for v in made if any(r.kind == "input" for r in _roots(flow, flow.maker[v])))


def _roots(flow: Flow, node: Node) -> set[Value]:
    """The inputs that *node* depends on by its first operands, sequence by sequence."""
    seen, todo = set[Value](), [v for v in node.inputs[:1] if v is not None]
    while todo:
        value = todo.pop()
        maker = flow.maker.get(value)
        if value in seen:
            continue
        seen.add(value)
        if maker is not None:
            crosses = maker.op == "attention" and not maker["causal"]
            todo += [v for v in (maker.inputs[:1] if crosses else maker.inputs) if v is not None]
    return {value for value in seen if value.kind == "input"}


def again(name: str) -> str:
    """The name of a dimension beside another one that has *name*."""
    return f"{name}_other" if "." in name else f"{name}.other"


def format_of(value: Value) -> Format:
    """The number format of a value."""
    return as_format(
        _FORMATS.get(value.dtype, value.dtype) if isinstance(value.dtype, str) else value.dtype
    )


Emit = Callable[[Emitter, Node], None]


def _view(emitter: Emitter, node: Node) -> None:
    source = node.operand()
    if emitter.flow.weight(source) is None or set(emitter.names(node.output)) == set(
        emitter.names(source)
    ):
        emitter.alias(node.output, source)
        return
    weight = emitter.tensor(source)
    if node.op != "expand":  # a weight is stored as it is read
        weight = replace(weight, dims=emitter.names(node.output))
    emitter.tensors[node.output] = weight


def _slice(emitter: Emitter, node: Node) -> None:
    source = node.operand()
    if emitter.flow.weight(source) is None:
        emitter.part(node.output, source)
        return
    whole = emitter.tensor(source)
    name = f"{whole.name}.{node['axis']}.{node['start']}"
    emitter.tensors[node.output] = replace(whole, name=name, dims=emitter.names(node.output))


def _reduce(emitter: Emitter, node: Node) -> None:
    name, dims = emitter.scoped(node, node["fn"]), " ".join(emitter.names(node.output))
    emitter.add(Reduce(name=name, inputs=(emitter.tensor(node.operand()),), dims=dims), node.output)


def _norm(emitter: Emitter, node: Node) -> None:
    x, weight, bias, *_ = (None if v is None else emitter.tensor(v) for v in node.inputs)
    residual = [
        emitter.arranged(v, x.dims)
        if x and set(emitter.names(v)) == set(x.dims)
        else emitter.tensor(v)
        for v in node.inputs[3:]
        if v is not None
    ]
    inputs = (x, *residual, weight, bias)
    norm = Norm(name=emitter.called(node, "norm"), inputs=tuple(t for t in inputs if t is not None))
    emitter.add(norm, *node.outputs)


def _rotary(emitter: Emitter, node: Node) -> None:
    inputs = tuple(emitter.tensor(v) for v in node.inputs if v is not None)
    emitter.add(
        Rotary(name=emitter.scoped(node, "rotary"), inputs=inputs, share=float(node["share"])),
        *node.outputs,
    )


def _map(emitter: Emitter, node: Node) -> None:
    whole = _whole(emitter, node)
    values = [v for v in node.inputs if v is not None and emitter.is_data(v)]
    inputs = whole or tuple(emitter.tensor(v) for v in values)
    out = emitter.names(node.output)
    dims = "" if set(inputs[0].dims) == set(out) else " ".join(out)
    plain = all(t.role == "activation" and t.dims == inputs[0].dims for t in inputs)
    if set(node["names"]) == {"add"} and plain and not dims:
        operator: Operator = Add(name=emitter.scoped(node, "sum"), inputs=inputs)
    else:
        active = is_activation(node["names"])
        kind = Activation if active else Elementwise
        name = emitter.scoped(node, "activation" if active else node["names"][-1])
        operator = kind(name=name, inputs=inputs, dims=dims, flop_per_element=float(node["flop"]))
    emitter.add(operator, node.output)


def _whole(emitter: Emitter, node: Node) -> tuple[Tensor, ...]:
    """What all operands are the parts of, if nothing else is."""
    values = {emitter.same(v) for v in node.inputs if v is not None}
    sources = {emitter.parts.get(v) for v in values if v not in emitter.tensors}
    if len(values) < 2 or len(sources) != 1 or None in sources:
        return ()
    (source,) = sources
    parts = {v for v, s in emitter.parts.items() if s is source}
    return (emitter.tensor(source),) if source is not None and parts == values else ()


def _concat(emitter: Emitter, node: Node) -> None:
    inputs = tuple(emitter.tensor(v) for v in node.inputs if v is not None and emitter.is_data(v))
    dims = " ".join(emitter.names(node.output))
    operator = Elementwise(
        name=emitter.scoped(node, "concat"), inputs=inputs, dims=dims, flop_per_element=0
    )
    emitter.add(operator, node.output)


def _softmax(emitter: Emitter, node: Node) -> None:
    x = node.operand()
    operator = Elementwise(
        name=emitter.scoped(node, "softmax"),
        inputs=(emitter.tensor(x),),
        flop_per_element=_SOFTMAX_FLOP,
    )
    emitter.add(operator, node.output)


def _last(emitter: Emitter, node: Node) -> None:
    x = node.operand()
    emitter.add(Last(name=emitter.scoped(node, "last"), inputs=(emitter.tensor(x),)), node.output)


def _gated_norm(emitter: Emitter, node: Node) -> None:
    inputs = tuple(emitter.tensor(v) for v in node.inputs if v is not None)
    emitter.add(GatedNorm(name=emitter.scoped(node, "gated_norm"), inputs=inputs), node.output)


PLAIN: Mapping[str, Emit] = {
    **dict.fromkeys(("reshape", "transpose", "expand", "cast"), _view),
    "slice": _slice,
    "norm": _norm,
    "gated_norm": _gated_norm,
    "rotary": _rotary,
    "map": _map,
    "concat": _concat,
    "reduce": _reduce,
    "softmax": _softmax,
    "last": _last,
}
