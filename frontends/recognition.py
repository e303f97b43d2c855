"""Patterns: what code and files spell out, found again as the operators that engines have."""

from collections.abc import Callable

from frontends.attending import attentions, caches, latents, rotaries, scales
from frontends.flow import Flow, Found, is_constant
from frontends.program import Node, Value


def recognised(flow: Flow) -> Flow:
    """*flow* with every pattern found."""
    for pattern in PATTERNS:
        found = dict(pattern(flow))
        flow = flow.rewritten(lambda _, node, found=found: found.get(node))  # type: ignore[misc]
    return flow


def _other(node: Node, value: Value) -> Value | None:
    """The operand beside *value*."""
    rest = [v for v in node.inputs if v is not value]
    return rest[0] if rest else value


def projections(flow: Flow) -> Found:
    """``einsum(x, weight) + bias`` → ``project``."""
    for node in flow.nodes:
        weights = [v for v in node.inputs if flow.weight(v)] if node.op == "einsum" else []
        if len(weights) != 1 or len(node.inputs) != 2:
            continue
        terms, _, result = str(node["equation"]).partition("->")
        first, second = terms.split(",")
        x, weight = node.inputs
        if weights[0] is x:
            x, weight, first, second = weight, x, second, first
        equation = f"{first},{second}->{result}"
        after = flow.reader(node.output)
        bias = _bias(flow, after, node.output) if after else None
        last = after if after and bias else node
        yield last, [last.becomes("project", (x, weight, bias), equation=equation)]


def _bias(flow: Flow, node: Node, product: Value) -> Value | None:
    if node.op != "elementwise" or node["fn"] != "add":
        return None
    other = _other(node, product)
    return other if flow.weight(other) and other is not None and other.rank <= 1 else None


def norms(flow: Flow) -> Found:
    """Root mean square and layer normalisation."""
    for node in flow.nodes:
        if node.op != "elementwise" or node["fn"] not in ("rsqrt", "sqrt"):
            continue
        mean = flow.maker.get(_without_epsilon(flow, node.operand()))
        if mean is None or mean.op != "reduce" or mean["fn"] not in ("mean", "var"):
            continue
        x = mean.inputs[0] if mean["fn"] == "var" else _squared(flow, mean.inputs[0])
        last = _normalised(flow, node, x)
        if x is None or last is None:
            continue
        centre = _centred(flow, x)
        if mean["fn"] == "var":
            centre = x
        kind = "layer" if centre is not None else "rms"
        yield _scaled(flow, last, kind, centre or x, len(mean["axes"]))


def _without_epsilon(flow: Flow, value: Value) -> Value:
    node = flow.maker.get(value)
    if node is not None and flow.op(value) in ("add", "maximum", "clamp"):
        rest = [v for v in node.inputs if v is not None and not is_constant(v)]
        return rest[0] if len(rest) == 1 else value
    return value


def _squared(flow: Flow, value: Value | None) -> Value | None:
    """x, where *value* is x²."""
    node = flow.maker.get(value) if value else None
    if node is None or flow.op(value) not in ("pow", "square", "mul"):
        return None
    twice = node["fn"] != "mul" or node.inputs[0] is node.inputs[1]
    return node.inputs[0] if twice else None


def _normalised(flow: Flow, root: Node, x: Value | None) -> Node | None:
    """The node that divides x by its *root*."""
    after = flow.reader(root.output)
    if (
        after is not None
        and flow.op(after.output) in ("reciprocal", "div")
        and x not in after.inputs
    ):
        after = flow.reader(after.output)
    elementwise = after is not None and after.op == "elementwise"
    return after if elementwise and after is not None and after["fn"] in ("mul", "div") else None


def _centred(flow: Flow, x: Value) -> Value | None:
    """What the mean was taken off to give *x*."""
    node = flow.maker.get(x)
    if node is None or flow.op(x) != "sub":
        return None
    mean = flow.maker.get(node.inputs[1]) if node.inputs[1] else None
    is_mean = mean is not None and mean.op == "reduce" and mean["fn"] == "mean"
    return node.inputs[0] if is_mean else None


