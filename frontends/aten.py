"""ATen: one rule for each operator, from a call to primitives of a program."""

from typing import Any

from frontends.lowering import ATEN, Call, Lowering, Rule, aten, name_of, shape_of
from frontends.program import Value

__all__ = ["ATEN"]


@aten(*["contiguous", "clone", "detach", "alias", "dropout", "feature_dropout", "lift_fresh_copy"])
def _same(_: Lowering, call: Call) -> Any:
    return call.first


@aten("copy_")
def _copy(low: Lowering, call: Call) -> Value:
    update: Value = call.arguments[1]
    low.written(call.node.args[0], update)
    return update


@aten("to", "_to_copy", "type_as", "float", "bfloat16")
def _cast(low: Lowering, call: Call) -> Value:
    return call.first if call.dtype == call.first.dtype else low.p.cast(call.first, call.dtype)


@aten(
    *[
        "view",
        "reshape",
        "_unsafe_view",
        "flatten",
        "unflatten",
        "unsqueeze",
        "squeeze",
        "view_as",
        "reshape_as",
    ]
)
def _reshape(low: Lowering, call: Call) -> Value:
    return low.p.reshape(call.first, call.shape)


@aten("transpose", "swapaxes")
def _transpose(low: Lowering, call: Call) -> Value:
    x, (one, other) = call.first, call.arguments[1:3]
    order = list(range(x.rank))
    order[one], order[other] = order[other], order[one]
    return low.p.transpose(x, order)


@aten("t", "numpy_T", "mT")
def _turned(low: Lowering, call: Call) -> Value:
    rank = call.first.rank
    return (
        low.p.transpose(call.first, [*range(rank - 2), rank - 1, rank - 2])
        if rank > 1
        else call.first
    )


@aten("permute")
def _permute(low: Lowering, call: Call) -> Value:
    return low.p.transpose(call.first, call["dims"])


@aten("movedim")
def _movedim(low: Lowering, call: Call) -> Value:
    x = call.first
    source, target = (
        [a % x.rank for a in (arg if isinstance(arg, list) else [arg])]
        for arg in call.arguments[1:3]
    )
    order = [axis for axis in range(x.rank) if axis not in source]
    for to, axis in sorted(zip(target, source, strict=True)):
        order.insert(to, axis)
    return low.p.transpose(x, order)


@aten("expand", "expand_as", "broadcast_to")
def _expand(low: Lowering, call: Call) -> Value:
    return low.p.expand(call.first, call.shape)


@aten("repeat", "tile")
def _repeat(low: Lowering, call: Call) -> Value:
    times = call.arguments[1]
    shape = (*[1] * (len(times) - call.first.rank), *call.first.shape)
    apart = [size for pair in zip([1] * len(times), shape, strict=True) for size in pair]
    wide = [size for pair in zip(times, shape, strict=True) for size in pair]
    spread = low.p.expand(low.p.reshape(call.first, apart), wide)
    return low.p.reshape(spread, call.shape)


