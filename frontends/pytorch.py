"""PyTorch modules: exported on tensors without content, and lowered to a program."""

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from frontends.imported import Imported, to_model
from frontends.naming import Names
from frontends.program import Program, Shape, Size, Value
from hardware import SpecError
from hardware.errors import nearest

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

Rule = Callable[["Lowering", Any], Any]

_FORMATS = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "float64": "fp32",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
    "int8": "int8",
    "uint8": "int8",
    "int16": "int32",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
    "complex64": "fp32",
}


def from_torch(
    module: "torch.nn.Module",
    example_inputs: "Sequence[Any] | Mapping[str, Any]",
    *,
    dynamic: "Mapping[str, Sequence[str | None]] | None" = None,
    names: Names | None = None,
    name: str | None = None,
) -> Imported:
    """The model of a PyTorch module, from ``torch.export`` on tensors without content.

    Neither weights nor a GPU are needed: a module on the ``meta`` device serves as well as a real
    one. The size of an axis that stays open in the export is that of the workload, by its role.

    Parameters
    ----------
    module : anything that ``torch.export`` takes; it is traced as it stands (``eval()`` first).
    example_inputs : arguments of ``forward`` by position or by name; only shapes and dtypes count.
    dynamic : axes that stay open, by input: ``{"x": ("batch", "seq", None)}``; the words are their
        names. Every axis of every input, as far as the code allows, if not given.
    names : weights or inputs (``*`` stands for anything) → a word for each axis, or None.
    name : what the model is called; the module's class if not given.

    Raises
    ------
    SpecError : code that cannot be traced, an operator that is not known, or *names* that do not
        fit.
    """
    needs_torch()
    name = name or type(module).__name__
    places = {key: words for key, words in (dynamic or {}).items() if words}
    program = traced(module, example_inputs, name, f"torch.export of {name}", dynamic)
    return to_model(program, {**places, **(names or {})})


