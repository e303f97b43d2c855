"""A checked ONNX graph becomes a program: node by node, shapes known, shape arithmetic gone.

For each node: what is known beforehand is computed; what depends on weights alone is a weight, as
it is made once when the model is loaded; the rest is lowered by the tables of `standard` and
`contrib`. Shapes are those that onnx infers and, where these depend on open sizes, our own.
"""

import math
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from frontends.onnx.call import Call, Same
from frontends.onnx.contrib import CONTRIB_RULES
from frontends.onnx.folding import MOST_FOLDED, fold, plain
from frontends.onnx.reading import TYPES, content, subgraphs
from frontends.onnx.sizes import Sizes
from frontends.onnx.standard import FOREIGN, RULES, VIEWED, opaque
from frontends.onnx.weights import scope_of, settled
from frontends.program import Node, Program, Shape, Value
from hardware import SpecError
from hardware.errors import nearest, shown

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

_Rule = Callable[[Call], "Value | Sequence[Value | None]"]
# a name that is the same as another is found once; a file has few
_MOST_LEARNED = 256
_FLOAT, _INT = 1, 7


def lower(
    model: "ModelProto",
    name: str,
    dims: Mapping[str, str | int],
    inputs: Mapping[str, Any],
) -> Program:
    """The program of a checked *model*; *dims* says what open sizes are, *inputs* what inputs are.

    Raises
    ------
    SpecError : an operator that is not known, shapes that do not fit, something that depends on
        data; the message names the node.
    """
    sizes = Sizes.of(model.graph, name, dims)
    for _ in range(_MOST_LEARNED):
        try:
            return _Walk(model, name, sizes, inputs).program()
        except Same as found:
            learned = sizes.learn(*found.sizes)
            if learned is None:
                raise SpecError(f"{found.error}{_way_out(found.sizes)}") from None
            sizes = learned
    raise SpecError(f"{name}: more than {_MOST_LEARNED} open sizes turn out to be the same")


def _way_out(sizes: tuple[Any, Any]) -> str:
    names = sorted({str(s) for size in sizes for s in getattr(size, "free_symbols", ())})
    return f"; say how large they are: dims={{{', '.join(f'{name!r}: …' for name in names)}}}"