@aten("repeat_interleave")
def _repeat_interleave(low: Lowering, call: Call) -> Value:
    x, times, axis = call.first, call["repeats"], call.get("dim", 0) % call.first.rank
    apart = (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :])
    wide = (*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
    return low.p.reshape(low.p.expand(low.p.reshape(x, apart), wide), call.shape)


@aten("slice", "narrow")
def _slice(low: Lowering, call: Call) -> Value:
    x: Value = call.first
    axis = call.get("dim", 0) % x.rank
    length = call.shape[axis]
    start, step = call.get("start", 0), call.get("step", 1)
    if length == x.shape[axis]:
        return x
    if isinstance(start, int) and start < 0:
        start += x.shape[axis]
    return low.p.slice(x, axis, start, start + length * step, step)


@aten("select")
def _select(low: Lowering, call: Call) -> Value:
    x, axis, index = call.first, call["dim"] % call.first.rank, call["index"]
    if isinstance(index, int) and index < 0:
        index += x.shape[axis]
    return low.p.reshape(low.p.slice(x, axis, index, index + 1), call.shape)


@aten("split", "chunk", "split_with_sizes", "unbind", "tensor_split")
def _split(low: Lowering, call: Call) -> list[Value]:
    x, axis, start, parts = call.first, call.get("dim", 0) % call.first.rank, 0, []
    for meta in call.meta:
        shape = shape_of(meta)
        length = shape[axis] if len(shape) == x.rank else 1
        part = low.p.slice(x, axis, start, start + length)
        parts.append(part if len(shape) == x.rank else low.p.reshape(part, shape))
        start += length
    return parts


@aten("cat", "concat", "concatenate")
def _concat(low: Lowering, call: Call) -> Value:
    parts = [part for part in call["tensors"] if 0 not in part.shape]
    return low.p.concat(parts, call.get("dim", 0)) if len(parts) > 1 else parts[0]


@aten("stack")
def _stack(low: Lowering, call: Call) -> Value:
    axis = call.get("dim", 0) % len(call.shape)
    shape = (*call.shape[:axis], 1, *call.shape[axis + 1 :])
    return low.p.concat([low.p.reshape(part, shape) for part in call["tensors"]], axis)


@aten("pad", "constant_pad_nd")
def _pad(low: Lowering, call: Call) -> Value:
    x: Value = call.first
    pads = call["pad"]
    for index in range(len(pads) // 2):
        axis = x.rank - 1 - index
        ends = [
            low.p.constant(0, (*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype)
            if size != 0
            else None
            for size in pads[2 * index : 2 * index + 2]
        ]
        parts = [part for part in (ends[0], x, ends[1]) if part is not None]
        if len(parts) > 1:
            x = low.p.concat(parts, axis)
    return x


@aten("view_as_complex", "view_as_real")
def _pairs(low: Lowering, call: Call) -> Value:
    return low.p.add("pairs", [call.first], [call.shape], call.dtype)


@aten("linear")
def _linear(low: Lowering, call: Call) -> Value:
    x, weight = call.arguments[:2]
    letters = _letters(x.rank - 1)
    result = low.p.einsum(f"{letters}y,zy->{letters}z", x, weight)
    bias = call.get("bias")
    return low.p.elementwise("add", result, bias) if bias else result


@aten("matmul", "mm", "bmm")
def _matmul(low: Lowering, call: Call) -> Value:
    a, b = call.arguments[:2]
    rank = max(a.rank, b.rank, 2) - 2
    letters = _letters(rank)
    first = letters[rank - max(a.rank - 2, 0) :] + ("xy" if a.rank > 1 else "y")
    second = letters[rank - max(b.rank - 2, 0) :] + ("yz" if b.rank > 1 else "y")
    result = letters + "x" * (a.rank > 1) + "z" * (b.rank > 1)
    return low.p.einsum(f"{first},{second}->{result}", a, b)


@aten("addmm", "baddbmm")
def _addmm(low: Lowering, call: Call) -> Value:
    bias, a, b = call.arguments[:3]
    batch = "b" * (a.rank - 2)
    product = low.p.einsum(f"{batch}xy,{batch}yz->{batch}xz", a, b)
    return low.p.elementwise("add", product, bias)


@aten("einsum")
def _einsum(low: Lowering, call: Call) -> Value:
    equation, values = call.arguments[0].replace(" ", ""), call.arguments[1]
    terms, _, result = equation.partition("->")
    if "..." in equation:
        free = "".join(letter for letter in _LETTERS if letter not in equation)
        rank = max(v.rank - len(t) + 3 for t, v in zip(terms.split(","), values, strict=True))
        equation = equation.replace("...", free[:rank])
    elif "->" not in equation:
        once = sorted(letter for letter in terms if terms.count(letter) == 1 and letter != ",")
        equation = f"{terms}->{''.join(once)}"
    del result
    return low.p.einsum(equation, *values)


@aten("softmax", "_softmax", "log_softmax", "special_softmax")
def _softmax(low: Lowering, call: Call) -> Value:
    return low.p.softmax(call.first, call["dim"])


@aten("layer_norm", "native_layer_norm")
def _layer_norm(low: Lowering, call: Call) -> Value:
    axes = len(call["normalized_shape"])
    return low.p.norm("layer", call.first, call.get("weight"), call.get("bias"), axes=axes)


@aten("rms_norm", "_fused_rms_norm")
def _rms_norm(low: Lowering, call: Call) -> Value:
    return low.p.norm("rms", call.first, call.get("weight"), axes=len(call["normalized_shape"]))


@aten("group_norm")
def _group_norm(low: Lowering, call: Call) -> Value:
    weight, bias = call.get("weight"), call.get("bias")
    return low.p.norm("group", call.first, weight, bias, groups=call["num_groups"])


@aten("embedding")
def _embedding(low: Lowering, call: Call) -> Value:
    return low.p.gather(call["weight"], call["indices"])


@aten("index")
def _index(low: Lowering, call: Call) -> Value:
    x, indices = call.first, call["indices"]
    given = [axis for axis, index in enumerate(indices) if index is not None]
    if len(given) == 1:
        return low.p.gather(x, indices[given[0]], given[0])
    return low.p.add("gather", [x, *(indices[axis] for axis in given)], [call.shape], axis=None)


@aten("index_select")
def _index_select(low: Lowering, call: Call) -> Value:
    return low.p.gather(call.first, call["index"], call["dim"])


@aten("gather")
def _gather(low: Lowering, call: Call) -> Value:
    axis = call["dim"] % call.first.rank
    return low.p.add("gather", [call.first, call["index"]], [call.shape], axis=axis, along=True)


@aten("index_copy", "index_add", "scatter", "scatter_add", "index_put")
def _scatter(low: Lowering, call: Call) -> Value:
    if "indices" in call.options:
        return low.p.add("scatter", [call.first, call["values"]], [call.first.shape], axis=None)
    into: Value = call.first
    updates = call.get("source", call.get("src"))
    if not isinstance(updates, Value):
        return into
    return low.p.scatter(call.first, call["index"], updates, call["dim"])


@aten("slice_scatter", "select_scatter")
def _slice_scatter(low: Lowering, call: Call) -> Value:
    return low.p.scatter(call.first, None, call["src"], call.get("dim", 0))


@aten("topk")
def _topk(low: Lowering, call: Call) -> tuple[Value, Value]:
    return low.p.topk(call.first, call["k"], call.get("dim", -1))


@aten("sort")
def _sort(low: Lowering, call: Call) -> tuple[Value, Value]:
    shapes = [call.first.shape] * 2
    low.p.add("sort", [call.first], shapes, [call.first.dtype, "int64"], axis=call.get("dim", -1))
    one, other = low.p.nodes[-1].outputs
    return one, other


@aten("max", "min")
def _extreme(low: Lowering, call: Call) -> Any:
    name = name_of(call.node.target)
    if isinstance(call.options.get("other"), Value):
        return low.p.elementwise(name, *call.arguments[:2])
    if "dim" not in call.options:
        return low.p.reduce(name, call.first, range(call.first.rank))
    axes, keep = [call["dim"]], call.get("keepdim", False)
    return [low.p.reduce(fn, call.first, axes, keep) for fn in (name, "argmax")]


@aten(
    *[
        "sum",
        "mean",
        "amax",
        "amin",
        "any",
        "all",
        "argmax",
        "prod",
        "var",
        "logsumexp",
        "std",
        "norm",
    ]
)
def _reduce(low: Lowering, call: Call) -> Value:
    name = name_of(call.node.target)
    axes = call.get("dim", list(range(call.first.rank)))
    axes = axes if isinstance(axes, list) else [axes]
    axes = axes or list(range(call.first.rank))
    fn = {"amax": "max", "amin": "min"}.get(name, name)
    return low.p.reduce(fn, call.first, axes, call.get("keepdim", False))


@aten("cumsum", "cumprod")
def _cumulate(low: Lowering, call: Call) -> Value:
    return low.p.cumulate(name_of(call.node.target).removeprefix("cum"), call.first, call["dim"])


@aten("arange")
def _arange(low: Lowering, call: Call) -> Value:
    return low.p.add("iota", [], [call.shape], call.dtype)


@aten(
    *[
        "full",
        "ones",
        "zeros",
        "empty",
        "scalar_tensor",
        "full_like",
        "zeros_like",
        "ones_like",
        "empty_like",
    ],
    *["new_zeros", "new_ones", "new_full", "new_empty", "fill", "tensor", "linspace", "eye"],
)
def _filled(low: Lowering, call: Call) -> Value:
    value = call.get("fill_value", 1 if "ones" in name_of(call.node.target) else 0)
    return low.p.constant(None if isinstance(value, Value) else value, call.shape, call.dtype)


@aten("tril", "triu")
def _triangle(low: Lowering, call: Call) -> Value:
    """A comparison of rows and columns, so that a mask is seen to be causal."""
    rows, columns = (low.p.add("iota", [], [(size,)], "int64") for size in call.shape[-2:])
    rows = low.p.reshape(rows, (call.shape[-2], 1))
    if shift := call.get("diagonal", 0):
        rows = low.p.elementwise("add", rows, low.p.constant(shift, (), "int64"))
    fn = "le" if name_of(call.node.target) == "tril" else "ge"
    inside = low.p.elementwise(fn, columns, rows)
    return low.p.elementwise("where", inside, call.first, low.p.constant(0, (), call.dtype))


@aten("conv1d", "conv2d", "conv3d", "convolution")
def _conv(low: Lowering, call: Call) -> Value:
    x, weight = call.arguments[:2]
    options = {
        name: tuple(call.get(key, ()))
        for name, key in (("strides", "stride"), ("pads", "padding"), ("dilations", "dilation"))
    }
    return low.p.conv(x, weight, call.get("bias"), call.shape, call.get("groups", 1), **options)


@aten("scaled_dot_product_attention")
def _attention(low: Lowering, call: Call) -> Value:
    query, key, value = call.arguments[:3]
    lead = _letters(query.rank - 3) if query.rank != 4 else ""
    if lead or query.rank < 3:
        raise low.p.refuse(f"attention over queries of shape {query.shape}")
    mask, causal = call.get("attn_mask"), call.get("is_causal", False)
    return low.p.attention(query, key, value, mask, causal=causal)


@aten("wrap_with_set_grad_enabled", "wrap_with_autocast")
def _inlined(low: Lowering, call: Call) -> list[Value]:
    place = next(i for i, a in enumerate(call.arguments) if hasattr(a, "graph"))
    return low.inlined(call.arguments[place], call.arguments[place + 1 :])


_ONE = (
    "neg exp rsqrt sqrt tanh sigmoid silu gelu relu erf cos sin log abs reciprocal softplus square "
    "logical_not bitwise_not sign floor round exp2 log2 relu6 hardswish elu leaky_relu mish log1p "
    "expm1 isnan isinf nan_to_num hardsigmoid celu selu"
)


_TWO = (
    "add sub mul div pow maximum minimum rsub fmod remainder eq ne lt le gt ge atan2 floor_divide "
    "polar outer clamp"
)


_BINARY = {
    **{name: name for name in _TWO.split()},
    **{f"{kind}_{name}": name for kind in ("logical", "bitwise") for name in ("and", "or", "xor")},
    **{f"__{name}__": name for name in ("and", "or", "xor")},
    "clamp_min": "clamp",
    "clamp_max": "clamp",
    "less": "lt",
    "greater": "gt",
    "less_equal": "le",
    "greater_equal": "ge",
    "not_equal": "ne",
    "divide": "div",
    "multiply": "mul",
}


def _elementwise(fn: str, operands: int) -> Rule:
    def rule(low: Lowering, call: Call) -> Value:
        values = [low.value(argument, call) for argument in call.arguments[:operands]]
        return low.p.elementwise(fn, *values, dtype=call.dtype)

    return rule


ATEN |= {name: _elementwise(name, 1) for name in _ONE.split()}


ATEN |= {name: _elementwise(fn, 2) for name, fn in _BINARY.items()}


ATEN |= {"where": _elementwise("where", 3), "lerp": _elementwise("lerp", 3)}


@aten("masked_fill")
def _masked_fill(low: Lowering, call: Call) -> Value:
    x, mask, value = call.arguments[:3]
    return low.p.elementwise("where", mask, low.value(value, call), x, dtype=call.dtype)


_LETTERS = "abcdefghijklmnopqrstuvw"


def _letters(count: int) -> str:
    return _LETTERS[:count]
