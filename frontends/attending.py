"""Attention found again: spelled out, behind caches and copies, from latents; rotary positions."""

from frontends.flow import Flow, Found, is_constant
from frontends.program import COMPARISONS, VIEWS, Node, Value

_ARITHMETIC = frozenset(["add", "sub", "mul", "div", "neg"])


def attentions(flow: Flow) -> Found:
    """softmax(QKᵀ)V of two products of activations."""
    for node in flow.nodes:
        if node.op != "softmax":
            continue
        scores, mask, sinks = _scores(flow, node.inputs[0])
        last = _weighted_sum(flow, node.output)
        if scores is None or last is None:
            continue
        first, second, result = _terms(scores)
        weights, values, out = _terms(last)
        probabilities, value = last.inputs
        if not _comes_from(flow, probabilities, node):
            (weights, values), value = (values, weights), probabilities
        lead = "".join(letter for letter in first if letter in second and letter in result)
        own, places = _only(first, lead, result), _only(second, lead, result)
        closed, made = _only(second, result), _only(values, weights)
        late = "".join(letter for letter in values if letter in weights and letter in out)
        if len(lead) != 2 or not all((own, places, closed, made)):
            continue
        keys = _only(values, late + made)
        operands = (
            (*_straight(flow, scores.inputs[0], first), lead + own + closed),
            (*_straight(flow, scores.inputs[1], second), lead + places + closed),
            (*_straight(flow, value, values), late + keys + made),
        )
        seq = _only(weights, late + keys)
        yield last, _spelled(last, operands, (mask, sinks), (late + seq + made, out))


def _terms(node: Node) -> tuple[str, str, str]:
    terms, _, result = str(node["equation"]).partition("->")
    first, second = terms.split(",")
    return first, second, result


def _only(letters: str, without: str, among: str = "") -> str:
    """The one letter that is not in *without*, and is in *among* if that is given."""
    found = [x for x in letters if x not in without and (not among or x in among)]
    return found[0] if len(found) == 1 else ""


def _spelled(
    last: Node,
    operands: tuple[tuple[Value | None, str, str], ...],
    rest: tuple[Value | None, ...],
    order: tuple[str, str],
) -> list[Node]:
    """Attention with its operands' axes, and those of its result, in the usual order."""
    nodes: list[Node] = []
    inputs: list[Value | None] = []
    for value, have, want in operands:
        if value is not None and have != want:
            nodes.append(_transposed(last, value, [have.index(letter) for letter in want]))
            inputs.append(nodes[-1].output)
        else:
            inputs.append(value)
    made, wanted = order
    attributes = {"causal": False, "window": 0}
    if made == wanted:
        return [*nodes, last.becomes("attention", (*inputs, *rest), **attributes)]
    turned_back = [made.index(letter) for letter in wanted]
    shape = [0] * len(made)
    for place, axis in enumerate(turned_back):
        shape[axis] = last.output.shape[place]
    result = Value(f"{last.output.name}.heads", tuple(shape), last.output.dtype)
    node = Node("attention", (*inputs, *rest), (result,), attributes, last.where)
    return [*nodes, node, last.becomes("transpose", (result,), order=tuple(turned_back))]


def _straight(flow: Flow, value: Value | None, letters: str) -> tuple[Value | None, str]:
    """*value* before its axes were transposed, and the letters of these."""
    while value is not None and (node := flow.maker.get(value)) and node.op == "transpose":
        places = dict(zip(node["order"], letters, strict=True))
        value, letters = node.inputs[0], "".join(places[axis] for axis in range(len(letters)))
    return value, letters


def _transposed(node: Node, value: Value, order: list[int]) -> Node:
    shape = tuple(value.shape[axis] for axis in order)
    turned_value = Value(f"{value.name}.turned{''.join(map(str, order))}", shape, value.dtype)
    return Node("transpose", (value,), (turned_value,), {"order": tuple(order)}, node.where)


def _comes_from(flow: Flow, value: Value | None, softmax: Node) -> bool:
    while value is not None and (node := flow.maker.get(value)) is not None:
        if node is softmax:
            return True
        if node.op not in ("slice", "cast", "reshape", "elementwise"):
            break
        value = node.inputs[0]
    return False


