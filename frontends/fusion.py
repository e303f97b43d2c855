"""What engines run as one kernel: projections of one input, residual sums with the norm after them,
queries and keys turned together, chains of elementwise operations.
"""

from collections import defaultdict
from collections.abc import Sequence

from frontends.flow import Flow
from frontends.program import Node, Value

# FLOP of one element: a sum, product, quotient, root, comparison and exponential as one each
_FLOP = {"silu": 4, "gelu": 4, "sigmoid": 3, "tanh": 3, "softplus": 3, "mish": 7, "where": 1}
_ACTIVATIONS = frozenset(
    [
        "silu",
        "gelu",
        "relu",
        "sigmoid",
        "tanh",
        "softplus",
        "erf",
        "mish",
        "relu6",
        "elu",
        "hardswish",
    ]
)
_CORES = frozenset({"attention", "mla", "experts", "scan", "topk"})


def fused(flow: Flow) -> Flow:
    """*flow* in kernels."""
    for step in (_rotaries, _residuals, _siblings, _chains):
        flow = step(flow)
    return flow


def _rotaries(flow: Flow) -> Flow:
    """Queries and keys of one attention are turned together."""
    replaced: dict[Node, list[Node]] = {}
    for node in flow.nodes:
        if node.op != "attention":
            continue
        pair = [flow.maker.get(flow.below(v)) for v in node.inputs[:2] if v is not None]
        if (
            len(pair) < 2
            or pair[0] is pair[1]
            or any(n is None or n in replaced or n.op != "rotary" for n in pair)
        ):
            continue
        first, second = (n for n in pair if n is not None)
        if first["share"] == second["share"]:
            inputs, outputs = first.inputs + second.inputs, first.outputs + second.outputs
            both = Node("rotary", inputs, outputs, first.attributes, first.where)
            earlier, later = sorted((first, second), key=flow.nodes.index)
            replaced |= {earlier: [], later: [both]}
    return _ordered(flow.rewritten(lambda _, node: replaced.get(node)))


def _residuals(flow: Flow) -> Flow:
    """A sum and the norm of it: the norm's inputs are then delta, weight, bias, residual."""
    replaced: dict[Node, list[Node]] = {}
    order = {node: index for index, node in enumerate(flow.nodes)}
    for norm in flow.nodes:
        total = flow.maker.get(norm.inputs[0]) if norm.op == "norm" and norm.inputs[0] else None
        if total is None or total in replaced or flow.op(total.output) != "add":
            continue
        if any(
            v is None or v.kind in ("weight", "constant") or v.shape != total.output.shape
            for v in total.inputs
        ):
            continue
        makers = {v: order.get(flow.maker.get(v), -1) for v in total.inputs if v is not None}  # type: ignore[arg-type]
        residual, delta = (
            sorted(makers, key=makers.__getitem__) if len(makers) == 2 else (None, None)
        )
        if residual is None:
            continue
        inputs = (delta, *norm.inputs[1:], residual)
        outputs = (norm.output, total.output)
        replaced |= {norm: [], total: [Node("norm", inputs, outputs, norm.attributes, norm.where)]}
    return flow.rewritten(lambda _, node: replaced.get(node))


def _siblings(flow: Flow) -> Flow:
    """Projections of one input that meet again are one product."""
    sinks = _sinks(flow)
    groups: defaultdict[tuple[object, ...], list[Node]] = defaultdict(list)
    for node in flow.nodes:
        if node.op == "project":
            groups[node.inputs[0], sinks.get(node.output), node["equation"]].append(node)
    replaced: dict[Node, list[Node]] = {}
    for (x, sink, _), nodes in groups.items():
        if len(nodes) > 1 and sink is not None:
            weights = tuple(v for node in nodes for v in node.inputs[1:])
            outputs = tuple(node.output for node in nodes)
            attributes = nodes[0].attributes
            one = Node("project", (x, *weights), outputs, attributes, nodes[0].where)  # type: ignore[arg-type]
            replaced |= {node: [] for node in nodes} | {nodes[0]: [one]}
    return flow.rewritten(lambda _, node: replaced.get(node))


def _sinks(flow: Flow) -> dict[Value, int]:
    """The place of the first operator that each value meets others in."""
    sinks: dict[Value, int] = {}
    for place, node in reversed(list(enumerate(flow.nodes))):
        operands = [v for v in node.inputs if v is not None and v in flow.weighted]
        meets = node.op == "elementwise" and len(operands) > 1
        after = [sinks[v] for v in node.outputs if v in sinks]
        if meets or node.op in _CORES:
            after = [place]
        for value in operands if after else ():
            sinks[value] = min(*after, sinks.get(value, len(flow.nodes)))
    return sinks


def _chains(flow: Flow) -> Flow:
    """Elementwise operations one after the other: ``map``, with the FLOP of an element."""
    made: dict[Value, Node] = {}
    nodes: list[Node | None] = []
    place: dict[Node, int] = {}
    for node in flow.nodes:
        if node.op != "elementwise" or (node.output not in flow.weighted and not _is_data(node)):
            nodes.append(node)
            continue
        inputs: list[Value | None] = []
        flop, names = _FLOP.get(node["fn"], 1), [node["fn"]]
        for value in node.inputs:
            before = made.get(value) if value is not None else None
            if before is not None and flow.reader(before.output) is node and _fits(before, node):
                inputs += before.inputs
                flop += before["flop"]
                names += before["names"]
                nodes[place[before]] = None
            elif value is not None and value.kind != "constant":
                inputs.append(value)
        one = Node(
            "map",
            tuple(dict.fromkeys(inputs)),
            node.outputs,
            {"flop": flop, "names": names},
            node.where,
        )
        made[node.output], place[one] = one, len(nodes)
        nodes.append(one)
    return Flow([node for node in nodes if node is not None], flow.results)


def _is_data(node: Node) -> bool:
    return all(v is None or v.dtype not in ("int64", "bool") for v in node.inputs)


def _fits(before: Node, after: Node) -> bool:
    return before.output.shape == after.output.shape


def activation_flop(*, gated: bool) -> int:
    """FLOP of one element of an activation that is not spelled out; a gate is one product more."""
    return _FLOP["silu"] + gated


def is_activation(names: Sequence[str]) -> bool:
    """Whether a chain of these operations is an activation."""
    return not _ACTIVATIONS.isdisjoint(names)


def is_causal(node: Node) -> bool:
    """Whether an operator goes along a sequence token by token."""
    return node.op in ("scan", "mla") or (node.op == "attention" and bool(node["causal"]))


def _ordered(flow: Flow) -> Flow:
    """The nodes in an order in which each comes after what it reads."""
    ready: set[Value] = set()
    made = {value for node in flow.nodes for value in node.outputs}
    waiting, nodes = list(flow.nodes), list[Node]()
    while waiting:
        later = []
        for node in waiting:
            if all(v is None or v not in made or v in ready for v in node.inputs):
                nodes.append(node)
                ready.update(node.outputs)
            else:
                later.append(node)
        if len(later) == len(waiting):
            break
        waiting = later
    return Flow(nodes, flow.results)
