"""Operators of the ONNX standard that only rename, pick or repeat elements, one rule each."""

import math
from collections.abc import Mapping

from frontends.onnx.call import Call, Rule, as_size
from frontends.onnx.reading import TYPES
from frontends.program import Size, Value


def _format(kind: int, call: Call) -> str:
    if kind not in TYPES:
        raise call.refuse(f"elements of type {kind} have no meaning here")
    return TYPES[kind][0]


def _same(call: Call) -> Value:
    return call[0]


def _cast(call: Call) -> Value:
    dtype = call[1].dtype if call.op == "CastLike" else _format(call.needs("to"), call)
    return call[0] if dtype == call[0].dtype else call.program.cast(call[0], dtype)


def _reshape(call: Call) -> Value:
    shape = call.attribute("shape")
    wanted = list(call.known(1, "the new shape").ravel() if shape is None else shape)
    if not call.attribute("allowzero", 0):
        wanted = [call[0].shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return call.reshape(call[0], [as_size(n) for n in wanted])


def _flatten(call: Call) -> Value:
    axis = call.attribute("axis", 1)
    axis = axis if axis == call[0].rank else call.axis(1)
    return call.reshape(call[0], [math.prod(call[0].shape[:axis]), math.prod(call[0].shape[axis:])])


def _squeeze(call: Call) -> Value:
    x, axes = call[0], call.axes(1)
    gone = (
        [i for i, size in enumerate(x.shape) if size == 1]
        if axes is None
        else [axis % x.rank for axis in axes]
    )
    for axis in gone:
        call.same(x.shape[axis], 1, f"axis {axis} of {x.shape}, which is left out,")
    return call.program.reshape(x, [size for i, size in enumerate(x.shape) if i not in gone])


def _unsqueeze(call: Call) -> Value:
    x, axes = call[0], call.axes(1) or []
    places = {axis % (x.rank + len(axes)) for axis in axes}
    sizes = iter(x.shape)
    shape = [1 if i in places else next(sizes) for i in range(x.rank + len(places))]
    return call.program.reshape(x, shape)


def _transpose(call: Call) -> Value:
    x, order = call[0], list(call.attribute("perm") or range(call[0].rank)[::-1])
    made = call.program.transpose(x, order)
    before = call.maker(x)
    apart = before.operand() if before is not None and before.op == "reshape" else x
    if apart.rank == x.rank + 1 and apart.shape[2:] == x.shape[1:] and order[0] == 0:
        # batch and heads as one axis for the while: turned, they are told apart again
        turned = call.program.transpose(apart, [0, 1, *(axis + 1 for axis in order[1:])])
        return call.program.reshape(turned, made.shape)
    return made


def _expand(call: Call) -> Value:
    x, wanted = call[0], [as_size(n) for n in call.known(1, "the new shape").ravel()]
    shape: list[Size] = [1] * max(x.rank, len(wanted))
    for sizes in (x.shape, wanted):
        for i, size in enumerate(sizes, len(shape) - len(sizes)):
            if shape[i] == 1:
                shape[i] = size
            elif size != 1:
                call.same(shape[i], size, f"axis {i} of {x.shape} and {tuple(wanted)}")
    return call.program.expand(x, shape)


def _tile(call: Call) -> Value:
    x, times = call[0], [as_size(n) for n in call.known(1, "how often").ravel()]
    apart = [size for n in x.shape for size in (1, n)]
    wide = [size for pair in zip(times, x.shape, strict=True) for size in pair]
    spread = call.program.expand(call.program.reshape(x, apart), wide)
    shape = [n * size for n, size in zip(times, x.shape, strict=True)]
    return call.program.reshape(spread, shape)


def _slice(call: Call) -> Value:
    x = call[0]
    for axis, start, stop, step in call.slices(x.rank):
        length = x.shape[axis]
        if step < 0:
            x = call.program.add("opaque", [x], [x.shape], kind="Reverse", flop=0)
        first, last = (0, length) if step < 0 else (_bound(n, length) for n in (start, stop))
        if (first, last, abs(step)) != (0, length, 1):
            x = call.program.slice(x, axis, first, last, abs(step))
    return x


_FAR = 10**8  # exporters write 2³¹ - 1, 2⁶³ - 1 or 10⁹ for the end


def _bound(place: Size, length: Size) -> Size:
    """A place on an axis of *length*, counted from its front and not beyond its end."""
    import sympy

    place = as_size(place)
    if isinstance(place, int) and place < 0:
        return max(0, length + place) if isinstance(length, int) else length + place
    if isinstance(place, int) and isinstance(length, int):
        return min(place, length)
    if not isinstance(place, int) or place <= 1:
        # a place with a name is one of the axis: that is what names it
        return place
    return length if place >= _FAR else sympy.Min(place, length)


def _split(call: Call) -> list[Value]:
    axis, start, parts = call.axis(0), 0, []
    sizes = call.split_sizes(call[0].shape[axis])
    call.same(sum(sizes), call[0].shape[axis], "its parts and the whole")
    for size in map(as_size, sizes):
        parts.append(call.program.slice(call[0], axis, start, start + size))
        start += size
    return parts


def _concat(call: Call) -> Value:
    first, axis = call[0], call.axis(0)
    values = [call[i] for i in range(len(call.inputs))]
    for value in values[1:]:
        call.shaped(
            value, [None if i == axis else n for i, n in enumerate(first.shape)], "its operand"
        )
    kept = [value for value in values if value.shape[axis] != 0] or values[:1]
    return call.program.concat(kept, axis) if len(kept) > 1 else kept[0]


def _pad(call: Call) -> Value:
    x, pads = call[0], [as_size(n) for n in call.numbers("pads", 1) or []]
    axes = call.axes(3) or list(range(x.rank))
    if len(pads) != 2 * len(axes):
        raise call.refuse(f"{len(pads)} numbers for the ends of {len(axes)} axes")
    for index, axis in enumerate(axes):
        for place, size in enumerate((pads[index], pads[index + len(axes)])):
            x = _padded(call, x, axis % x.rank, size, at_end=bool(place))
    return x


def _padded(call: Call, x: Value, axis: int, size: Size, *, at_end: bool) -> Value:
    if size == 0:
        return x
    length = x.shape[axis]
    if isinstance(size, int) and size < 0:
        ends = (0, length + size) if at_end else (-size, length)
        return call.program.slice(x, axis, *ends)
    zeros = call.program.constant(0, (*x.shape[:axis], size, *x.shape[axis + 1 :]), str(x.dtype))
    return call.program.concat([x, zeros] if at_end else [zeros, x], axis)


def _gather(call: Call) -> Value:
    x, index, axis = call[0], call[1], call.axis(0)
    known, length = call.content(1), x.shape[axis]
    numbers = known is not None and known.dtype != object and known.size and isinstance(length, int)
    if numbers and not -length <= known.min() <= known.max() < length:
        raise call.refuse(f"entry {known.max()} of an axis of {length}")
    if known is None or known.size != 1 or x.kind == "weight":
        return call.program.gather(x, index, axis)
    place = as_size(known.ravel()[0])
    place = place + x.shape[axis] if isinstance(place, int) and place < 0 else place
    one = call.program.slice(x, axis, place, place + 1)
    return call.program.reshape(one, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _gather_elements(call: Call) -> Value:
    shape = call[1].shape
    return call.program.add("gather", [call[0], call[1]], [shape], axis=call.axis(0), along=True)


def _gather_nd(call: Call) -> Value:
    x, index, lead = call[0], call[1], call.attribute("batch_dims", 0)
    depth = index.shape[-1]
    if not isinstance(depth, int) or lead + depth > x.rank:
        raise call.refuse(f"{depth} numbers for a place in {x.shape}")
    shape = (*index.shape[:-1], *x.shape[lead + depth :])
    return call.program.add("gather", [x, index], [shape], axis=None)


def _scatter(call: Call) -> Value:
    if call.op == "ScatterND":
        return call.program.add("scatter", call.inputs, [call[0].shape], axis=None)
    return call.program.scatter(call[0], call[1], call[2], call.axis(0))


def _tensor_scatter(call: Call) -> Value:
    return call.program.scatter(call[0], call.get(2), call[1], call.axis(-2))


def _topk(call: Call) -> tuple[Value, Value]:
    k = call.attribute("k")
    k = as_size(call.known(1, "how many").ravel()[0]) if k is None else k
    axis = call.axis(-1)
    length = call[0].shape[axis]
    if isinstance(k, int) and isinstance(length, int) and not 0 <= k <= length:
        raise call.refuse(f"the {k} largest of {length}")
    return call.program.topk(call[0], k, axis)


def _one_hot(call: Call) -> Value:
    depth = as_size(call.known(1, "how many classes").ravel()[0])
    x = call[0]
    axis = call.attribute("axis", -1) % (x.rank + 1)
    wide = call.program.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))
    classes = call.program.add("iota", [], [(depth, *[1] * (x.rank - axis))], x.dtype)
    result = call.program.elementwise("eq", wide, classes)
    return call.program.cast(result, call[2].dtype)


