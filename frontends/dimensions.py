"""Dimensions from structure: which axes of a program's values are the same, and of what they are.

Equal dimensions are unified through every operator. A reshape makes one dimension the product of
others, a split or a concatenation the sum of others; what is left are *atoms*.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from math import prod

from frontends.dim import Dim, Unlike, quotient, unify
from frontends.program import Node, Shape, Size, Value


class Dimensions:
    """The dimensions of every value of a program.

    An axis of size 1 that an operator added (a *unit*) has none: it is None.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.of: dict[Value, tuple[Dim | None, ...]] = {}
        for node in nodes:
            for value in node.inputs:
                if value is not None and value not in self.of:
                    self.of[value] = self._source(value)
            results = RULES.get(node.op, _fresh)(self, node)
            for value, dims in zip(node.outputs, results, strict=True):
                self.of[value] = dims

    def atoms(self, value: Value) -> tuple[Dim, ...]:
        """The atoms of all axes, in order."""
        return tuple(a for dim in self.of[value] if dim is not None for a in dim.atoms)

    def same(self, one: Dim | None, other: Dim | None) -> Dim | None:
        """Unify two axes, one of which may be a unit; what comes out where they broadcast."""
        if one is None or other is None:
            return one or other
        if one.root.size != other.root.size:
            return one if other.root.size == 1 else other
        with suppress(Unlike):
            unify(one, other)
        return one

    def _source(self, value: Value) -> tuple[Dim | None, ...]:
        outside = (value, 0) if value.kind in ("weight", "input") else None
        return tuple(
            None if n == 1 and value.kind != "input" else Dim(n, origin=outside and (value, axis))
            for axis, n in enumerate(value.shape)
        )


Axes = tuple[Dim | None, ...]


Rule = Callable[[Dimensions, Node], Sequence[Axes]]


RULES: dict[str, Rule] = {}


def _rule(*ops: str) -> Callable[[Rule], Rule]:
    def enter(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, rule))
        return rule

    return enter


def _fresh(_: Dimensions, node: Node) -> Sequence[Axes]:
    return [tuple(None if n == 1 else Dim(n) for n in v.shape) for v in node.outputs]


def _inputs(dims: Dimensions, node: Node) -> list[Axes]:
    return [dims.of[value] for value in node.inputs if value is not None]


@_rule("cast", "softmax", "cumulate", "rotary")
def _like_inputs(dims: Dimensions, node: Node) -> Sequence[Axes]:
    return _inputs(dims, node)[: len(node.outputs)]


@_rule("norm", "gated_norm")
def _norm(dims: Dimensions, node: Node) -> Sequence[Axes]:
    x, *weights = _inputs(dims, node)
    for weight in weights:
        if node.attributes.get("kind") == "group":
            dims.same(x[1], weight[0])
            continue
        for one, other in zip(reversed(x), reversed(weight), strict=False):
            dims.same(one, other)
    return [x] * len(node.outputs)


@_rule("elementwise")
def _elementwise(dims: Dimensions, node: Node) -> Sequence[Axes]:
    rank = node.output.rank
    result: list[Dim | None] = [None] * rank
    for axes in _inputs(dims, node):
        for axis, dim in enumerate(axes, rank - len(axes)):
            result[axis] = dims.same(result[axis], dim)
    return [tuple(result)]


@_rule("transpose")
def _transpose(dims: Dimensions, node: Node) -> Sequence[Axes]:
    (x,) = _inputs(dims, node)
    return [tuple(x[axis] for axis in node["order"])]


@_rule("expand")
def _expand(dims: Dimensions, node: Node) -> Sequence[Axes]:
    (x,) = _inputs(dims, node)
    x = (None,) * (node.output.rank - len(x)) + x
    sizes = zip(x, node.output.shape, strict=True)
    return [
        tuple(
            (None if n == 1 else Dim(n)) if dim is None or dim.root.size != n else dim
            for dim, n in sizes
        )
    ]


@_rule("reshape")
def _reshape(dims: Dimensions, node: Node) -> Sequence[Axes]:
    (x,) = _inputs(dims, node)
    result: list[Dim | None] = [None] * node.output.rank
    for ins, outs in aligned(node.operand().shape, node.output.shape):
        before = [d for axis in ins if (d := x[axis]) is not None]
        after = [axis for axis in outs if node.output.shape[axis] != 1] or outs[:1]
        for axis, dim in zip(
            after, _reshaped(before, [node.output.shape[a] for a in after]), strict=False
        ):
            result[axis] = dim
    return [tuple(result)]


