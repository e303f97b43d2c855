"""What engines have no kernel of their own for: lookups, and all that is known by its bytes."""

import math
from collections.abc import Mapping

from frontends.emission import Emit, Emitter, again, format_of
from frontends.program import Node
from opgraph.operator import Einsum, Lookup, Opaque, View

# these do something with each element that they read, others with each that they make
_OF_INPUTS = frozenset({"reduce", "topk", "sort"})
_MOVES = frozenset({"gather", "scatter", "opaque"})


def opaque(emitter: Emitter, node: Node) -> None:
    """The bytes that *node* moves, and its arithmetic."""
    inputs = tuple(emitter.tensor(v) for v in node.inputs if v is not None and emitter.is_data(v))
    kind = str(node.attributes.get("kind", node.attributes.get("fn", node.op)))
    over = " ".join(max(inputs, key=lambda t: len(t.dims)).dims) if node.op in _OF_INPUTS else ""
    operator = Opaque(
        name=emitter.scoped(node, kind.lower()),
        inputs=inputs,
        results=tuple((" ".join(emitter.names(v)), format_of(v)) for v in node.outputs),
        flop_per_element=_flop_per_element(node),
        over=over,
    )
    emitter.add(operator, *node.outputs)


def _flop_per_element(node: Node) -> float:
    if node.op == "conv":
        return float(2 * math.prod(node.operand(1).shape[1:]))
    if flop := node.attributes.get("flop", 0):
        return float(flop / math.prod(node.output.shape))
    return 0.0 if node.op in _MOVES else 1.0


def squared(emitter: Emitter, node: Node) -> None:
    """A product over one dimension twice, such as the scores of a sequence with itself."""
    one, other = (emitter.tensor(node.operand(i)) for i in (0, 1))
    first, second = str(node["equation"]).partition("->")[0].split(",")
    axes = zip(second, emitter.dims.of[node.operand(1)], strict=True)
    free = {a for letter, d in axes if letter not in first and d is not None for a in d.atoms}
    names = {emitter.naming.name(atom, emitter.writer) for atom in free} & set(one.dims)
    if names:
        dims = " ".join(again(dim) if dim in names else dim for dim in other.dims)
        view = View(name=emitter.scoped(node, "view"), inputs=(other,), parts=(("", dims),))
        (other,) = emitter.add(view)
    out = emitter.names(node.output)
    if not set(out) <= {*one.dims, *other.dims}:
        opaque(emitter, node)
        return
    pattern = f"{' '.join(one.dims)}, {' '.join(other.dims)} -> {' '.join(out)}"
    name = emitter.scoped(node, "product")
    emitter.add(Einsum(name=name, inputs=(one, other), pattern=pattern), node.output)


def _gather(emitter: Emitter, node: Node) -> None:
    """Rows of a table that is a weight are an embedding."""
    if node.operand().kind != "weight" or len(node.inputs) != 2 or node["axis"] != 0:
        opaque(emitter, node)
        return
    inputs = (emitter.tensor(node.operand(1)), emitter.tensor(node.operand()))
    emitter.add(Lookup(name=emitter.called(node, "lookup"), inputs=inputs), node.output)


OTHERS: Mapping[str, Emit] = {"gather": _gather, "other": opaque}