def _scores(flow: Flow, value: Value | None) -> tuple[Node | None, Value | None, Value | None]:
    """The product QKᵀ under the softmax, the mask or bias that is added, the sinks beside it."""
    node = flow.maker.get(value) if value is not None else None
    if node is None:
        return None, None, None
    if node.op == "einsum":
        products = len(node.inputs) == 2 and not any(flow.weight(v) for v in node.inputs)
        return (node if products else None), None, None
    if node.op == "concat":
        found, mask, _ = _scores(flow, node.inputs[0])
        below = (flow.below(v) for v in node.inputs[1:] if v is not None)
        return found, mask, next((w for v in below if (w := flow.weight(v))), None)
    if node.op not in ("elementwise", *VIEWS):
        return None, None, None
    for operand in (v for v in node.inputs if v is not None and v in flow.weighted):
        found, mask, sinks = _scores(flow, operand)
        if found is not None:
            beside = (v for v in node.inputs if v is not operand and v and not is_constant(v))
            return found, next(beside, mask), sinks
    return None, None, None


def _weighted_sum(flow: Flow, value: Value) -> Node | None:
    """The product of the probabilities with the values."""
    while (node := flow.reader(value)) is not None:
        if node.op == "einsum":
            return node
        if node.op not in ("slice", "cast", "reshape", "elementwise"):
            return None
        value = node.output
    return None


def visible(flow: Flow, mask: Value) -> tuple[bool, int]:
    """Whether a query sees no later position in *mask*, and how many it sees back (0: all).

    Read from the comparisons of positions that the mask is made with.
    """
    causal, window, todo, seen = False, 0, [mask], set[Value]()
    while todo:
        value = todo.pop()
        node = flow.maker.get(value)
        if value in seen or node is None:
            continue
        seen.add(value)
        todo += [v for v in node.inputs if v is not None]
        if node.op == "elementwise" and node["fn"] in COMPARISONS & {"le", "lt", "ge", "gt"}:
            offset = max(_offset(flow, v) for v in node.inputs if v is not None)
            if offset > 1:
                window = offset
            elif not any(is_constant(v) for v in node.inputs):
                causal = True
    return causal or bool(window), window


def _offset(flow: Flow, value: Value) -> int:
    """The constant that is added to positions."""
    node = flow.maker.get(flow.below(value))
    if node is None or node.op != "elementwise" or node["fn"] not in ("add", "sub"):
        return 0
    constants = [v.data for v in node.inputs if v is not None and isinstance(v.data, int)]
    return max((abs(number) for number in constants), default=0)


def scales(flow: Flow) -> Found:
    """Queries and keys times a constant: a part of the softmax."""
    heads = {v for n in flow.nodes if n.op == "attention" for v in n.inputs[:2] if v is not None}
    for value in heads:
        node = flow.maker.get(flow.below(value))
        if node is None or flow.op(node.output) not in ("mul", "div") or len(node.inputs) != 2:
            continue
        x, factor = node.inputs
        if is_constant(factor) and factor is not None and not factor.shape:
            yield node, [node.becomes("cast", (x,))]


def caches(flow: Flow) -> Found:
    """Keys and values of attention without the earlier ones joined to them, and without copies
    for the queries of a group.
    """
    for node in flow.nodes:
        if node.op != "attention":
            continue
        query, key, value, *rest = node.inputs
        (key, grows), (value, _) = (_new(flow, v) for v in (key, value))
        mask = rest[0] if rest else None
        causal, window = visible(flow, mask) if mask else (node["causal"], node["window"])
        attributes = {"causal": causal or grows, "window": window or node["window"]}
        yield node, [node.becomes("attention", (query, key, value, None, *rest[1:]), **attributes)]


def _new(flow: Flow, value: Value | None) -> tuple[Value | None, bool]:
    """The part of keys or values that this step makes, and whether earlier ones were joined."""
    value = _unrepeated(flow, value)
    node = flow.maker.get(value) if value else None
    if node is None or node.op not in ("concat", "scatter") or node.inputs[0] in flow.weighted:
        return value, False
    made = node.inputs[-1] if len(node.inputs) > 1 else None
    if made is None or made not in flow.weighted:
        return value, False
    return _unrepeated(flow, made), True


def _unrepeated(flow: Flow, value: Value | None) -> Value | None:
    """Keys before they are copied for each query of their group."""
    if value is None or value.rank != 4:
        return value
    node = flow.maker.get(value)
    if node is None or node.op != "reshape" or flow.op(node.inputs[0]) != "expand":
        return value
    apart = flow.below(node.inputs[0], frozenset({"expand"})) if node.inputs[0] else None
    source = flow.below(apart, frozenset({"expand", "reshape"})) if apart else None
    return source if source is not None and source.rank == 4 else value


