"""Weights told from tables, and named after the module that reads them.

A file does not say which of its numbers were learned. The frequencies of rotary positions and
masks are combined with nothing but positions and shapes; parameters meet what a token became.
Exporters transpose matrices and give them numbers for names (``onnx::MatMul_733``, ``val_72``);
the node that reads one still says where it is from.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from frontends.program import VIEWS, Node, Value

if TYPE_CHECKING:
    from onnx import NodeProto

_SCOPES = "pkg.torch.onnx.name_scopes"
_NUMBERED = re.compile(r"onnx::\w+|val_\d+|[\d.]*|.*_output_\d+|/.*")


def scope_of(node: "NodeProto") -> str:
    """The module that a node was exported from, if it says: ``model.layers.0.mlp.up_proj``."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            modules = re.findall(r"'([^']*)'", entry.value)
            return modules[-2] if len(modules) > 1 else ""
    path = node.name.strip("/").split("/")[:-1] if node.name.startswith("/") else []
    return ".".join(path)


def settled(nodes: Sequence[Node]) -> list[Node]:
    """The same nodes, with constants in the place of tables, and weights with names of modules."""
    tables, readers = _tables(nodes)
    changed = {t: Value(t.name, t.shape, t.dtype, "constant") for t in tables}
    taken = {weight.name for weight in readers}
    for weight, reader in readers.items():
        scope, _, place = reader.where.partition(" (")
        if weight in changed or not place or not _NUMBERED.fullmatch(weight.name):
            continue
        kind = "bias" if weight.rank == 1 and f"{scope}.weight" in taken else "weight"
        name = next(n for n in _numbered(f"{scope}.{kind}") if n not in taken)
        taken.add(name)
        changed[weight] = Value(name, weight.shape, weight.dtype, "weight")
    return [_replaced(node, changed) for node in nodes]


def _tables(nodes: Sequence[Node]) -> tuple[set[Value], dict[Value, Node]]:
    """The weights that meet nothing but positions, and what first reads each weight."""
    data, met = set[Value](), set[Value]()
    root: dict[Value, Value] = {}
    readers: dict[Value, Node] = {}
    for node in nodes:
        inputs = [root.get(value, value) for value in node.inputs if value is not None]
        weights = [value for value in inputs if value.kind == "weight"]
        for weight in weights:
            readers.setdefault(weight, node)
        if node.op in VIEWS and weights:
            root[node.output] = weights[0]
            continue
        others = [value for value in inputs if value.kind != "weight"]
        matrix = any(weight.rank > 1 and min(map(int, weight.shape)) > 1 for weight in weights)
        looked_up = bool(weights) and (node.op == "gather" or (node.op == "einsum" and matrix))
        alone = bool(weights) and not others
        if looked_up or alone or any(value in data or _is_data(value) for value in others):
            data.update(node.outputs)
            met.update(weights)
    return set(readers) - met, readers


def _is_data(value: Value) -> bool:
    return value.kind == "input" and value.dtype not in ("int64", "int32", "bool")


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1


def _replaced(node: Node, changed: Mapping[Value, Value]) -> Node:
    inputs = tuple(changed.get(v, v) if v is not None else None for v in node.inputs)
    return Node(node.op, inputs, node.outputs, node.attributes, node.where)
