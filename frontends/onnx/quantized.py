"""Weights of few bits in ONNX: each group of numbers with its scale, unpacked as it is read."""

from frontends.onnx.call import Call
from frontends.program import Shape, Value
from opgraph.tensor import Format, as_format


def grouped(
    call: Call,
    name: str,
    shape: Shape,
    stored: str | Format,
    scales: Value,
    zeros: Value | None,
) -> Value:
    """The weight *name* in the format of its numbers, scales and zero points.

    As many numbers share a scale as there are for each.
    """
    dtype = as_format(stored)
    count, scaled = _count(call, shape), _count(call, scales.shape)
    group = max(1, count // max(1, scaled))
    if group == 1 and count > 1:
        raise call.refuse(f"a scale for each number of {shape}")
    zero_bits = 0.0 if zeros is None else dtype.bits
    if dtype.bits > 8:
        raise call.refuse(f"weights of {dtype}: at most 8 bits are unpacked")
    label = f"int{dtype.bits:g}-g{group}" if dtype.name.startswith("int") else f"{dtype}-g{group}"
    packed = Format(
        dtype.bits,
        group,
        as_format(scales.dtype).bits,
        zero_bits,
        name=label,
        compute=dtype.compute or dtype.name,
    )
    return Value(name, shape, packed, "weight")


def _count(call: Call, shape: Shape) -> int:
    count = 1
    for size in shape:
        if not isinstance(size, int):
            raise call.refuse(f"a weight of open size {shape}")
        count *= size
    return count


def _unpacked(call: Call, index: int, shape: Shape, bits: int, scales: int, zeros: int) -> Value:
    """Input *index*, bytes in which numbers of *bits* lie, as a weight of *shape*."""
    if bits not in (2, 3, 4, 8):
        raise call.refuse(f"weights of {bits} bits")
    packed = call[index]
    stored, needed = _count(call, packed.shape), _count(call, shape) * bits / 8
    if stored < needed:
        raise call.refuse(f"{stored} bytes of weights for {shape} of {bits} bits")
    stored_as = Format(bits, name=f"int{bits}", compute=f"int{bits if bits > 2 else 4}")
    return grouped(call, packed.name, shape, stored_as, call[scales], call.get(zeros))


def matmul(call: Call) -> Value:
    """MatMulNBits: a product with N × K numbers of few bits, in blocks along K."""
    wide, deep = call.needs("N"), call.needs("K")
    call.same(call[0].shape[-1], deep, "K and the last axis of its input")
    weight = _unpacked(call, 1, (wide, deep), call.attribute("bits", 4), 2, 3)
    result = call.matmul(call[0], weight, (False, True))
    bias = call.get(5)
    return result if bias is None else call.elementwise("add", result, bias)


def gather(call: Call) -> Value:
    """GatherBlockQuantized: rows of a table of few bits."""
    table = call[0]
    bits = call.attribute("bits", 4)
    shape = table.shape
    if table.dtype == "int8" and bits < 8:
        shape = (*shape[:-1], shape[-1] * 8 // bits)
    weight = _unpacked(call, 0, shape, bits, 2, 3) if table.dtype == "int8" else table
    rows = call.program.gather(weight, call[1], call.attribute("gather_axis", 0))
    return call.program.cast(rows, call[2].dtype)


def experts(call: Call) -> Value:
    """MoE and QMoE: every token to *k* experts, their weights whole or of few bits.

    The weights are ``experts columns model`` and ``experts model ffn``, or, in files of before
    ONNX Runtime 1.23, with the last two axes the other way round.
    """
    x, routes = call[0], call[1]
    up, down, gate = _matrices(call)
    up_bias, down_bias, gate_bias = (call.get(i) for i in _BIASES[call.op])
    model, k = x.shape[-1], call.attribute("k", 1)
    call.same(up.shape[0], routes.shape[-1], "experts with weights and with routes")
    transposed = up.shape[1] == model and up.shape[2] != model
    columns, ffn = (up.shape[2], down.shape[1]) if transposed else (up.shape[1], down.shape[2])
    call.same(up.shape[1] if transposed else up.shape[2], model, "the width of its input")
    if columns not in (ffn, 2 * ffn):
        raise call.refuse(f"{columns} columns before {ffn} rows of an expert")
    if k > routes.shape[-1]:
        raise call.refuse(f"{k} of {routes.shape[-1]} experts")
    return call.program.experts(
        x,
        routes,
        [up, down, up_bias, down_bias, gate, gate_bias],
        k=k,
        gated=gate is not None or columns == 2 * ffn,
        transposed=transposed,
    )


# where the biases of the first, second and gate's matrix stand
_BIASES = {"MoE": (3, 5, 7), "QMoE": (4, 7, 10)}


def _matrices(call: Call) -> tuple[Value, Value, Value | None]:
    if call.op == "MoE":
        return call[2], call[4], call.get(6)
    bits = call.attribute("expert_weight_bits", 4)
    made: list[Value | None] = []
    for index, zeros in ((2, 11), (5, 12), (8, 13)):
        packed = call.get(index)
        if packed is None:
            made.append(None)
            continue
        shape = (*packed.shape[:-1], packed.shape[-1] * 8 // bits)
        made.append(_unpacked(call, index, shape, bits, index + 1, zeros))
    up, down, gate = made
    if up is None or down is None:
        raise call.refuse("the weights of its experts are missing")
    return up, down, gate