def _scaled(flow: Flow, last: Node, kind: str, x: Value, axes: int) -> tuple[Node, list[Node]]:
    """The norm with the weight and the bias that follow it; of groups, where it is between two
    reshapes.
    """
    source = flow.maker.get(x)
    after = flow.reader(last.output)
    if source is not None and after is not None and source.op == after.op == "reshape":
        whole = source.inputs[0]
        if whole is not None and whole.shape == after.output.shape:
            x, last = whole, after
    weights: list[Value | None] = [None, None]
    for index, fn in enumerate(("mul", "add")):
        after = flow.reader(last.output)
        if after is None or flow.op(after.output) != fn:
            continue
        other = _other(after, last.output)
        if other is not None and flow.weight(other) and other.rank <= max(axes, 1):
            weights[index], last = other, after
    return last, [last.becomes("norm", (x, *weights), kind=kind, axes=axes, groups=1)]


def gated_norms(flow: Flow) -> Found:
    """A norm whose input or result is multiplied by the SiLU or sigmoid of a gate."""
    for node in flow.nodes:
        if node.op != "norm" or node.inputs[0] is None:
            continue
        x, weight, bias = node.inputs
        before = _gate(flow, flow.maker.get(x)) if x is not None else None
        after = flow.reader(node.output)
        if before is not None:
            yield node, [node.becomes("gated_norm", (*before, weight, bias))]
        elif (
            after is not None
            and (found := _gate(flow, after)) is not None
            and found[0] is node.output
        ):
            yield after, [after.becomes("gated_norm", (x, found[1], weight, bias))]


def _gate(flow: Flow, node: Node | None) -> tuple[Value, Value] | None:
    """X and z, where *node* is x·silu(z)."""
    if node is None or flow.op(node.output) != "mul":
        return None
    for value, gate in (node.inputs, node.inputs[::-1]):
        maker = flow.maker.get(gate) if gate is not None else None
        if value is not None and maker is not None and flow.op(gate) in ("silu", "sigmoid"):
            inner = maker.inputs[0]
            return (value, inner) if inner is not None and value in flow.weighted else None
    return None


def routings(flow: Flow) -> Found:
    """What lies between a router and the experts is one operator with them: the router's product
    and the biases of its scores are what is read.
    """
    for node in flow.nodes:
        if node.op != "experts":
            continue
        experts = node.inputs[2].shape[0] if node.inputs[2] is not None else 0
        scores, weights = _routed(flow, [node.inputs[1], node.inputs[8]], experts)
        if scores is not None:
            inputs = (node.inputs[0], scores, *node.inputs[2:8], *weights)
            yield node, [node.becomes("experts", inputs, **node.attributes)]


def _routed(
    flow: Flow, values: list[Value | None], experts: object
) -> tuple[Value | None, list[Value]]:
    """The product that routes were made from, and the weights on the way."""
    seen: set[Value] = set()
    scores, weights = None, list[Value]()
    while values:
        value = values.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        node = flow.maker.get(value)
        if value.kind == "weight":
            weights.append(value)
        elif node is not None and node.op == "project" and value.shape[-1] == experts:
            scores = value
        elif node is not None and node.op != "project":
            values += node.inputs
    return scores, weights


def recurrences(flow: Flow) -> Found:
    """Gates are computed inside of a recurrence's kernel: it reads what they are made from."""
    for node in flow.nodes:
        if node.op != "scan":
            continue
        weights: list[Value] = []
        inputs = tuple(_ungated(flow, v, weights) for v in node.inputs)
        yield node, [node.becomes("scan", (*inputs, *weights), **node.attributes)]


def _ungated(flow: Flow, value: Value | None, weights: list[Value]) -> Value | None:
    """What an elementwise chain with weights starts from."""
    node = flow.maker.get(value) if value is not None else None
    while node is not None and node.op == "elementwise":
        operands = [v for v in node.inputs if v is not None and not is_constant(v)]
        active = [v for v in operands if flow.weight(v) is None]
        if len(active) != 1:
            break
        weights += [v for v in operands if v is not active[0]]
        value, node = active[0], flow.maker.get(active[0])
    return value


PATTERNS: tuple[Callable[[Flow], Found], ...] = (
    projections,
    norms,
    gated_norms,
    routings,
    recurrences,
    attentions,
    caches,
    scales,
    latents,
    rotaries,
)