def needs_torch() -> None:
    """Refuse to go on without PyTorch.

    Raises
    ------
    SpecError : it is not installed.
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        raise SpecError("PyTorch is not installed: pip install 'opgraph[torch]'") from None


def traced(
    module: Any,
    inputs: Sequence[Any] | Mapping[str, Any],
    name: str,
    source: str,
    dynamic: Mapping[str, Sequence[str | None]] | None = None,
) -> Program:
    """The program of *module*; tensors among *inputs* stay inputs, what else there is is fixed.

    Raises
    ------
    SpecError : it cannot be traced, or has an operator that is not in the table.
    """
    import torch

    by_name = dict(inputs) if isinstance(inputs, Mapping) else _by_position(module, inputs)
    tensors = {key: value for key, value in by_name.items() if isinstance(value, torch.Tensor)}
    fixed = {key: value for key, value in by_name.items() if key not in tensors}
    for key in dynamic or {}:
        if key not in tensors:
            raise SpecError(f"{name}: dynamic names no input {key!r}{nearest(key, tensors)}")
    open_axes = tuple(
        {axis: torch.export.Dim.AUTO for axis in range(value.ndim) if _is_open(dynamic, key, axis)}
        for key, value in tensors.items()
    )
    exported = _export(module, tensors, fixed, open_axes, name)
    return Lowering(exported, Program(name, source), list(tensors)).program()


def _export(
    module: Any, tensors: Mapping[str, Any], fixed: Mapping[str, Any], open_axes: Any, name: str
) -> "ExportedProgram":
    import torch

    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    arguments = tuple(value.to(device) for value in tensors.values())
    try:
        with torch.no_grad():
            return torch.export.export(
                _wrapped(module, tuple(tensors), fixed),
                arguments,
                dynamic_shapes=(open_axes,),
                strict=False,
            )
    except SpecError:
        raise
    except Exception as error:  # whatever the user's code or the tracer raises
        first = next(
            (line for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise SpecError(
            f"{name} cannot be traced: {type(error).__name__}: {first.strip()[:300]}"
        ) from error


def _is_open(dynamic: Mapping[str, Sequence[str | None]] | None, key: str, axis: int) -> bool:
    return dynamic is None or bool(key in dynamic and dynamic[key][axis : axis + 1])


def _by_position(module: Any, inputs: Sequence[Any]) -> dict[str, Any]:
    """Arguments by the names that ``forward`` has for them."""
    import inspect

    known = list(inspect.signature(module.forward).parameters)
    return {known[i] if i < len(known) else f"input{i}": value for i, value in enumerate(inputs)}


def _wrapped(module: Any, names: tuple[str, ...], fixed: Mapping[str, Any]) -> Any:
    """A module that takes tensors by position and calls *module* with what else it needs."""
    import torch

    class Traced(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *tensors: Any) -> Any:
            return _tensors(self.model(**dict(zip(names, tensors, strict=True)), **fixed))

    return Traced()


def _tensors(results: Any) -> Any:
    """The tensors of what a module returns."""
    import torch

    flat = [
        r
        for r in _flat(getattr(results, "to_tuple", lambda: results)())
        if isinstance(r, torch.Tensor)
    ]
    return tuple(flat)


class Lowering:
    """One walk over the graphs of an exported program."""

    def __init__(self, exported: "ExportedProgram", program: Program, names: list[str]) -> None:
        self.exported = exported
        self.names = names
        self.p = program
        self.values: dict[Any, Any] = {}
        self.pieces: defaultdict[Any, list[tuple[Size, int, Value]]] = defaultdict(list)

    def program(self) -> Program:
        module = self.exported.graph_module
        self._enter(module)
        for result in self._run(module):
            if isinstance(result, Value):
                self.p.output(result)
        return self.p

    def _enter(self, module: Any) -> None:
        """Inputs, weights and buffers; what is stored with a model counts as a weight."""
        specs = {spec.arg.name: spec for spec in self.exported.graph_signature.input_specs}
        for node in module.graph.nodes:
            if node.op != "placeholder":
                continue
            spec, meta = specs[node.name], node.meta.get("val")
            if not hasattr(meta, "shape"):
                self.values[node] = as_size(meta)
                continue
            shape, dtype = shape_of(meta), format_of(meta)
            stored = spec.kind.name == "PARAMETER" or (
                spec.kind.name == "BUFFER" and spec.persistent and meta.dtype.is_floating_point
            )
            if stored:
                self.values[node] = self.p.weight(spec.target.removeprefix("model."), shape, dtype)
            elif spec.kind.name == "USER_INPUT":
                self.values[node] = self.p.input(self.names.pop(0), shape, dtype)
            else:
                self.values[node] = self.p.constant(None, shape, dtype)

    def _run(self, module: Any) -> list[Any]:
        """Lower what the results of *module* depend on; the results."""
        live = _live(module.graph)
        for node in module.graph.nodes:
            if node.op == "get_attr":
                self.values[node] = self._attribute(module, node)
            elif node.op == "call_function" and node in live:
                self.values[node] = self._call(node)
            elif node.op == "output":
                return [self.values.get(arg, arg) for arg in _flat(node.args)]
        raise AssertionError(module)

    def _attribute(self, module: Any, node: Any) -> Any:
        found = operator.attrgetter(node.target)(module)
        if hasattr(found, "shape"):
            return self.p.constant(None, shape_of(found), format_of(found))
        return found

    def _call(self, node: Any) -> Any:
        meta = node.meta.get("val")
        if meta is not None and not hasattr(meta, "shape") and not isinstance(meta, list | tuple):
            return as_size(meta)
        if node.target is operator.getitem:
            whole, index = node.args
            return self.values[whole][index]
        name = _name_of(node.target)
        if name not in ATEN:  # in place or not is no matter
            name = name.removesuffix("_")
        self.p.where = place_of(node)
        if name not in ATEN:
            raise self.p.refuse(
                f"there is no rule for the operator {name}",
                "put what it computes into operators that are known, or add a rule to "
                "frontends.pytorch.ATEN",
            )
        return ATEN[name](self, Call(self, node))

    def written(self, target: Any, update: Value) -> None:
        """*update* is copied into *target*, a tensor or a slice of one; whole again when all of it
        is written.
        """
        base = _base(target)
        if base is target:
            self.values[base] = update
            return
        whole, call = self.values[base], Call(self, target)
        axis = call.get("dim", 0) % whole.rank
        self.pieces[base].append((call.get("start", 0), axis, update))
        pieces = sorted(self.pieces[base], key=lambda piece: str(piece[0]).zfill(20))
        if sum(value.shape[axis] for _, axis, value in pieces) == whole.shape[axis]:
            self.values[base] = self.p.concat([value for _, _, value in pieces], axis)

    def value(self, argument: Any, call: "Call") -> Value:
        """An operand as a value; a number becomes a constant."""
        if isinstance(argument, Value):
            return argument
        return self.p.constant(argument, (), call.dtype)

    def inlined(self, module: Any, arguments: Sequence[Any]) -> list[Any]:
        """The results of a graph within the graph."""
        places = [node for node in module.graph.nodes if node.op == "placeholder"]
        self.values |= dict(zip(places, arguments, strict=True))
        return self._run(module)


class Call:
    """A call in the graph: its arguments by the names of the schema, values put in."""

    def __init__(self, lowering: Lowering, node: Any) -> None:
        self._known = lowering.values
        self.node = node
        self.arguments = [self._value(argument) for argument in node.args]
        self.options = {key: self._value(value) for key, value in node.kwargs.items()}
        schema = getattr(node.target, "_schema", None)
        if schema is not None:
            named = zip(schema.arguments, self.arguments, strict=False)
            defaults = {a.name: a.default_value for a in schema.arguments}
            self.options = defaults | {a.name: value for a, value in named} | self.options

    def __getitem__(self, name: str) -> Any:
        return self.options[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The argument called *name*, if there is one and it is given."""
        found = self.options.get(name)
        return default if found is None else found

    @property
    def first(self) -> Any:
        """The first argument."""
        return self.arguments[0]

    @property
    def meta(self) -> Any:
        """What comes out, without content."""
        return self.node.meta["val"]

    @property
    def shape(self) -> Shape:
        """The shape of what comes out."""
        return shape_of(self.meta)

    @property
    def dtype(self) -> str:
        """The format of what comes out."""
        return format_of(self.meta)

    def _value(self, argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return [self._value(entry) for entry in argument]
        try:
            return self._known.get(argument, argument)
        except TypeError:
            return argument


def shape_of(tensor: Any) -> Shape:
    """A tensor's shape in sizes."""
    return tuple(map(as_size, tensor.shape))


def as_size(number: Any) -> Size:
    """An integer as it is, a symbolic one as its SymPy expression."""
    node = getattr(number, "node", None)
    if node is None:
        return number
    return int(node.expr) if node.expr.is_Integer else node.expr


def format_of(tensor: Any) -> str:
    """The format's name of a tensor's elements.

    Raises
    ------
    SpecError : a dtype that is not known.
    """
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in _FORMATS:
        raise SpecError(f"no number format for torch.{name}; there are {', '.join(_FORMATS)}")
    return _FORMATS[name]


def place_of(node: Any) -> str:
    """Where in the user's modules and files *node* comes from."""
    stack = node.meta.get("nn_module_stack") or {}
    module = next(reversed(stack.values()), ("",))[0].partition(".")[2]
    lines = [line for line in (node.meta.get("stack_trace") or "").splitlines() if "File" in line]
    parts = lines[-1].split('"')[1:] if lines else ()
    file = (
        f"{parts[0].rpartition('/')[2]}{parts[1].split(', in')[0].replace(', line ', ':')}"
        if parts
        else ""
    )
    return f"{module} ({file})" if file else module


def _flat(arguments: Any) -> Iterator[Any]:
    if isinstance(arguments, list | tuple):
        for argument in arguments:
            yield from _flat(argument)
    elif isinstance(arguments, dict):
        yield from _flat(list(arguments.values()))
    else:
        yield arguments


def _live(graph: Any) -> set[Any]:
    """The nodes that the results of *graph* depend on."""
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    writers: defaultdict[Any, list[Any]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "call_function" and _name_of(node.target) == "copy_":
            writers[_base(node.args[0])].append(node)
    live, todo = {output}, [output]
    while todo:
        last = todo.pop()
        for node in (*last.all_input_nodes, *writers.get(last, ())):
            if node not in live:
                live.add(node)
                todo.append(node)
    return live


def _base(node: Any) -> Any:
    """The tensor that *node* is a slice of."""
    while node.op == "call_function" and _name_of(node.target) in ("slice", "narrow", "alias"):
        node = node.args[0]
    return node


def _name_of(target: Any) -> str:
    """``aten.add``, ``opgraph.attention``, ``higher_order.wrap_with_set_grad_enabled``."""
    schema = getattr(target, "_schema", None)
    if schema is not None:
        return str(schema.name).replace("::", ".").removeprefix("aten.")
    return getattr(target, "__name__", str(target))


# one rule for each ATen operator

ATEN: dict[str, Rule] = {}


def aten(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule into the table under *names*."""

    def enter(rule: Rule) -> Rule:
        ATEN.update(dict.fromkeys(names, rule))
        return rule

    return enter


@aten(*["contiguous", "clone", "detach", "alias", "dropout", "feature_dropout", "lift_fresh_copy"])
def _same(_: Lowering, call: Call) -> Any:
    return call.first


@aten("copy_")
def _copy(low: Lowering, call: Call) -> Value:
    update: Value = call.arguments[1]
    low.written(call.node.args[0], update)
    return update


@aten("to", "_to_copy", "type_as", "float", "bfloat16")
def _cast(low: Lowering, call: Call) -> Value:
    return call.first if call.dtype == call.first.dtype else low.p.cast(call.first, call.dtype)


@aten(
    *[
        "view",
        "reshape",
        "_unsafe_view",
        "flatten",
        "unflatten",
        "unsqueeze",
        "squeeze",
        "view_as",
        "reshape_as",
    ]
)
def _reshape(low: Lowering, call: Call) -> Value:
    return low.p.reshape(call.first, call.shape)


@aten("transpose", "swapaxes")
def _transpose(low: Lowering, call: Call) -> Value:
    x, (one, other) = call.first, call.arguments[1:3]
    order = list(range(x.rank))
    order[one], order[other] = order[other], order[one]
    return low.p.transpose(x, order)


@aten("t", "numpy_T", "mT")
def _turned(low: Lowering, call: Call) -> Value:
    rank = call.first.rank
    return (
        low.p.transpose(call.first, [*range(rank - 2), rank - 1, rank - 2])
        if rank > 1
        else call.first
    )


@aten("permute")
def _permute(low: Lowering, call: Call) -> Value:
    return low.p.transpose(call.first, call["dims"])


@aten("movedim")
def _movedim(low: Lowering, call: Call) -> Value:
    x = call.first
    source, target = (
        [a % x.rank for a in (arg if isinstance(arg, list) else [arg])]
        for arg in call.arguments[1:3]
    )
    order = [axis for axis in range(x.rank) if axis not in source]
    for to, axis in sorted(zip(target, source, strict=True)):
        order.insert(to, axis)
    return low.p.transpose(x, order)


@aten("expand", "expand_as", "broadcast_to")
def _expand(low: Lowering, call: Call) -> Value:
    return low.p.expand(call.first, call.shape)


@aten("repeat", "tile")
def _repeat(low: Lowering, call: Call) -> Value:
    times = call.arguments[1]
    shape = (*[1] * (len(times) - call.first.rank), *call.first.shape)
    apart = [size for pair in zip([1] * len(times), shape, strict=True) for size in pair]
    wide = [size for pair in zip(times, shape, strict=True) for size in pair]
    spread = low.p.expand(low.p.reshape(call.first, apart), wide)
    return low.p.reshape(spread, call.shape)


@aten("repeat_interleave")
def _repeat_interleave(low: Lowering, call: Call) -> Value:
    x, times, axis = call.first, call["repeats"], call.get("dim", 0) % call.first.rank
    apart = (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :])
    wide = (*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
    return low.p.reshape(low.p.expand(low.p.reshape(x, apart), wide), call.shape)


@aten("slice", "narrow")
def _slice(low: Lowering, call: Call) -> Value:
    x: Value = call.first
    axis = call.get("dim", 0) % x.rank
    length = call.shape[axis]
    start, step = call.get("start", 0), call.get("step", 1)
    if length == x.shape[axis]:
        return x
    if isinstance(start, int) and start < 0:
        start += x.shape[axis]
    return low.p.slice(x, axis, start, start + length * step, step)


@aten("select")
def _select(low: Lowering, call: Call) -> Value:
    x, axis, index = call.first, call["dim"] % call.first.rank, call["index"]
    if isinstance(index, int) and index < 0:
        index += x.shape[axis]
    return low.p.reshape(low.p.slice(x, axis, index, index + 1), call.shape)


@aten("split", "chunk", "split_with_sizes", "unbind", "tensor_split")
def _split(low: Lowering, call: Call) -> list[Value]:
    x, axis, start, parts = call.first, call.get("dim", 0) % call.first.rank, 0, []
    for meta in call.meta:
        shape = shape_of(meta)
        length = shape[axis] if len(shape) == x.rank else 1
        part = low.p.slice(x, axis, start, start + length)
        parts.append(part if len(shape) == x.rank else low.p.reshape(part, shape))
        start += length
    return parts


@aten("cat", "concat", "concatenate")
def _concat(low: Lowering, call: Call) -> Value:
    parts = [part for part in call["tensors"] if 0 not in part.shape]
    return low.p.concat(parts, call.get("dim", 0)) if len(parts) > 1 else parts[0]


@aten("stack")
def _stack(low: Lowering, call: Call) -> Value:
    axis = call.get("dim", 0) % len(call.shape)
    shape = (*call.shape[:axis], 1, *call.shape[axis + 1 :])
    return low.p.concat([low.p.reshape(part, shape) for part in call["tensors"]], axis)


@aten("pad", "constant_pad_nd")
def _pad(low: Lowering, call: Call) -> Value:
    x: Value = call.first
    pads = call["pad"]
    for index in range(len(pads) // 2):
        axis = x.rank - 1 - index
        ends = [
            low.p.constant(0, (*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype)
            if size != 0
            else None
            for size in pads[2 * index : 2 * index + 2]
        ]
        parts = [part for part in (ends[0], x, ends[1]) if part is not None]
        if len(parts) > 1:
            x = low.p.concat(parts, axis)
    return x


@aten("view_as_complex", "view_as_real")
def _pairs(low: Lowering, call: Call) -> Value:
    return low.p.add("pairs", [call.first], [call.shape], call.dtype)


@aten("linear")
def _linear(low: Lowering, call: Call) -> Value:
    x, weight = call.arguments[:2]
    letters = _letters(x.rank - 1)
    result = low.p.einsum(f"{letters}y,zy->{letters}z", x, weight)
    bias = call.get("bias")
    return low.p.elementwise("add", result, bias) if bias else result


@aten("matmul", "mm", "bmm")
def _matmul(low: Lowering, call: Call) -> Value:
    a, b = call.arguments[:2]
    rank = max(a.rank, b.rank, 2) - 2
    letters = _letters(rank)
    first = letters[rank - max(a.rank - 2, 0) :] + ("xy" if a.rank > 1 else "y")
    second = letters[rank - max(b.rank - 2, 0) :] + ("yz" if b.rank > 1 else "y")
    result = letters + "x" * (a.rank > 1) + "z" * (b.rank > 1)
    return low.p.einsum(f"{first},{second}->{result}", a, b)


@aten("addmm", "baddbmm")
def _addmm(low: Lowering, call: Call) -> Value:
    bias, a, b = call.arguments[:3]
    batch = "b" * (a.rank - 2)
    product = low.p.einsum(f"{batch}xy,{batch}yz->{batch}xz", a, b)
    return low.p.elementwise("add", product, bias)


@aten("einsum")
def _einsum(low: Lowering, call: Call) -> Value:
    equation, values = call.arguments[0].replace(" ", ""), call.arguments[1]
    terms, _, result = equation.partition("->")
    if "..." in equation:
        free = "".join(letter for letter in _LETTERS if letter not in equation)
        rank = max(v.rank - len(t) + 3 for t, v in zip(terms.split(","), values, strict=True))
        equation = equation.replace("...", free[:rank])
    elif "->" not in equation:
        once = sorted(letter for letter in terms if terms.count(letter) == 1 and letter != ",")
        equation = f"{terms}->{''.join(once)}"
    del result
    return low.p.einsum(equation, *values)


@aten("softmax", "_softmax", "log_softmax", "special_softmax")
def _softmax(low: Lowering, call: Call) -> Value:
    return low.p.softmax(call.first, call["dim"])


@aten("layer_norm", "native_layer_norm")
def _layer_norm(low: Lowering, call: Call) -> Value:
    axes = len(call["normalized_shape"])
    return low.p.norm("layer", call.first, call.get("weight"), call.get("bias"), axes=axes)


@aten("rms_norm", "_fused_rms_norm")
def _rms_norm(low: Lowering, call: Call) -> Value:
    return low.p.norm("rms", call.first, call.get("weight"), axes=len(call["normalized_shape"]))


@aten("group_norm")
def _group_norm(low: Lowering, call: Call) -> Value:
    weight, bias = call.get("weight"), call.get("bias")
    return low.p.norm("group", call.first, weight, bias, groups=call["num_groups"])


@aten("embedding")
def _embedding(low: Lowering, call: Call) -> Value:
    return low.p.gather(call["weight"], call["indices"])


@aten("index")
def _index(low: Lowering, call: Call) -> Value:
    x, indices = call.first, call["indices"]
    given = [axis for axis, index in enumerate(indices) if index is not None]
    if len(given) == 1:
        return low.p.gather(x, indices[given[0]], given[0])
    return low.p.add("gather", [x, *(indices[axis] for axis in given)], [call.shape], axis=None)


@aten("index_select")
def _index_select(low: Lowering, call: Call) -> Value:
    return low.p.gather(call.first, call["index"], call["dim"])


@aten("gather")
def _gather(low: Lowering, call: Call) -> Value:
    axis = call["dim"] % call.first.rank
    return low.p.add("gather", [call.first, call["index"]], [call.shape], axis=axis, along=True)


@aten("index_copy", "index_add", "scatter", "scatter_add", "index_put")
def _scatter(low: Lowering, call: Call) -> Value:
    if "indices" in call.options:
        return low.p.add("scatter", [call.first, call["values"]], [call.first.shape], axis=None)
    into: Value = call.first
    updates = call.get("source", call.get("src"))
    if not isinstance(updates, Value):
        return into
    return low.p.scatter(call.first, call["index"], updates, call["dim"])


@aten("slice_scatter", "select_scatter")
def _slice_scatter(low: Lowering, call: Call) -> Value:
    return low.p.scatter(call.first, None, call["src"], call.get("dim", 0))


@aten("topk")
def _topk(low: Lowering, call: Call) -> tuple[Value, Value]:
    return low.p.topk(call.first, call["k"], call.get("dim", -1))


@aten("sort")
def _sort(low: Lowering, call: Call) -> tuple[Value, Value]:
    shapes = [call.first.shape] * 2
    low.p.add("sort", [call.first], shapes, [call.first.dtype, "int64"], axis=call.get("dim", -1))
    one, other = low.p.nodes[-1].outputs
    return one, other


@aten("max", "min")
def _extreme(low: Lowering, call: Call) -> Any:
    name = _name_of(call.node.target)
    if isinstance(call.options.get("other"), Value):
        return low.p.elementwise(name, *call.arguments[:2])
    if "dim" not in call.options:
        return low.p.reduce(name, call.first, range(call.first.rank))
    axes, keep = [call["dim"]], call.get("keepdim", False)
    return [low.p.reduce(fn, call.first, axes, keep) for fn in (name, "argmax")]


@aten(
    *[
        "sum",
        "mean",
        "amax",
        "amin",
        "any",
        "all",
        "argmax",
        "prod",
        "var",
        "logsumexp",
        "std",
        "norm",
    ]
)
def _reduce(low: Lowering, call: Call) -> Value:
    name = _name_of(call.node.target)
    axes = call.get("dim", list(range(call.first.rank)))
    axes = axes if isinstance(axes, list) else [axes]
    axes = axes or list(range(call.first.rank))
    fn = {"amax": "max", "amin": "min"}.get(name, name)
    return low.p.reduce(fn, call.first, axes, call.get("keepdim", False))


@aten("cumsum", "cumprod")
def _cumulate(low: Lowering, call: Call) -> Value:
    return low.p.cumulate(_name_of(call.node.target).removeprefix("cum"), call.first, call["dim"])


@aten("arange")
def _arange(low: Lowering, call: Call) -> Value:
    return low.p.add("iota", [], [call.shape], call.dtype)


@aten(
    *[
        "full",
        "ones",
        "zeros",
        "empty",
        "scalar_tensor",
        "full_like",
        "zeros_like",
        "ones_like",
        "empty_like",
    ],
    *["new_zeros", "new_ones", "new_full", "new_empty", "fill", "tensor", "linspace", "eye"],
)
def _filled(low: Lowering, call: Call) -> Value:
    value = call.get("fill_value", 1 if "ones" in _name_of(call.node.target) else 0)
    return low.p.constant(None if isinstance(value, Value) else value, call.shape, call.dtype)


@aten("tril", "triu")
def _triangle(low: Lowering, call: Call) -> Value:
    """A comparison of rows and columns, so that a mask is seen to be causal."""
    rows, columns = (low.p.add("iota", [], [(size,)], "int64") for size in call.shape[-2:])
    rows = low.p.reshape(rows, (call.shape[-2], 1))
    if shift := call.get("diagonal", 0):
        rows = low.p.elementwise("add", rows, low.p.constant(shift, (), "int64"))
    fn = "le" if _name_of(call.node.target) == "tril" else "ge"
    inside = low.p.elementwise(fn, columns, rows)
    return low.p.elementwise("where", inside, call.first, low.p.constant(0, (), call.dtype))


@aten("conv1d", "conv2d", "conv3d", "convolution")
def _conv(low: Lowering, call: Call) -> Value:
    x, weight = call.arguments[:2]
    options = {
        name: tuple(call.get(key, ()))
        for name, key in (("strides", "stride"), ("pads", "padding"), ("dilations", "dilation"))
    }
    return low.p.conv(x, weight, call.get("bias"), call.shape, call.get("groups", 1), **options)


@aten("scaled_dot_product_attention")
def _attention(low: Lowering, call: Call) -> Value:
    query, key, value = call.arguments[:3]
    lead = _letters(query.rank - 3) if query.rank != 4 else ""
    if lead or query.rank < 3:
        raise low.p.refuse(f"attention over queries of shape {query.shape}")
    mask, causal = call.get("attn_mask"), call.get("is_causal", False)
    return low.p.attention(query, key, value, mask, causal=causal)


@aten("wrap_with_set_grad_enabled", "wrap_with_autocast")
def _inlined(low: Lowering, call: Call) -> list[Value]:
    place = next(i for i, a in enumerate(call.arguments) if hasattr(a, "graph"))
    return low.inlined(call.arguments[place], call.arguments[place + 1 :])


_ONE = (
    "neg exp rsqrt sqrt tanh sigmoid silu gelu relu erf cos sin log abs reciprocal softplus square "
    "logical_not bitwise_not sign floor round exp2 log2 relu6 hardswish elu leaky_relu mish log1p "
    "expm1 isnan isinf nan_to_num hardsigmoid celu selu"
)
_TWO = (
    "add sub mul div pow maximum minimum rsub fmod remainder eq ne lt le gt ge atan2 floor_divide "
    "polar outer clamp"
)
_BINARY = {
    **{name: name for name in _TWO.split()},
    **{f"{kind}_{name}": name for kind in ("logical", "bitwise") for name in ("and", "or", "xor")},
    **{f"__{name}__": name for name in ("and", "or", "xor")},
    "clamp_min": "clamp",
    "clamp_max": "clamp",
    "less": "lt",
    "greater": "gt",
    "less_equal": "le",
    "greater_equal": "ge",
    "not_equal": "ne",
    "divide": "div",
    "multiply": "mul",
}


def _elementwise(fn: str, operands: int) -> Rule:
    def rule(low: Lowering, call: Call) -> Value:
        values = [low.value(argument, call) for argument in call.arguments[:operands]]
        return low.p.elementwise(fn, *values, dtype=call.dtype)

    return rule


ATEN |= {name: _elementwise(name, 1) for name in _ONE.split()}
ATEN |= {name: _elementwise(fn, 2) for name, fn in _BINARY.items()}
ATEN |= {"where": _elementwise("where", 3), "lerp": _elementwise("lerp", 3)}


@aten("masked_fill")
def _masked_fill(low: Lowering, call: Call) -> Value:
    x, mask, value = call.arguments[:3]
    return low.p.elementwise("where", mask, low.value(value, call), x, dtype=call.dtype)


_LETTERS = "abcdefghijklmnopqrstuvw"


def _letters(count: int) -> str:
    return _LETTERS[:count]
