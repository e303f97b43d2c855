"""What engines have no kernel of their own for: lookups, and all that is known by its bytes."""

import math
from collections.abc import Mapping

from frontends.emission import Emit, Emitter, format_of
from frontends.program import Node
from opgraph.operator import Lookup, Opaque

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


def _gather(emitter: Emitter, node: Node) -> None:
    """Rows of a table that is a weight are an embedding."""
    if node.operand().kind != "weight" or len(node.inputs) != 2 or node["axis"] != 0:
        opaque(emitter, node)
        return
    inputs = (emitter.tensor(node.operand(1)), emitter.tensor(node.operand()))
    emitter.add(Lookup(name=emitter.called(node, "lookup"), inputs=inputs), node.output)


OTHERS: Mapping[str, Emit] = {"gather": _gather, "other": opaque}
