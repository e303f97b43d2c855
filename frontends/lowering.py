"""Lowering: one walk over an exported graph, and the table of rules that it goes by."""

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from frontends.program import Program, Shape, Size, Value
from hardware import SpecError

if TYPE_CHECKING:
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


class Lowering:
    """One walk over the graphs of an exported program."""

    def __init__(
        self,
        exported: "ExportedProgram",
        program: Program,
        rules: "Mapping[str, Rule]",
        names: list[str],
    ) -> None:
        self.exported = exported
        self.rules = rules
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
                return [self.values.get(arg, arg) for arg in flattened(node.args)]
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
        name = name_of(node.target)
        if name not in self.rules:  # in place or not is no matter
            name = name.removesuffix("_")
        self.p.where = place_of(node)
        if name not in self.rules:
            raise self.p.refuse(
                f"there is no rule for the operator {name}",
                "put what it computes into operators that are known, or add a rule to "
                "frontends.aten.ATEN",
            )
        return self.rules[name](self, Call(self, node))

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


def flattened(arguments: Any) -> Iterator[Any]:
    """What is in nested lists and tables, in order."""
    if isinstance(arguments, list | tuple):
        for argument in arguments:
            yield from flattened(argument)
    elif isinstance(arguments, dict):
        yield from flattened(list(arguments.values()))
    else:
        yield arguments


def _live(graph: Any) -> set[Any]:
    """The nodes that the results of *graph* depend on."""
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    writers: defaultdict[Any, list[Any]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "call_function" and name_of(node.target) == "copy_":
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
    while node.op == "call_function" and name_of(node.target) in ("slice", "narrow", "alias"):
        node = node.args[0]
    return node


def name_of(target: Any) -> str:
    """``aten.add``, ``opgraph.attention``, ``higher_order.wrap_with_set_grad_enabled``."""
    schema = getattr(target, "_schema", None)
    if schema is not None:
        return str(schema.name).replace("::", ".").removeprefix("aten.")
    return getattr(target, "__name__", str(target))


ATEN: dict[str, Rule] = {}


def aten(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule into the table under *names*."""

    def enter(rule: Rule) -> Rule:
        ATEN.update(dict.fromkeys(names, rule))
        return rule

    return enter
