"""The operators of the ONNX standard, one rule each, written in the primitives of a program.

Meanings: https://onnx.ai/onnx/operators. Where operator sets differ (axes as attribute or input),
a rule reads both. Here are those of arithmetic; the others stand in `views` and `kernels`.
"""

from collections.abc import Mapping

from frontends.onnx.call import Call, Result, Rule
from frontends.onnx.kernels import KERNELS
from frontends.onnx.views import KEPT, VIEWS
from frontends.program import Shape, Size, Value


def opaque(call: Call, flop: Size = 0) -> Result:
    """What has no meaning here but the bytes it moves (and *flop*): its shapes are onnx's."""
    shapes: list[Shape] = []
    for shape in call.inferred:
        if shape is None or None in shape:
            raise call.refuse(
                "the shape of its result depends on data or is not known",
                "fix the open sizes of the file with dims={...}",
            )
        shapes.append(shape)
    if not shapes:
        raise call.refuse("nothing is known of its result")
    call.program.add("opaque", call.inputs, shapes, call[0].dtype, kind=call.op, flop=flop)
    return call.program.nodes[-1].outputs


ELEMENTWISE: Mapping[str, str] = {
    **{
        name: name.lower()
        for name in [
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Pow",
            "Neg",
            "Abs",
            "Exp",
            "Log",
            "Sqrt",
            "Erf",
            "Tanh",
        ]
    },
    **{
        name: name.lower()
        for name in ["Sigmoid", "Relu", "Softplus", "Sin", "Cos", "Floor", "Ceil", "Round"]
    },
    **{
        name: name.lower()
        for name in ["Sign", "Reciprocal", "Not", "And", "Or", "Xor", "Mish", "Elu", "Selu"]
    },
    **{
        name: name.lower()
        for name in ["Celu", "Softsign", "IsNaN", "IsInf", "HardSigmoid", "HardSwish"]
    },
    **{
        name: name.lower()
        for name in ["Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Gelu", "PRelu", "Swish"]
    },
    "LeakyRelu": "leaky_relu",
    "ThresholdedRelu": "relu",
    "Swish": "silu",
    "Mod": "remainder",
    "BitwiseAnd": "and",
    "BitwiseOr": "or",
    "BitwiseXor": "xor",
    "BitwiseNot": "not",
    "Equal": "eq",
    "Less": "lt",
    "LessOrEqual": "le",
    "Greater": "gt",
    "GreaterOrEqual": "ge",
    "Max": "maximum",
    "Min": "minimum",
    "Sum": "add",
    "Clip": "clamp",
    "Shrink": "relu",
}


def _elementwise(call: Call) -> Value:
    fn = ELEMENTWISE[call.op]
    values = [value for value in call.inputs if value is not None]
    if call.op == "Clip":
        return call.elementwise(fn, values[0])
    if call.op not in ("Max", "Min", "Sum"):
        dtype = "bool" if call.op in ("IsNaN", "IsInf") else None
        return call.elementwise(fn, *values, dtype=dtype)
    result = call[0]
    for value in values[1:]:
        result = call.elementwise(fn, result, value)
    return result


def _where(call: Call) -> Value:
    """A choice; one that only guards softmax against rows without any key is not computed."""
    condition, one, other = call[0], call[1], call[2]
    guarded = call.maker(other)
    isnan = call.maker(condition)
    if isnan is not None and isnan.attributes.get("fn") == "isnan" and other in isnan.inputs:
        return other
    if guarded is not None and guarded.op == "attention" and one.kind == "constant":
        return other
    return call.elementwise("where", condition, one, other)


def _mean(call: Call) -> Value:
    values = [value for value in call.inputs if value is not None]
    result = values[0]
    for value in values[1:]:
        result = call.elementwise("add", result, value)
    return call.elementwise("mul", result, call.scalar(1 / len(values), result))


def _matmul(call: Call) -> Value:
    return call.matmul(call[0], call[1])


def gemm(call: Call) -> Value:
    """A product of matrices and a bias, with their factors."""
    turned = (bool(call.attribute("transA", 0)), bool(call.attribute("transB", 0)))
    result = call.matmul(call[0], call[1], turned)
    if call.attribute("alpha", 1.0) != 1:
        result = call.elementwise("mul", result, call.scalar(call.attribute("alpha"), result))
    bias = call.get(2)
    if bias is None or call.attribute("beta", 1.0) == 0:
        return result
    if call.attribute("beta", 1.0) != 1:
        bias = call.elementwise("mul", bias, call.scalar(call.attribute("beta"), bias))
    return call.elementwise("add", result, bias)


def _integer_matmul(call: Call) -> Value:
    return call.matmul(call[0], call[1], dtype="int32")