def _range(call: Call) -> Value:
    start, stop, step = (as_size(call.known(i, "its range").ravel()[0]) for i in range(3))
    if step == 0:
        raise call.refuse("its step is 0")
    length = -((start - stop) // step) if step != 1 else stop - start
    length = max(0, length) if isinstance(length, int) else length
    counted = call.program.add("iota", [], [(as_size(length),)], call[0].dtype)
    if step != 1:
        counted = call.elementwise("mul", counted, call[2])
    return counted if start == 0 else call.elementwise("add", counted, call[0])


def _filled(call: Call) -> Value:
    value = call.attribute("value")
    shape = [as_size(n) for n in call.known(0, "the shape").ravel()]
    dtype = "fp32" if value is None else {"f": "fp32", "b": "bool"}.get(value.dtype.kind, "int64")
    return call.program.constant(0 if value is None else value.ravel()[0].item(), shape, dtype)


def _triangle(call: Call) -> Value:
    """A comparison of rows and columns, as a causal mask is."""
    x = call[0]
    rows, columns = (call.program.add("iota", [], [(n,)], "int64") for n in x.shape[-2:])
    rows = call.program.reshape(rows, (x.shape[-2], 1))
    shift = int(call.known(1, "the diagonal").item()) if call.get(1) else 0
    if shift:
        rows = call.elementwise("add", rows, call.program.constant(shift, (), "int64"))
    inside = call.elementwise("ge" if call.attribute("upper", 1) else "le", columns, rows)
    return call.elementwise("where", inside, x, call.scalar(0, x))


VIEWS: Mapping[str, Rule] = {
    **dict.fromkeys(("Identity", "Dropout"), _same),
    **dict.fromkeys(("Cast", "CastLike"), _cast),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Pad": _pad,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    **dict.fromkeys(("Scatter", "ScatterElements", "ScatterND"), _scatter),
    "TensorScatter": _tensor_scatter,
    "TopK": _topk,
    "OneHot": _one_hot,
    "Range": _range,
    "ConstantOfShape": _filled,
    "Trilu": _triangle,
}
# what only renames the elements of a weight
KEPT = frozenset(
    ("Dropout", "Cast", "CastLike", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
) | frozenset(("Expand", "Slice", "Split", "Gather"))