def latents(flow: Flow) -> Found:
    """Keys and values made from one latent vector per token, with a rotated part that all heads
    share (DeepSeek-V2, 2024): ``mla``.
    """
    for node in flow.nodes:
        joined = (
            flow.maker.get(node.inputs[1]) if node.op == "attention" and node.inputs[1] else None
        )
        if joined is None or joined.op != "concat" or len(joined.inputs) != 2:
            continue
        query, (fixed, shared), value = node.inputs[0], joined.inputs, node.inputs[2]
        up = flow.maker.get(flow.below(fixed)) if fixed else None
        turned_query = turned(flow, query) if query else None
        turned_key = turned(flow, flow.below(shared, frozenset({"expand"}))) if shared else None
        if up is None or up.op != "project" or turned_query is None or turned_key is None:
            continue
        if value is None or flow.maker.get(flow.below(value)) is not up or up.inputs[0] is None:
            continue
        whole, nope = turned_query[0], fixed.shape[-1] if fixed else 0
        parts = [_slice(node, whole, 0, nope), _slice(node, whole, nope, whole.shape[-1])]
        rotated = tuple(
            Value(f"{v.name}.turned", v.shape, v.dtype) for v in (parts[1].output, turned_key[0])
        )
        rotary = Node(
            "rotary", (parts[1].output, turned_key[0]), rotated, {"share": 1.0}, node.where
        )
        latent = flow.below(up.inputs[0], frozenset({"reshape"}))
        inputs = (parts[0].output, rotated[0], latent, rotated[1], up.inputs[1])
        yield (
            node,
            [
                *parts,
                rotary,
                node.becomes("mla", inputs, heads=whole.shape[1], value=value.shape[-1]),
            ],
        )


def _slice(node: Node, value: Value, start: int, stop: int) -> Node:
    """A part of the last axis of *value*."""
    part = Value(f"{value.name}.{start}", (*value.shape[:-1], stop - start), value.dtype)
    attributes = {"axis": value.rank - 1, "start": start, "stop": stop, "step": 1}
    return Node("slice", (value,), (part,), attributes, node.where)


def rotaries(flow: Flow) -> Found:
    """Queries and keys that sines and cosines of the positions went into."""
    heads = (v for n in flow.nodes if n.op == "attention" for v in n.inputs[:2] if v is not None)
    moves = frozenset({"transpose", "reshape"})
    for value in dict.fromkeys(flow.below(head, moves) for head in heads):
        found = turned(flow, value)
        if found is not None:
            node = flow.maker[value]
            yield node, [node.becomes("rotary", (found[0],), share=found[1])]


def turned(flow: Flow, value: Value) -> tuple[Value, float] | None:
    """What *value* is the rotation of, and the part of it that turns."""
    region, sources, tables = _region(flow, value)
    if len(sources) != 1 or not tables:
        return None
    whole, source = None, sources.pop()
    while True:
        whole = source if source.shape == value.shape else whole
        inner = [n for n in flow.readers[source] if n in region]
        if len(inner) != 1 or inner[0].op not in VIEWS:
            break
        source = inner[0].output
    if whole is None:
        return None
    source = whole
    node = flow.maker[value]
    passed = 0
    if node.op == "concat":
        still = [v for v in node.inputs if v is not None and not _region(flow, v)[2]]
        passed = sum(v.shape[-1] for v in still)
    return source, 1 - passed / value.shape[-1]


def _region(flow: Flow, value: Value) -> tuple[set[Node], set[Value], set[Value]]:
    """The views and arithmetic above *value*, the values they start from, and the tables."""
    region: set[Node] = set()
    sources: set[Value] = set()
    tables: set[Value] = set()
    todo = [value]
    while todo:
        value = todo.pop()
        node = flow.maker.get(value)
        if value not in flow.weighted:
            if value.shape or not is_constant(value):
                tables.add(value)
        elif node is None or not _turns(flow, node):
            sources.add(value)
        elif node not in region:
            region.add(node)
            todo += [v for v in node.inputs if v is not None]
    return region, sources, tables


def _turns(flow: Flow, node: Node) -> bool:
    if node.op == "elementwise":
        return node["fn"] in _ARITHMETIC and not any(v and flow.weight(v) for v in node.inputs)
    return node.op in VIEWS or node.op in ("concat", "pairs")
