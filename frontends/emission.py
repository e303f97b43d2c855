"""From a program in kernels to operators in named dimensions."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from frontends.dimensions import Dim, Dimensions, is_patching
from frontends.flow import Flow
from frontends.fusion import is_activation, is_causal
from frontends.naming import Naming
from frontends.program import Node, Program, Value
from frontends.writer import Writer
from opgraph.attention import AbsorbedAttention, Append, DecompressedAttention
from opgraph.encoding import UnmaskedAttention
from opgraph.experts import Combine, Dispatch, GroupedEinsum, Route
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
from opgraph.recurrent import (
    CausalConv,
    GatedDeltaRule,
    GatedNorm,
    LinearAttention,
    SelectiveScan,
    StateSpaceDual,
)
from opgraph.tensor import Format, Tensor, as_format

_FORMATS = {"int64": "int32", "bool": "int8"}
_WEIGHTLESS = frozenset({"iota"})
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
        self.operators: list[Operator] = []
        self.inputs: dict[str, Tensor] = {}
        self.tensors: dict[Value, Tensor] = {}
        self.parts: dict[Value, Value] = {}
        self.aliases: dict[Value, Value] = {}
        self._names: dict[str, int] = {}

    def run(self) -> None:
        """Append every operator of the program."""
        early = _early(self.flow) if self.decodes else frozenset[Value]()
        for node in self.flow.nodes:
            if node.output in early or not any(v and self.is_data(v) for v in node.inputs):
                continue
            if node.op not in EMIT:
                raise self.program.refuse(
                    f"nothing is known of the cost of {node.op} at {node.where}"
                )
            EMIT[node.op](self, node)
        for value in self.flow.results:
            if value not in early and self.names(value)[-1:] == ("vocab",):
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
            if name in found and isinstance(atom.root.size, int):
                name = self.writer.dim(f"{name}.other", atom.root.size)
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
        names = [self.names(value) for value in values]
        labels = _labels(self.flow, values)
        parts = tuple((label, " ".join(dims)) for label, dims in zip(labels, names, strict=True))
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


def _labels(flow: Flow, values: Sequence[Value]) -> list[str]:
    del flow
    return [str(index) for index in range(len(values))]


def format_of(value: Value) -> Format:
    """The number format of a value."""
    return as_format(
        _FORMATS.get(value.dtype, value.dtype) if isinstance(value.dtype, str) else value.dtype
    )


Emit = Callable[[Emitter, Node], None]
EMIT: dict[str, Emit] = {}


def _emit(*ops: str) -> Callable[[Emit], Emit]:
    def enter(rule: Emit) -> Emit:
        EMIT.update(dict.fromkeys(ops, rule))
        return rule

    return enter


@_emit("reshape", "transpose", "expand", "cast")
def _view(emitter: Emitter, node: Node) -> None:
    emitter.alias(node.output, node.operand())


@_emit("slice")
def _slice(emitter: Emitter, node: Node) -> None:
    emitter.part(node.output, node.operand())


@_emit("gather")
def _gather(emitter: Emitter, node: Node) -> None:
    inputs = (emitter.tensor(node.operand(1)), emitter.tensor(node.operand()))
    emitter.add(Lookup(name=emitter.called(node, "lookup"), inputs=inputs), node.output)


@_emit("norm")
def _norm(emitter: Emitter, node: Node) -> None:
    x, weight, bias, *residual = (None if v is None else emitter.tensor(v) for v in node.inputs)
    inputs = (x, *residual, weight, bias)
    norm = Norm(name=emitter.called(node, "norm"), inputs=tuple(t for t in inputs if t is not None))
    emitter.add(norm, *node.outputs)


@_emit("rotary")
def _rotary(emitter: Emitter, node: Node) -> None:
    inputs = tuple(emitter.tensor(v) for v in node.inputs if v is not None)
    emitter.add(
        Rotary(name=emitter.scoped(node, "rotary"), inputs=inputs, share=float(node["share"])),
        *node.outputs,
    )


@_emit("project")
def _project(emitter: Emitter, node: Node) -> None:
    x, rest = node.operand(), node.inputs[1:]
    weights, biases = [v for v in rest[::2] if v], rest[1::2]
    first, second = str(node["equation"]).partition("->")[0].split(",")
    inner = [emitter.dims.of[weights[0]][i] for i, letter in enumerate(second) if letter in first]
    contracted = emitter.named(a for dim in inner if dim for a in dim.atoms)
    before = emitter.tensor(x)
    outer = [_kept(emitter, weight, first, second) for weight in weights]
    if len(weights) == 1:
        tensor = emitter.tensor(weights[0])
        made, name = (
            emitter.named(a for dim in outer[0] for a in dim.atoms),
            emitter.called(node, "product"),
        )
        extra = tuple(emitter.tensor(v) for v in biases if v is not None)
    else:
        name = emitter.unique(emitter.together(node))
        made = (_joined(emitter, name, outer),)
        tensor = Tensor.of(
            f"{name}.weight", " ".join((*contracted, *made)), format_of(weights[0]), "weight"
        )
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
    return emitter.derive(name.rpartition(".")[2], text)


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
    early = _early(emitter.flow)
    name = emitter.scoped(node, "attention")
    crosses = any(v in early for v in node.inputs[1:3]) and node.output not in early
    if crosses:
        _cross_attention(emitter, node, name)
        return
    words = ("heads", "kv_heads", "kv_heads")
    query, key, value = (
        emitter.placed(v, word)
        for v, word in zip(node.inputs, words, strict=False)
        if v is not None
    )
    sinks = tuple(emitter.tensor(v) for v in node.inputs[4:5] if v is not None)
    emitter.writer.attends(_kind(node))
    if not node["causal"]:
        operator: Operator = UnmaskedAttention(name=name, inputs=(query, key, value))
    else:
        window = emitter.writer.dim("window", node["window"]) if node["window"] else None
        places = "context"
        if window:
            places = emitter.derive("context.window", f"min(context, {window})")
        caches = tuple(
            Tensor.of(
                f"{name}.{label}_cache",
                " ".join(("batch", places, *t.dims[-2:])),
                t.format,
                "cache",
            )
            for label, t in (("k", key), ("v", value))
        )
        operator = Attention(name=name, inputs=(query, key, value, *sinks, *caches), window=window)
    emitter.add(operator, node.output)


def _cross_attention(emitter: Emitter, node: Node, name: str) -> None:
    """Keys and values of what an encoder made: kept by the step that makes them."""
    query, *pair = (v for v in node.inputs[:3] if v is not None)
    shapes = [emitter.shaped(v, "kv_heads") for v in pair]
    caches = tuple(
        Tensor.of(f"{name}.{label}_cache", " ".join(dims), format_of(v), "cache")
        for label, dims, v in zip("kv", shapes, pair, strict=True)
    )
    made = () if emitter.decodes else tuple(emitter.placed(v, "kv_heads") for v in pair)
    inputs = (emitter.placed(query, "heads"), *made, *caches)
    emitter.add(UnmaskedAttention(name=name, inputs=inputs), node.output)


@_emit("conv")
def _conv(emitter: Emitter, node: Node) -> None:
    """A product over the places that each place sees."""
    x, weight, *bias = (v for v in node.inputs if v is not None)
    if node["groups"] != 1:
        raise emitter.program.refuse(f"a convolution in {node['groups']} groups at {node.where}")
    source, matrix = emitter.tensor(x), emitter.tensor(weight)
    made, *inner = matrix.dims
    out = emitter.names(node.output)
    places = [dim for dim in out if dim != made]
    if not is_patching(node):
        parts = (("", " ".join((*places, *inner))),)
        seen = View(name=emitter.scoped(node, "windows"), inputs=(source,), parts=parts)
        (source,) = emitter.add(seen)
    pattern = f"{' '.join(source.dims)}, {' '.join(matrix.dims)} -> {' '.join((*places, made))}"
    inputs = (source, matrix, *(emitter.tensor(v) for v in bias))
    emitter.add(
        Einsum(name=emitter.called(node, "conv"), inputs=inputs, pattern=pattern), node.output
    )


@_emit("mla")
def _latent_attention(emitter: Emitter, node: Node) -> None:
    """In the latent space when decoding, with keys and values of every head in a prefill: as
    `frontends.LatentAttention` writes it.
    """
    writer = emitter.writer
    writer.attends("MLA")
    heads = ((0, "batch"), (2, "seq"), (1, "heads"), (3, "nope"))
    up = node.operand(4)
    parts = [emitter.formed(node.operand(i), heads) for i in (0, 1)]
    parts += [emitter.tensor(node.operand(i)) for i in (2, 3)]
    rank, rope = parts[2].dims[-1], parts[3].dims[-1]
    own = emitter.axis(emitter.dims.of[node.output][3], "value_dim")
    name = emitter.scoped(node, "attention")
    width = emitter.derive("latent", f"{rank} + {rope}")
    cache = Tensor.of(f"{name}.latent_cache", f"batch context {width}", parts[2].format, "cache")
    head, nope = parts[0].dims[2:]
    keys = Tensor.of(f"{up.name}.k", f"{head} {nope} {rank}", format_of(up), "weight")
    values = Tensor.of(f"{up.name}.v", f"{head} {rank} {own}", format_of(up), "weight")
    form = _absorbed if emitter.decodes else _decompressed
    form(emitter, node, parts, (keys, values, cache))


def _absorbed(
    emitter: Emitter, node: Node, parts: Sequence[Tensor], rest: Sequence[Tensor]
) -> None:
    (query, turned, latent, shared), (keys, values, cache) = parts, rest
    at, rank, name = " ".join(query.dims[:3]), latent.dims[-1], partial(emitter.scoped, node)
    pattern = f"{' '.join(query.dims)}, {' '.join(keys.dims)} -> {at} {rank}"
    (query,) = emitter.add(Einsum(name=name("k_up"), inputs=(query, keys), pattern=pattern))
    inputs = (query, turned, latent, shared, cache)
    (out,) = emitter.add(AbsorbedAttention(name=name("absorbed"), inputs=inputs))
    pattern = f"{' '.join(out.dims)}, {' '.join(values.dims)} -> {at} {values.dims[-1]}"
    emitter.add(Einsum(name=name("v_up"), inputs=(out, values), pattern=pattern), node.output)


def _decompressed(
    emitter: Emitter, node: Node, parts: Sequence[Tensor], rest: Sequence[Tensor]
) -> None:
    (query, turned, latent, shared), (keys, values, cache) = parts, rest
    name, head = partial(emitter.scoped, node), query.dims[2]
    latent, shared = emitter.add(Append(name=name("append"), inputs=(latent, shared, cache)))
    made: list[Tensor] = []
    for label, weight, out in (("k_up", keys, keys.dims[1]), ("v_up", values, values.dims[2])):
        result = f"batch context {head} {out}"
        pattern = f"{' '.join(latent.dims)}, {' '.join(weight.dims)} -> {result}"
        made += emitter.add(Einsum(name=name(label), inputs=(latent, weight), pattern=pattern))
    inputs = (query, turned, made[0], shared, made[1])
    emitter.add(DecompressedAttention(name=name("decompressed"), inputs=inputs), node.output)


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


@_emit("concat")
def _concat(emitter: Emitter, node: Node) -> None:
    inputs = tuple(emitter.tensor(v) for v in node.inputs if v is not None and emitter.is_data(v))
    dims = " ".join(emitter.names(node.output))
    operator = Elementwise(
        name=emitter.scoped(node, "concat"), inputs=inputs, dims=dims, flop_per_element=0
    )
    emitter.add(operator, node.output)


@_emit("softmax")
def _softmax(emitter: Emitter, node: Node) -> None:
    x = node.operand()
    operator = Elementwise(
        name=emitter.scoped(node, "softmax"),
        inputs=(emitter.tensor(x),),
        flop_per_element=_SOFTMAX_FLOP,
    )
    emitter.add(operator, node.output)


@_emit("last")
def _last(emitter: Emitter, node: Node) -> None:
    x = node.operand()
    emitter.add(Last(name=emitter.scoped(node, "last"), inputs=(emitter.tensor(x),)), node.output)


@_emit("gated_norm")
def _gated_norm(emitter: Emitter, node: Node) -> None:
    inputs = tuple(emitter.tensor(v) for v in node.inputs if v is not None)
    emitter.add(GatedNorm(name=emitter.scoped(node, "gated_norm"), inputs=inputs), node.output)


@_emit("experts")
def _experts(emitter: Emitter, node: Node) -> None:
    """Route, send each token to its experts, compute their rows and add them up."""
    writer, scope = emitter.writer, partial(emitter.scoped, node)
    tokens, topk = emitter.tensor(node.operand()), writer.dim("topk", node["k"])
    routes = emitter.tensor(node.operand(1))
    if topk not in routes.dims:
        biases = tuple(emitter.tensor(v) for v in node.inputs[8:] if v is not None)
        (routes,) = emitter.add(Route(name=scope("route"), inputs=(routes, *biases), topk=topk))
    up, down, up_bias, down_bias, *gate = node.inputs[2:8]
    weights = emitter.dims.of[node.operand(3)]
    narrow = 1 if node["transposed"] else 2
    experts, ffn = emitter.axis(weights[0], "experts"), emitter.axis(weights[narrow], "ffn")
    writer.inactive[experts] = topk
    columns = emitter.derive("expert_gate_up", f"2*{ffn}") if node["gated"] else ffn
    (rows,) = emitter.add(Dispatch(name=scope("dispatch"), inputs=(tokens, routes)))
    rows = _grouped(
        emitter, node, "up", rows, ((up, up_bias), gate), (experts, rows.dims[-1], columns)
    )
    activation = Activation(
        name=scope("experts_activation"),
        inputs=(rows,),
        dims=" ".join((*rows.dims[:-1], ffn)),
        flop_per_element=4 + node["gated"],
    )
    (rows,) = emitter.add(activation)
    rows = _grouped(
        emitter, node, "down", rows, ((down, down_bias),), (experts, ffn, tokens.dims[-1])
    )
    emitter.add(Combine(name=scope("combine"), inputs=(rows, routes)), node.output)


def _grouped(
    emitter: Emitter,
    node: Node,
    label: str,
    rows: Tensor,
    pairs: Sequence[Sequence[Value | None]],
    dims: tuple[str, str, str],
) -> Tensor:
    """The product of each row with the matrices of its expert, which are one: each of *pairs* is a
    matrix and its bias; *dims* are those of the weight.
    """
    name, shape = emitter.scoped(node, label), " ".join(dims)
    matrices, biases = ([v for v in column if v is not None] for column in zip(*pairs, strict=True))
    alone = len(matrices) == 1
    weight = matrices[0].name if alone else f"{name}.weight"
    inputs = [rows, Tensor.of(weight, shape, format_of(matrices[0]), "weight")]
    if biases:
        bias = biases[0].name if alone else f"{name}.bias"
        inputs.append(Tensor.of(bias, f"{dims[0]} {dims[2]}", format_of(biases[0]), "weight"))
    pattern = f"{' '.join(rows.dims)}, {shape} -> {' '.join((*rows.dims[:-1], dims[2]))}"
    operator = GroupedEinsum(name=name, inputs=tuple(inputs), pattern=pattern, experts=dims[0])
    return emitter.add(operator)[0]


@_emit("scan")
def _scan(emitter: Emitter, node: Node) -> None:
    SCAN_RULES[node["kind"]](emitter, node)


def _convolve(emitter: Emitter, node: Node) -> None:
    x, weight, *bias = (v for v in node.inputs if v is not None)
    signal, taps = emitter.tensor(x), emitter.names(weight)[-1]
    emitter.writer.numbers.setdefault(taps, int(weight.shape[-1]))
    tail = emitter.derive("tail", f"{taps} - 1")
    name = emitter.scoped(node, "conv")
    weights = tuple(emitter.tensor(v) for v in (weight, *bias))
    channels = " ".join(dim for dim in signal.dims if dim not in ("batch", "seq"))
    state = Tensor.of(f"{name}.state", f"batch {channels} {tail}", signal.format, "cache")
    emitter.add(CausalConv(name=name, inputs=(signal, *weights, state)), node.output)


_KEYS = ((0, "batch"), (1, "seq"), (2, "groups"), (3, "state"))
_VALUES = ((0, "batch"), (1, "seq"), (2, "ssm_heads"), (3, "ssm_dim"))
_GATES = ((0, "batch"), (1, "seq"), (2, "ssm_heads"))


def _linear_attention(kind: type[LinearAttention], places: str, chunk: int) -> Emit:
    """A rule for a recurrence with matrix-valued states: *places* are those of values, keys,
    queries and gates among the inputs; what else there is are weights.
    """
    order = [int(place) for place in places]

    def rule(emitter: Emitter, node: Node) -> None:
        axes = (_VALUES, _KEYS, _KEYS, *[_GATES] * (len(order) - 3))
        given = [node.inputs[place] for place in order]
        parts = [emitter.formed(v, a) for v, a in zip(given, axes, strict=True) if v is not None]
        rest = [v for v in node.inputs if v is not None and v not in given]
        name = emitter.scoped(node, "scan")
        dims = " ".join((*parts[0].dims[:1], *parts[0].dims[2:], parts[1].dims[-1]))
        state = Tensor.of(f"{name}.state", dims, "fp32", "cache")
        emitter.writer.attends(kind.kind)
        operator = kind(
            name=name,
            inputs=(*parts, *(emitter.tensor(v) for v in rest), state),
            chunk=emitter.writer.dim("chunk", node["chunk"] or chunk),
        )
        (out,) = emitter.add(operator, node.output)
        names = emitter.names(node.output)
        if set(names) != set(out.dims):
            emitter.arranged(node.output, names)

    return rule


def _selective_scan(emitter: Emitter, node: Node) -> None:
    x, delta, a, b, c, d, z, *rest = node.inputs
    name = emitter.scoped(node, "scan")
    parts = tuple(emitter.tensor(v) for v in (x, delta, z, b, c, a, d, *rest) if v is not None)
    dims = f"batch {parts[5].dims[0]} {parts[5].dims[1]}"
    state = Tensor.of(f"{name}.state", dims, "fp32", "cache")
    emitter.writer.attends("selective_scan")
    emitter.add(SelectiveScan(name=name, inputs=(*parts, state)), node.output)


# the chunk that the kernels of flash-linear-attention use for delta rules
SCAN_RULES: dict[str, Emit] = {
    "conv": _convolve,
    "selective": _selective_scan,
    "ssd": _linear_attention(StateSpaceDual, "0341", 0),
    "delta": _linear_attention(GatedDeltaRule, "01234", 64),
}