def aligned(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """The axes of two shapes in groups of equal products."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        ins, outs = ([i] if i < len(before) else []), ([j] if j < len(after) else [])
        i, j = i + 1, j + 1
        while (left := prod(before[a] for a in ins)) != (right := prod(after[a] for a in outs)):
            grow_left = j >= len(after) or (i < len(before) and quotient(right, left) is not None)
            if grow_left and i < len(before):
                ins, i = [*ins, i], i + 1
            elif j < len(after):
                outs, j = [*outs, j], j + 1
            else:
                return [(list(range(len(before))), list(range(len(after))))]
        groups.append((ins, outs))
    return groups


def _reshaped(before: list[Dim], sizes: list[Size]) -> list[Dim | None]:
    """The dimensions of *sizes* that *before* become."""
    if len(before) == 1 and len(sizes) == 1:
        return list(before)
    before = [dim for dim in before if dim.root.size != 1] or before
    after: list[Dim] = [Dim(size) for size in sizes]
    one, other = _product(before), _product(after)
    if one is not None and other is not None:
        with suppress(Unlike):
            unify(one, other)
    return list(after)


def _product(dims: list[Dim]) -> Dim | None:
    if len(dims) < 2:
        return dims[0] if dims else None
    return Dim(prod(dim.root.size for dim in dims), tuple(dims))


@_rule("slice")
def _slice(dims: Dimensions, node: Node) -> Sequence[Axes]:
    (x,) = _inputs(dims, node)
    axis, length = node["axis"], node.output.shape[node["axis"]]
    part = _part(x[axis], node["start"], length) if node["step"] == 1 else Dim(length)
    return [(*x[:axis], part, *x[axis + 1 :])]


def _part(whole: Dim | None, start: Size, length: Size) -> Dim | None:
    """The part of *whole* from *start* on: *whole* becomes a sum with cuts at its ends."""
    if whole is None or length == 0:
        return whole
    cuts = [size for size in (start, length, whole.root.size - start - length) if size != 0]
    if any(
        getattr(size, "is_positive", None) is not True and not (isinstance(size, int) and size > 0)
        for size in cuts
    ):
        return Dim(length)
    pieces = tuple(Dim(size) for size in cuts)
    part = pieces[0 if start == 0 else 1]
    if len(pieces) == 1:
        return whole
    try:
        unify(whole, Dim(whole.root.size, pieces, "sum"))
    except Unlike:
        return Dim(length)
    return part


@_rule("concat")
def _concat(dims: Dimensions, node: Node) -> Sequence[Axes]:
    values, axis = _inputs(dims, node), node["axis"]
    first, *rest = values
    for other in rest:
        for index, (one, two) in enumerate(zip(first, other, strict=True)):
            if index != axis:
                dims.same(one, two)
    parts = tuple(axes[axis] or Dim(1) for axes in values)
    whole = Dim(node.output.shape[axis], parts, "sum")
    return [(*first[:axis], whole, *first[axis + 1 :])]


@_rule("einsum")
def _einsum(dims: Dimensions, node: Node) -> Sequence[Axes]:
    return [_product_of(dims, str(node["equation"]), _inputs(dims, node))]


def _product_of(dims: Dimensions, equation: str, operands: Sequence[Axes]) -> Axes:
    terms, _, result = equation.partition("->")
    known: dict[str, Dim | None] = {}
    for term, axes in zip(terms.split(","), operands, strict=True):
        for letter, dim in zip(term, axes, strict=True):
            known[letter] = dims.same(known.get(letter), dim)
    return tuple(known[letter] for letter in result)


@_rule("project")
def _project(dims: Dimensions, node: Node) -> Sequence[Axes]:
    x, *rest = (() if v is None else dims.of[v] for v in node.inputs)
    results: list[Axes] = []
    for weight, bias in zip(rest[::2], rest[1::2], strict=True):
        results.append(_product_of(dims, str(node["equation"]), (x, weight)))
        if bias:
            dims.same(results[-1][-1], bias[-1])
    return results


@_rule("map")
def _map(dims: Dimensions, node: Node) -> Sequence[Axes]:
    return _elementwise(dims, node)


@_rule("last")
def _last(dims: Dimensions, node: Node) -> Sequence[Axes]:
    (x,) = _inputs(dims, node)
    return [(x[0], *x[2:])]


@_rule("conv")
def _conv(dims: Dimensions, node: Node) -> Sequence[Axes]:
    """Where windows do not overlap, a place of the input is a place of the result and a tap."""
    x, weight, *bias = _inputs(dims, node)
    if node["groups"] == 1:
        dims.same(x[1], weight[1])
    for axes in bias:
        dims.same(weight[0], axes[-1])
    places: list[Dim | None] = []
    apart = is_patching(node)
    for axis in range(2, len(x)):
        place, taps, whole = Dim(node.output.shape[axis]), weight[axis], x[axis]
        if apart and whole is not None:
            parts = (place, taps) if taps is not None else (place,)
            dims.same(whole, Dim(whole.root.size, parts) if taps is not None else place)
        places.append(place)
    return [(x[0], weight[0], *places)]


def is_patching(node: Node) -> bool:
    """Whether the windows of a convolution lie side by side and cover all of its input."""
    x, weight = node.inputs[:2]
    if x is None or weight is None:
        return False
    taps = weight.shape[2:]
    covered = all(
        one == other * size
        for one, other, size in zip(x.shape[2:], node.output.shape[2:], taps, strict=True)
    )
    return covered and node["groups"] == 1 and tuple(node["strides"]) == taps


@_rule("reduce")
def _reduce(dims: Dimensions, node: Node) -> Sequence[Axes]:
    (x,) = _inputs(dims, node)
    keep = node.output.rank == len(x)
    return [
        tuple(
            None if a in node["axes"] else d
            for a, d in enumerate(x)
            if keep or a not in node["axes"]
        )
    ]


@_rule("gather")
def _gather(dims: Dimensions, node: Node) -> Sequence[Axes]:
    x, index = _inputs(dims, node)[:2]
    axis = node["axis"]
    if axis is None or node.attributes.get("along"):
        return _fresh(dims, node)
    return [(*x[:axis], *index, *x[axis + 1 :])]


@_rule("topk", "sort")
def _topk(dims: Dimensions, node: Node) -> Sequence[Axes]:
    (x,) = _inputs(dims, node)
    axis = node["axis"] % len(x)
    chosen = Dim(node.output.shape[axis]) if node.op == "topk" else x[axis]
    return [(*x[:axis], chosen, *x[axis + 1 :])] * 2


@_rule("attention")
def _attention(dims: Dimensions, node: Node) -> Sequence[Axes]:
    query, key, value = (dims.of[v] for v in node.inputs[:3] if v is not None)
    for one, other in (
        (query[0], key[0]),
        (query[3], key[3]),
        *zip(key[:3], value[:3], strict=True),
    ):
        dims.same(one, other)
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        dims.same(query[1], dims.of[node.inputs[4]][-1])
    return [(*query[:3], value[3])]


@_rule("mla")
def _mla(dims: Dimensions, node: Node) -> Sequence[Axes]:
    """``queries, their rotary part, latents, the keys' rotary part, the matrix up``."""
    query, turned, latent, shared, up = _inputs(dims, node)
    for one, other in ((query[0], turned[0]), (query[1], turned[1]), (query[0], latent[0])):
        dims.same(one, other)
    dims.same(turned[3], shared[-1])
    dims.same(latent[-1], up[1])
    nope, heads = query[3], query[1]
    made = Dim(node["value"])
    if nope is not None and heads is not None:
        each = Dim(nope.root.size + node["value"], (nope, made), "sum")
        dims.same(up[0], Dim(each.size * heads.root.size, (heads, each)))
    return [(*query[:3], made)]


@_rule("experts")
def _experts(dims: Dimensions, node: Node) -> Sequence[Axes]:
    """``x scores up down biases …``: what the matrices of an expert have in common."""
    x, scores, up, down, up_bias, down_bias, gate, gate_bias, *biases = (
        () if v is None else dims.of[v] for v in node.inputs
    )
    for bias in biases:
        dims.same(scores[-1], bias[-1])
    wide, narrow = (1, 2) if not node["transposed"] else (2, 1)
    for weight in (down, up_bias, down_bias, gate, gate_bias):
        if weight:
            dims.same(up[0], weight[0])
    for one in (up[narrow], down[wide], *down_bias[1:], *(gate[narrow : narrow + 1])):
        dims.same(x[-1], one)
    ffn, columns = down[narrow], up[wide]
    if node["gated"] and not gate and ffn is not None and columns is not None:
        dims.same(columns, Dim(columns.root.size, (ffn, ffn), "sum"))
    else:
        dims.same(ffn, columns)
    for one in (*up_bias[1:], *gate[wide : wide + 1], *gate_bias[1:]):
        dims.same(columns, one)
    return [x]


@_rule("scan")
def _scan(dims: Dimensions, node: Node) -> Sequence[Axes]:
    """Equal letters are equal dimensions: see `SCANS`; inputs beyond its own go by their last."""
    known: dict[str, Dim | None] = {}
    terms = SCANS[node["kind"]].split()
    for term, value in zip(terms, node.inputs, strict=False):
        for letter, dim in zip(term, dims.of[value] if value is not None else (), strict=False):
            known[letter] = dims.same(known.get(letter), dim)
    for value in node.inputs[len(terms) :]:
        if value is not None:
            dims.same(known["h"], dims.of[value][-1])
    return [tuple(known[letter] for letter in terms[0])]


# axes of what each recurrence reads: b batch, s sequence, h heads or channels, p features of a
# value, g groups of keys, n features of a key, k taps
SCANS = {
    "conv": "bhs hk h",
    "ssd": "bshp bsh h bsgn bsgn h h",
    "selective": "bhs bhs hn bns bns h bhs h",
    "delta": "bshp bsgn bsgn bsh bsh",
}


@_rule("scatter")
def _scatter(dims: Dimensions, node: Node) -> Sequence[Axes]:
    return [_inputs(dims, node)[0]]
