"""An ONNX file becomes a checked graph: everything that can be wrong with a file is refused here.

Only the file itself is opened: weights in other files are known by shape and format, which is all
that is asked of them. What the checks of onnx let pass (cycles, negative and enormous sizes, data
of another length than its shape; onnx 1.23) is checked here.
"""

import math
import re
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from hardware import SpecError
from hardware.errors import shown

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

MOST_BYTES = 2**31  # protobuf's own limit
MOST_NODES = 1_000_000  # of a 1,000-layer export there are 300,000
MOST_RANK = 32
MOST_LETTERS = 1000  # of a name
MOST_NESTED = 8
MOST_CALLS = 32  # of functions by functions
LARGEST = 2**40
MOST_ELEMENTS = 2**50
STANDARD, CONTRIB = "", "com.microsoft"
# tree ensembles and text; converters declare it without using it
_OTHERS = frozenset(["ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training"])

# the element types of onnx.proto (TensorProto.DataType): their format here, and the bits in the
# file; double precision is only met in tables that are converted when the model is loaded
TYPES: Mapping[int, tuple[str, int]] = {
    1: ("fp32", 32),
    2: ("int8", 8),
    3: ("int8", 8),
    4: ("int32", 16),
    5: ("int32", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    9: ("bool", 8),
    10: ("fp16", 16),
    11: ("fp32", 64),
    12: ("int32", 32),
    13: ("int64", 64),
    16: ("bf16", 16),
    **dict.fromkeys((17, 18, 19, 20, 24), ("fp8", 8)),
    21: ("int4", 4),
    22: ("int4", 4),
    23: ("fp4", 4),
}
_TEXT = 8


def read(path: str | Path) -> "ModelProto":
    """The model in the file at *path*, checked, its functions written out.

    Raises
    ------
    SpecError : no such file, not an ONNX file, or one that no graph can be made of.
    """
    path = Path(path)
    model = _parse(path)
    complain = _Complaint(str(path))
    _check_versions(model, complain)
    _check_functions(model, complain)
    _Check(model, complain).graph(model.graph, ChainMap(), 0)
    if not model.functions:
        return model
    written_out = _inlined(model, complain)
    _Check(written_out, complain).graph(written_out.graph, ChainMap(), 0)
    return written_out


def _parse(path: Path) -> "ModelProto":
    try:
        from google.protobuf.message import DecodeError
        from onnx import ModelProto
    except ImportError:
        raise SpecError(f"{path}: reading ONNX needs onnx: pip install 'opgraph[onnx]'") from None
    try:
        if not path.is_file():
            raise SpecError(f"there is no file {path}")
        if path.stat().st_size > MOST_BYTES:
            raise SpecError(f"{path} is larger than {MOST_BYTES} bytes: no ONNX file can be")
        model: ModelProto = ModelProto.FromString(path.read_bytes())
    except DecodeError:
        raise SpecError(f"{path} is not an ONNX file, or is cut short") from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from None
    if not model.graph.node:
        raise SpecError(f"{path} holds no graph: an ONNX file is expected")
    return model


class _Complaint:
    """Makes the errors of one file: its name, the place, what is wrong."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __call__(self, what: str, place: str = "") -> SpecError:
        return SpecError(f"{self.file}: {place + ': ' if place else ''}{what}")

    def names(self, place: str, *names: Any) -> None:
        """Refuse names that cannot be shown; what is no text protobuf gives as bytes."""
        for name in names:
            if not isinstance(name, str) or len(name) > MOST_LETTERS or not name.isprintable():
                raise self(
                    f"the name {shown(name)} is no text of up to {MOST_LETTERS} letters", place
                )


def _check_versions(model: "ModelProto", complain: _Complaint) -> None:
    from onnx.defs import onnx_opset_version

    own = {function.domain for function in model.functions}
    seen: set[str] = set()
    for entry in model.opset_import:
        complain.names("an operator set", entry.domain)
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if domain in seen:
            raise complain(f"the operator set {shown(domain)} is imported twice")
        seen.add(domain)
        if domain not in _OTHERS | own | {STANDARD, CONTRIB}:
            raise complain(
                f"the operators of the domain {shown(domain)} are not known here; "
                f"known are those of onnx and of {CONTRIB}"
            )
        newest = onnx_opset_version()
        if domain == STANDARD and not 1 <= entry.version <= newest:
            raise complain(
                f"operator set {entry.version} is not among 1 to {newest} of the onnx installed"
            )
    if STANDARD not in seen:
        raise complain("no version of the standard operator set is given")


def _check_functions(model: "ModelProto", complain: _Complaint) -> None:
    """Refuse functions that call themselves, or that write out to more than `MOST_NODES` nodes."""
    bodies = {(f.domain, f.name): f.node for f in model.functions}
    if len(bodies) < len(model.functions):
        raise complain("two functions have the same name")
    sizes: dict[tuple[str, str], int] = {}

    def size(nodes: Iterable["NodeProto"], open_: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            total += 1 + sum(size(graph.node, open_) for graph in subgraphs(node))
            if key not in bodies:
                continue
            if key in open_ or len(open_) >= MOST_CALLS:
                raise complain(f"the function {shown(node.op_type)} calls itself, or is too deep")
            if key not in sizes:
                sizes[key] = size(bodies[key], (*open_, key))
            total += sizes[key]
        return total

    if (total := size(model.graph.node, ())) > MOST_NODES:
        raise complain(f"{total} nodes, more than the {MOST_NODES} that are read")


def _inlined(model: "ModelProto", complain: _Complaint) -> "ModelProto":
    """The model with each call of one of its functions replaced by the function's nodes."""
    from onnx.inliner import inline_local_functions

    try:
        return inline_local_functions(model)
    except (RuntimeError, ValueError) as error:
        raise complain(f"its functions cannot be written out: {shown(str(error))}") from None


class _Check:
    """One walk over a graph and those within its nodes: every name made once, before it is read."""

    def __init__(self, model: "ModelProto", complain: _Complaint) -> None:
        self.complain = complain
        self.versions = {
            "" if entry.domain == "ai.onnx" else entry.domain for entry in model.opset_import
        }

    def graph(self, graph: "GraphProto", outer: ChainMap[str, str], depth: int) -> None:
        if depth > MOST_NESTED:
            raise self.complain(f"graphs within graphs more than {MOST_NESTED} deep")
        known = outer.new_child()
        outputs = (value.name for value in graph.output)
        self.complain.names("its graph", *outputs)
        for tensor in (*graph.initializer, *(s.values for s in graph.sparse_initializer)):
            self.complain.names("an initialiser", tensor.name)
            if tensor.name in known.maps[0]:
                raise self.complain(f"two initialisers are called {shown(tensor.name)}")
            known[tensor.name] = "an initialiser"
            self.tensor(tensor, f"initialiser {shown(tensor.name)}")
        self.inputs(graph, known, depth)
        later = {name: index for index, node in enumerate(graph.node) for name in node.output}
        for node in graph.node:
            self.node(node, known, later, depth)
        for value in graph.output:
            if value.name not in known:
                raise self.complain(f"the output {shown(value.name)} is made by nothing")

    def inputs(self, graph: "GraphProto", known: ChainMap[str, str], depth: int) -> None:
        seen: set[str] = set()
        for value in graph.input:
            params = (d.dim_param for d in value.type.tensor_type.shape.dim)
            self.complain.names("an input", value.name, *params)
            if value.name in seen:
                raise self.complain(f"two inputs are called {shown(value.name)}")
            seen.add(value.name)
            known.setdefault(value.name, "an input")
            if depth == 0:
                self.sizes(value)

    def sizes(self, value: "ValueInfoProto") -> None:
        place = f"input {shown(value.name)}"
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
            raise self.complain("its shape is not given", place)
        if kind.elem_type not in TYPES:
            raise self.complain(f"elements of type {kind.elem_type} have no meaning here", place)
        # -1 is how some converters write a size that is open
        self.shape([0 if d.dim_value == -1 else d.dim_value for d in kind.shape.dim], place)

    def node(
        self,
        node: "NodeProto",
        known: ChainMap[str, str],
        later: Mapping[str, int],
        depth: int,
    ) -> None:
        texts = (node.name, node.op_type, node.domain, *node.input, *node.output)
        self.complain.names("a node", *texts, *(a.name for a in node.attribute))
        place = f"node {shown(node.name or node.op_type)}"
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain not in self.versions:
            raise self.complain(f"the domain {shown(node.domain)} is not imported", place)
        for name in filter(None, node.input):
            if name not in known:
                why = (
                    "which only a later node makes: a cycle, or nodes out of order"
                    if name in later
                    else "which nothing makes"
                )
                raise self.complain(f"reads {shown(name)}, {why}", place)
        for attribute in node.attribute:
            self.attribute(attribute, place)
        for graph in subgraphs(node):
            self.graph(graph, known, depth + 1)
        for name in filter(None, node.output):
            if name in known:
                raise self.complain(f"makes {shown(name)} again, which {known[name]} is", place)
            known[name] = "the output of another node"

    def attribute(self, attribute: "AttributeProto", place: str) -> None:
        for tensor in (attribute.t, *attribute.tensors) if attribute.type in (4, 9) else ():
            self.tensor(tensor, f"{place}, {shown(attribute.name)}")

    def tensor(self, tensor: "TensorProto", place: str) -> None:
        if tensor.data_type not in TYPES and tensor.data_type != _TEXT:
            raise self.complain(f"elements of type {tensor.data_type} have no meaning here", place)
        count = self.shape(tensor.dims, place)
        if tensor.data_type == _TEXT:
            return
        expected = -(-count * TYPES[tensor.data_type][1] // 8)
        if tensor.data_location == tensor.EXTERNAL:
            self.external(tensor, expected, place)
        elif tensor.raw_data and len(tensor.raw_data) != expected:
            raise self.complain(
                f"[{' '.join(map(str, tensor.dims))}] takes {expected} bytes, "
                f"but there are {len(tensor.raw_data)}",
                place,
            )

    def shape(self, dims: Iterable[int], place: str) -> int:
        """How many elements a tensor of *dims* has."""
        dims = list(dims)
        if wrong := excess(dims):
            raise self.complain(wrong, place)
        return math.prod(dims)

    def external(self, tensor: "TensorProto", expected: int, place: str) -> None:
        """Refuse weights that are said to lie where no export puts them; nothing is opened."""
        for entry in tensor.external_data:
            self.complain.names(place, entry.key)
        entries = {entry.key: entry.value for entry in tensor.external_data}
        where = entries.get("location", "")
        if not isinstance(where, str) or not where or not _stays_beside(where):
            raise self.complain(
                f"its data is said to be in {shown(where)}, which is not beside the file", place
            )
        for key in ("offset", "length"):
            text = entries.get(key, "0")
            if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,19}", text):
                raise self.complain(f"the {key} of its data is {shown(text)}", place)
        if int(entries.get("length", "0")) not in (0, expected):
            raise self.complain(
                f"its data has {entries['length']} bytes, but its shape takes {expected}", place
            )


def excess(sizes: Sequence[Any]) -> str:
    """What is wrong with a shape that no tensor has; empty if nothing is. Open sizes are passed."""
    known = [size for size in sizes if isinstance(size, int)]
    for size in known:
        if not 0 <= size <= LARGEST:
            return f"a size of {size}; sizes go from 0 to {LARGEST}"
    if len(sizes) > MOST_RANK or math.prod(known) > MOST_ELEMENTS:
        return f"{len(sizes)} axes, {math.prod(known)} elements: too large for a tensor"
    return ""


def _stays_beside(where: str) -> bool:
    """Whether the relative path *where* stays in its folder, on any system."""
    paths = PurePosixPath(where), PureWindowsPath(where)
    return not any(p.is_absolute() or p.drive or p.root or ".." in p.parts for p in paths) and (
        "\0" not in where
    )


def subgraphs(node: "NodeProto") -> Iterator["GraphProto"]:
    """The graphs within a node: branches and loop bodies."""
    for attribute in node.attribute:
        if attribute.type == attribute.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def content(tensor: "TensorProto") -> Any:
    """The numbers of a tensor as a NumPy array; None if they are not in the file."""
    from onnx import numpy_helper

    fields = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    stored = any(len(getattr(tensor, field)) for field in fields)
    if tensor.data_location == tensor.EXTERNAL or not (stored or 0 in tensor.dims):
        return None
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError):
        raise SpecError(
            f"the tensor {shown(tensor.name)} [{' '.join(map(str, tensor.dims))}] holds another "
            "number of elements than that"
        ) from None