class _Walk:
    """One walk over the nodes: the value of every name so far."""

    def __init__(
        self, model: "ModelProto", name: str, sizes: Sizes, inputs: Mapping[str, Any]
    ) -> None:
        self.model, self.sizes, self.given = model, sizes, inputs
        self.p = Program(name, name)
        self.values: ChainMap[str, Value] = ChainMap()
        self.contents: dict[str, Any] = {}
        self.read: set[Value] = set()
        self.makers: dict[Value, Node] = {}
        self.kinds: dict[str, int] = {}
        self.texts: dict[str, Any] = {}
        self.versions = {
            "" if entry.domain == "ai.onnx" else entry.domain: entry.version
            for entry in model.opset_import
        }

    def program(self) -> Program:
        graph = self.model.graph
        made = {tensor.name for tensor in graph.initializer}
        named = [value.name for value in graph.input if value.name not in made]
        for name in self.given:
            if name not in named:
                raise SpecError(f"{self.p.name}: no input {name!r}{nearest(name, named)}")
        for value in graph.input:
            if value.name in made:
                continue
            kind = value.type.tensor_type.elem_type
            if value.name in self.given:
                self._constant(value.name, np.asarray(self.given[value.name]), kind)
            else:
                found = self.p.input(value.name, self.sizes.shape(value), TYPES[kind][0])
                self._set(value.name, found, kind)
        self._run(graph)
        self.p.output(*self._results([self._value(value.name) for value in graph.output]))
        self.p.nodes = settled(self.p.nodes)
        read = (value for node in self.p.nodes for value in node.inputs if value is not None)
        self.p.weights |= {value.name: value for value in read if value.kind == "weight"}
        return self.p

    def _results(self, outputs: list[Value]) -> list[Value]:
        """The outputs that nothing else reads; others (keys and values for the next step, hidden
        states) are there anyway.
        """
        made = [value for value in outputs if value.kind == "activation"]
        return [value for value in made if value not in self.read] or made

    def _run(self, graph: "GraphProto") -> None:
        for tensor in graph.initializer:
            self._stored(tensor.name, tensor, tuple(tensor.dims))
        for sparse in graph.sparse_initializer:
            self._stored(sparse.values.name, sparse.values, tuple(sparse.dims))
        for node in _live(graph):
            name, scope = node.name or node.output[0], scope_of(node)
            self.p.where = f"{scope} ({name})" if scope else name
            self._node(node)

    def _stored(self, name: str, tensor: "TensorProto", shape: Shape) -> None:
        """A tensor of the file: shape arithmetic and scalars are constants, the rest weights."""
        if tensor.data_type not in TYPES:
            raise self.p.refuse(f"text in {shown(name)} has no meaning here")
        kind = tensor.data_type
        count = int(np.prod(shape, dtype=object))
        small = count <= MOST_FOLDED and shape == tuple(tensor.dims)
        array = self._content(tensor) if small else None
        counts = array is not None and (array.dtype.kind in "iub" or count == 1)
        if array is not None and counts:
            self._constant(name, array, kind)
        else:
            weight = Value(name, shape, TYPES[kind][0], "weight")
            self.contents[name] = array
            self._set(name, weight, kind)

    def _content(self, tensor: "TensorProto") -> Any:
        try:
            return content(tensor)
        except SpecError as error:
            raise self.p.refuse(str(error)) from None

    def _constant(self, name: str, array: Any, kind: int) -> None:
        dtype = TYPES[kind][0]
        data = array.item() if array.size == 1 and array.dtype != object else array
        value = self.p.constant(data, array.shape, dtype)
        self.contents[value.name] = array
        self._set(name, value, kind)

    def _set(self, name: str, value: Value, kind: int) -> None:
        self.values[name] = value
        self.kinds[name] = kind

    def _node(self, node: "NodeProto") -> None:
        if node.op_type == "If":
            self._branch(node)
            return
        if node.op_type == "Constant":
            self._literal(node)
            return
        operands = tuple(self._value(name) if name else None for name in node.input)
        self.read.update(value for value in operands if value is not None)
        inferred, kinds = self._inferred(node)
        call = self._call(node, operands, inferred)
        folded = self._folded(call)
        if folded is not None:
            for name, array, kind in zip(node.output, folded, kinds, strict=False):
                self._constant(name, array, kind)
            return
        made = self._lowered(node, call)
        for index, (name, value) in enumerate(zip(node.output, made, strict=False)):
            if name and value is not None:
                self._agree(call, value, inferred[index] if index < len(inferred) else None)
                self._set(name, value, kinds[index] if index < len(kinds) else _kind_of(value))

    def _value(self, name: str) -> Value:
        if name not in self.values:
            raise self.p.refuse(f"{shown(name)} is a result that is not computed here")
        return self.values[name]

    def _call(
        self, node: "NodeProto", operands: Sequence[Value | None], inferred: Sequence[Shape | None]
    ) -> Call:
        domain = "" if node.domain == "ai.onnx" else node.domain
        return Call(
            self.p,
            node.op_type,
            self.versions[domain],
            tuple(operands),
            _attributes(node),
            len(node.output),
            self.contents,
            self.makers,
            inferred,
        )

    # what is known beforehand

    def _folded(self, call: Call) -> tuple[Any, ...] | None:
        """The results of *call* as numbers and sizes, where they do not depend on data."""
        if call.op in ("Shape", "Size"):
            sizes = np.empty(call[0].rank, object)
            sizes[:] = call[0].shape
            if call.op == "Size":
                return (plain(np.prod(sizes)),)
            return (plain(sizes[call.attribute("start", 0) : call.attribute("end")]),)
        first = call.inferred[0] if call.inferred else None
        if call.op == "And" and first is not None and None not in first:
            # one that is false decides, whatever the other one is
            decided = [a for i in range(2) if (a := call.content(i)) is not None]
            if math.prod(first) == 1 and any(not np.any(array) for array in decided):
                return (np.zeros(first, bool),)
        if any(value.kind == "weight" for value in call.inputs if value is not None):
            return None
        known = first is not None and all(isinstance(size, int) for size in first)
        return fold(call, math.prod(first) if first is not None and known else None)

    def _literal(self, node: "NodeProto") -> None:
        given = _attributes(node)
        if len(given) != 1 or "value_string" in given or "value_strings" in given:
            raise self.p.refuse(
                f"Constant: {', '.join(map(shown, given)) or 'nothing'} has no meaning here"
            )
        attribute = node.attribute[0]
        tensor = attribute.t
        if attribute.type == attribute.SPARSE_TENSOR:
            tensor = attribute.sparse_tensor.values
            self._stored(node.output[0], tensor, tuple(attribute.sparse_tensor.dims))
        elif attribute.type == attribute.TENSOR:
            self._stored(node.output[0], tensor, tuple(tensor.dims))
        else:
            array = np.asarray(next(iter(given.values())))
            self._constant(node.output[0], array, _FLOAT if array.dtype.kind == "f" else _INT)

    def _branch(self, node: "NodeProto") -> None:
        """The branch of an If that is taken, as if it stood in its place."""
        known = self.contents.get(self._value("".join(node.input[:1])).name)
        if known is None or np.size(known) != 1:
            asked = [
                v.name for v in self.p.inputs if v.name in _above(self.model.graph, node.input[0])
            ]
            raise self.p.refuse(
                f"which branch of the If is taken depends on {shown(node.input[0])}",
                f"say what these inputs are: inputs={{{', '.join(f'{n!r}: …' for n in asked)}}}",
            )
        wanted = "then_branch" if np.all(known) else "else_branch"
        graph = next((a.g for a in node.attribute if a.name == wanted), None)
        if graph is None or len(graph.output) != len(node.output):
            raise self.p.refuse(f"its If has no {wanted} with {len(node.output)} results")
        self.values = self.values.new_child()
        self._run(graph)
        made = [(self._value(value.name), self.kinds[value.name]) for value in graph.output]
        self.values = self.values.parents
        for name, (value, kind) in zip(node.output, made, strict=True):
            self._set(name, value, kind)

    # shapes

    def _inferred(self, node: "NodeProto") -> tuple[list[Shape | None], list[int]]:
        """The shapes that onnx infers for the outputs of a standard operator, and their types.

        A size that onnx cannot say is None.
        """
        from onnx import defs, shape_inference
        from onnx.checker import ValidationError

        if node.domain not in ("", "ai.onnx") or node.op_type in FOREIGN:
            return [], []
        version = self.versions[""]
        try:
            schema = defs.get_schema(node.op_type, version, "")
        except defs.SchemaError:
            raise self.p.refuse(
                f"operator set {version} has no operator {shown(node.op_type)}"
            ) from None
        names = [name for name in node.input if name]
        try:
            found = shape_inference.infer_node_outputs(
                schema,
                node,
                {name: self._type(name) for name in names},
                {name: data for name in names if (data := self._data(name)) is not None},
                opset_imports=self.model.opset_import,
            )
        except (shape_inference.InferenceError, ValidationError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise self.p.refuse(f"{node.op_type}: {shown(reason)}") from None
        types = [found.get(name) for name in node.output]
        return [self._shape(t) for t in types], [t.tensor_type.elem_type if t else 0 for t in types]

    def _type(self, name: str) -> "TypeProto":
        from onnx import helper

        sizes = [
            size if isinstance(size, int) else self._text(size) for size in self.values[name].shape
        ]
        return helper.make_tensor_type_proto(self.kinds[name], sizes)

    def _text(self, size: Any) -> str:
        text = str(size)
        self.texts[text] = size
        return text

    def _data(self, name: str) -> "TensorProto | None":
        from onnx import numpy_helper

        array = self.contents.get(self.values[name].name)
        return None if array is None or array.dtype == object else numpy_helper.from_array(array)

    def _shape(self, kind: "TypeProto | None") -> Shape | None:
        if kind is None or not kind.HasField("tensor_type"):
            return None
        if not kind.tensor_type.HasField("shape"):
            return None
        return tuple(
            d.dim_value if d.HasField("dim_value") else self.texts.get(d.dim_param)
            for d in kind.tensor_type.shape.dim
        )

    def _agree(self, call: Call, value: Value, inferred: Shape | None) -> None:
        """Compare a shape of ours with that of onnx."""
        if inferred is None:
            return
        if len(inferred) != value.rank:
            raise call.refuse(f"a result of shape {value.shape}, but onnx infers {inferred}")
        for ours, theirs in zip(value.shape, inferred, strict=True):
            if isinstance(theirs, int) and (isinstance(ours, int) or ours.is_Symbol):
                call.same(ours, theirs, "the size of its result, as onnx infers it")

    # operators

    def _lowered(self, node: "NodeProto", call: Call) -> Sequence[Value | None]:
        standard = node.domain in ("", "ai.onnx")
        rules: Mapping[str, _Rule] = RULES if standard else CONTRIB_RULES
        rule = rules.get(call.op)
        if rule is None and not standard:
            raise self.p.refuse(
                f"there is no rule for {node.domain}.{call.op}{nearest(call.op, rules)}"
            )
        before = len(self.p.nodes)
        try:
            made = (rule or opaque)(call)
        except (SpecError, Same):
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise call.refuse(f"its operands or attributes do not go together ({error})") from None
        results = [made] if isinstance(made, Value) else list(made)
        new = self.p.nodes[before:]
        self.makers |= {value: part for part in new for value in part.outputs}
        inner = [value for part in new for value in part.outputs]
        for value in filter(None, (*inner, *results)):
            call.check(value.shape)
        if self._is_loaded(call):
            del self.p.nodes[before:]
            for index, name in enumerate(node.output[: len(results)]):
                result = results[index]
                # exporters store equal vectors once, and give each its name by an Identity
                alias = call.op == "Identity" and call[0].rank == 1
                if result is not None and (result.kind == "activation" or alias):
                    results[index] = Value(name, result.shape, result.dtype, "weight")
        return results

    def _is_loaded(self, call: Call) -> bool:
        """Whether *call* depends on weights alone, and gives other numbers than these."""
        kinds = {value.kind for value in call.inputs if value is not None}
        arrays = [call.content(index) for index in range(len(call.inputs))]
        sized = any(array is not None and array.dtype.kind == "O" for array in arrays)
        return (
            kinds <= {"weight", "constant"}
            and "weight" in kinds
            and not sized
            and call.op not in VIEWED
        )


def _live(graph: "GraphProto") -> "list[NodeProto]":
    """The nodes that the results of *graph* depend on, in order."""
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(filter(None, node.output)):
            kept.append(node)
            wanted.update(_read(node))
    return kept[::-1]


def _read(node: "NodeProto") -> Iterator[str]:
    """The names that a node reads, those within its graphs among them."""
    yield from filter(None, node.input)
    for graph in subgraphs(node):
        yield from (value.name for value in graph.output)
        for inner in graph.node:
            yield from _read(inner)


def _above(graph: "GraphProto", name: str) -> set[str]:
    """*name* and the names that it depends on."""
    found = {name}
    for node in reversed(graph.node):
        if found.intersection(node.output):
            found.update(_read(node))
    return found


def _kind_of(value: Value) -> int:
    """The element type of onnx.proto for a value that it does not say it of."""
    return next((kind for kind, (name, _) in TYPES.items() if name == value.dtype), _FLOAT)


def _attributes(node: "NodeProto") -> dict[str, Any]:
    from onnx import helper

    found: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type == attribute.TENSOR:
            found[attribute.name] = content(attribute.t)
        elif attribute.type not in (attribute.GRAPH, attribute.GRAPHS):
            value = helper.get_attribute_value(attribute)
            found[attribute.name] = (
                value.decode(errors="replace") if isinstance(value, bytes) else value
            )
    return found
