"""Operators of the ONNX standard that are kernels: norms, convolutions, pools, quantisation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from frontends.onnx import attention
from frontends.onnx.call import Call, Result, Rule, as_size
from frontends.onnx.quantized import grouped
from frontends.program import Shape, Size, Value


def norm_of(kind: Literal["rms", "layer"]) -> Rule:
    """A norm over the axes from *axis* on; a mean or a deviation that is asked for is not there."""

    def rule(call: Call) -> Value:
        axes = call[0].rank - call.axis(-1)
        return call.program.norm(kind, call[0], call.get(1), call.get(2), axes)

    return rule


def _group_norm(call: Call) -> Value:
    instance = call.op == "InstanceNormalization"
    groups = call[0].shape[1] if instance else call.needs("num_groups")
    return call.program.norm("group", call[0], call.get(1), call.get(2), groups=groups)


def _batch_norm(call: Call) -> Value:
    """With mean and deviation fixed, a factor and a term for each channel."""
    x = call[0]
    each = [call.program.reshape(call[i], (x.shape[1], *[1] * (x.rank - 2))) for i in (1, 2)]
    return call.elementwise("add", call.elementwise("mul", x, each[0]), each[1])


def _windows(call: Call, taps: Sequence[int], default: int = 1) -> tuple[Shape, dict[str, Any]]:
    """The places that windows of *taps* take on the axes after the second, and their attributes."""
    rank = len(taps)
    strides = call.attribute("strides") or [default] * rank
    dilations = call.attribute("dilations") or [1] * rank
    pads = call.attribute("pads") or [0] * (2 * rank)
    auto = call.attribute("auto_pad", "NOTSET")
    places: list[Size] = []
    for i, length in enumerate(call[0].shape[2:]):
        span = dilations[i] * (taps[i] - 1) + 1
        if auto.startswith("SAME"):
            places.append(-(-length // strides[i]))
            continue
        free = length + (pads[i] + pads[i + rank] if auto == "NOTSET" else 0) - span
        if call.attribute("ceil_mode", 0):
            free += strides[i] - 1
        places.append(as_size(free // strides[i] + 1))
    attributes = {"strides": tuple(strides), "pads": tuple(pads), "dilations": tuple(dilations)}
    return tuple(places), attributes


def _conv(call: Call) -> Value:
    x, weight = call[0], call[1]
    groups = call.attribute("group", 1)
    taps = weight.shape[2:]
    if x.rank < 3 or x.rank != weight.rank or not all(isinstance(n, int) for n in taps):
        raise call.refuse(f"a convolution of {x.shape} with {weight.shape}")
    call.same(x.shape[1], weight.shape[1] * groups, "the channels")
    places, attributes = _windows(call, taps)
    shape = (x.shape[0], weight.shape[0], *places)
    return call.program.conv(x, weight, call.get(2), shape, groups, **attributes)


def _transposed_conv(call: Call) -> Value:
    x, weight = call[0], call[1]
    groups, rank = call.attribute("group", 1), x.rank - 2
    strides = call.attribute("strides") or [1] * rank
    dilations = call.attribute("dilations") or [1] * rank
    pads = call.attribute("pads") or [0] * (2 * rank)
    more = call.attribute("output_padding") or [0] * rank
    call.same(x.shape[1], weight.shape[0], "the channels")
    places = [
        (n - 1) * strides[i] + dilations[i] * (taps - 1) + 1 + more[i] - pads[i] - pads[i + rank]
        for i, (n, taps) in enumerate(zip(x.shape[2:], weight.shape[2:], strict=True))
    ]
    shape = (x.shape[0], weight.shape[1] * groups, *places)
    attributes = {"strides": tuple(strides), "pads": tuple(pads), "dilations": tuple(dilations)}
    return call.program.conv(x, weight, call.get(2), shape, groups, transposed=True, **attributes)


def _pool(call: Call) -> Value:
    """A maximum or mean of each window."""
    taps = call.needs("kernel_shape")
    shape = (*call[0].shape[:2], *_windows(call, taps)[0])
    flop = math.prod(taps) * math.prod(shape)
    return call.program.add("opaque", [call[0]], [shape], kind=call.op, flop=flop)


def _global_pool(call: Call) -> Value:
    fn = "max" if call.op == "GlobalMaxPool" else "mean"
    return call.program.reduce(fn, call[0], range(2, call[0].rank), keep=True)


def _resize(call: Call) -> Value:
    index = 1 if call.op == "Upsample" or call.version < 11 else 2
    scales, sizes = call.content(index), call.content(3)
    x = call[0]
    axes = call.attribute("axes") or list(range(x.rank))
    shape = list(x.shape)
    if sizes is not None and sizes.size:
        for axis, size in zip(axes, sizes.ravel(), strict=True):
            shape[axis] = as_size(size)
    elif scales is not None and scales.size:
        for axis, scale in zip(axes, scales.ravel().tolist(), strict=True):
            shape[axis] = (
                shape[axis] * int(scale) if float(scale).is_integer() else int(shape[axis] * scale)
            )
    else:
        raise call.refuse("how far it resizes is only known at run time")
    return call.program.add("opaque", [x], [tuple(shape)], kind=call.op, flop=0)


# gates of one cell: each a product with the input and one with the state
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _recurrent(call: Call) -> Result:
    """A recurrence that is no part of a transformer: its products are counted, it is not split."""
    steps, batch, features = call[0].shape
    directions, rows, hidden = call[2].shape
    if call.attribute("layout", 0):
        steps, batch = batch, steps
    call.same(rows, _GATES[call.op] * hidden, "rows of its weights")
    flop = 2 * steps * batch * directions * rows * (features + hidden)
    shapes = [(steps, directions, batch, hidden), *[(directions, batch, hidden)] * (call.made - 1)]
    call.program.add("opaque", call.inputs, shapes, call[0].dtype, kind=call.op, flop=flop)
    return call.program.nodes[-1].outputs


def _quantize(call: Call) -> Value:
    zero = call.get(2)
    return call.program.cast(call[0], zero.dtype if zero is not None else "int8")


def _dynamic_quantize(call: Call) -> list[Value]:
    low = call.program.cast(call[0], "int8")
    scale = call.program.reduce("max", call[0], range(call[0].rank))
    return [low, scale, call.program.cast(scale, "int8")]


def _dequantize(call: Call) -> Value:
    """A weight keeps the format that it is stored in: kernels unpack it as they read it."""
    if call[0].kind != "weight":
        return call.program.cast(call[0], call[1].dtype)
    return grouped(call, call[0].name, call[0].shape, call[0].dtype, call[1], call.get(2))


KERNELS: Mapping[str, Rule] = {
    "LayerNormalization": norm_of("layer"),
    **dict.fromkeys(("RMSNormalization", "SimplifiedLayerNormalization"), norm_of("rms")),
    **dict.fromkeys(("GroupNormalization", "InstanceNormalization"), _group_norm),
    "BatchNormalization": _batch_norm,
    **dict.fromkeys(("Conv", "ConvInteger"), _conv),
    "ConvTranspose": _transposed_conv,
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(_GATES, _recurrent),
    "Attention": attention.standard,
    "RotaryEmbedding": attention.standard_rotary,
    "QuantizeLinear": _quantize,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "DequantizeLinear": _dequantize,
}