def _quantized_matmul(call: Call) -> Value:
    """QLinearMatMul: a product of 8-bit numbers whose result is rounded to 8 bits again."""
    return call.program.cast(call.matmul(call[0], call[3], dtype="int32"), "int8")


def _einsum(call: Call) -> Value:
    equation = str(call.needs("equation")).replace(" ", "")
    values = [call[i] for i in range(len(call.inputs))]
    terms, arrow, result = equation.partition("->")
    parts = terms.split(",")
    if len(parts) != len(values):
        raise call.refuse(f"{equation!r} names {len(parts)} operands, but there are {len(values)}")
    if "." in equation:
        free = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
        extra = [
            v.rank - len(part.replace("...", "")) for v, part in zip(values, parts, strict=True)
        ]
        rank = max(n for n, part in zip(extra, parts, strict=True) if "..." in part)
        whole = "".join(free[:rank])
        parts = [
            part.replace("...", whole[rank - n :]) for part, n in zip(parts, extra, strict=True)
        ]
        result = result.replace("...", whole)
    if not arrow:
        letters = "".join(parts)
        result = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    return _pairwise(call, parts, values, result)


def _pairwise(call: Call, parts: list[str], values: list[Value], result: str) -> Value:
    """A product of several as products of two, from the left; of one as sum and transposition."""
    for part, value in zip(parts, values, strict=True):
        if len(part) != value.rank or len(set(part)) != len(part):
            raise call.refuse(f"{part!r} does not describe {value.shape}")
    while len(values) > 2:
        later = set("".join(parts[2:]) + result)
        kept = "".join(dict.fromkeys(c for c in parts[0] + parts[1] if c in later))
        product = call.einsum(f"{parts[0]},{parts[1]}->{kept}", *values[:2])
        parts, values = [kept, *parts[2:]], [product, *values[2:]]
    if not set(result) <= set("".join(parts)) or len(set(result)) != len(result):
        raise call.refuse(f"its result {result!r} does not follow from {','.join(parts)}")
    if len(values) == 2:
        return call.einsum(f"{parts[0]},{parts[1]}->{result}", *values)
    (part,), (x,) = parts, values
    summed = [i for i, letter in enumerate(part) if letter not in result]
    if summed:
        x = call.program.reduce("sum", x, summed)
    left = [letter for letter in part if letter in result]
    return call.program.transpose(x, [left.index(letter) for letter in result])


def _reduce(call: Call) -> Value:
    x, axes = call[0], call.axes(1)
    if axes is None or (not axes and not call.attribute("noop_with_empty_axes", 0)):
        axes = list(range(x.rank))
    if not axes:
        return x
    keep = bool(call.attribute("keepdims", 1))
    fn = call.op.removeprefix("Reduce")
    if fn in ("SumSquare", "L2"):
        x = call.elementwise("mul", x, x)
    if fn == "L1":
        x = call.elementwise("abs", x)
    if fn.startswith("LogSumExp"):
        x = call.elementwise("exp", x)
    plain = {"Mean": "mean", "Max": "max", "Min": "min", "Prod": "prod"}.get(fn, "sum")
    result = call.program.reduce(plain, x, axes, keep)
    after = {"L2": "sqrt", "LogSum": "log", "LogSumExp": "log"}.get(fn)
    return call.elementwise(after, result) if after else result


def _arg(call: Call) -> Value:
    return call.program.reduce(
        "argmax", call[0], [call.axis(0)], bool(call.attribute("keepdims", 1))
    )


def _cumulate(call: Call) -> Value:
    axis = int(call.known(1, "the axis").item())
    return call.program.cumulate("prod" if call.op == "CumProd" else "sum", call[0], axis)


def _softmax(call: Call) -> Value:
    """Until operator set 12, over all axes from *axis* on; exporters give the last one."""
    return call.program.softmax(call[0], call.axis(-1 if call.version >= 13 else 1))


RULES: Mapping[str, Rule] = {
    **VIEWS,
    **KERNELS,
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "Where": _where,
    "Mean": _mean,
    "MatMul": _matmul,
    "Gemm": gemm,
    "MatMulInteger": _integer_matmul,
    "QLinearMatMul": _quantized_matmul,
    "Einsum": _einsum,
    **{f"Reduce{fn}": _reduce for fn in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2")},
    **{f"Reduce{fn}": _reduce for fn in ("SumSquare", "LogSum", "LogSumExp")},
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("CumSum", "CumProd"), _cumulate),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
}
# of onnxruntime, but written without its domain
FOREIGN = frozenset({"SimplifiedLayerNormalization"})
# what leaves a weight as it is stored
VIEWED = KEPT | {"DequantizeLinear"}
