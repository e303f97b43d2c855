"""The operators of ONNX Runtime (``com.microsoft``), one rule each.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from collections.abc import Mapping
from typing import Literal

from frontends.onnx import attention, quantized
from frontends.onnx.call import Call, Rule
from frontends.onnx.kernels import norm_of
from frontends.onnx.standard import RULES, gemm
from frontends.program import Value


def _skip_norm(call: Call) -> list[Value | None]:
    """A norm of the sum with the residual; the sum comes out as well."""
    layer = call.op == "SkipLayerNormalization"
    bias = call.get(4 if layer else 3)
    total = call.elementwise("add", call[0], call[1])
    if bias is not None:
        total = call.elementwise("add", total, bias)
    kind: Literal["layer", "rms"] = "layer" if layer else "rms"
    normed = call.program.norm(kind, total, call[2], call.get(3) if layer else None)
    return [normed, None, None, total]


def _embedding(call: Call) -> list[Value | None]:
    """Words, places and segments looked up, summed and normalised."""
    tokens, segments = call[0], call.get(1)
    total = call.program.gather(call[2], tokens)
    counted = call.get(8) or call.program.add("iota", [], [(tokens.shape[1],)], "int64")
    total = call.elementwise("add", total, call.program.gather(call[3], counted))
    if segments is not None and call.get(4) is not None:
        total = call.elementwise("add", total, call.program.gather(call[4], segments))
    mask = call.get(7)
    index = None if mask is None else call.program.reduce("sum", mask, [1])
    return [call.program.norm("layer", total, call[5], call.get(6)), index, total]


def _biased(fn: str) -> Rule:
    """An activation, of the sum with a bias if there is one."""

    def rule(call: Call) -> Value:
        x = call[0] if call.get(1) is None else call.elementwise("add", call[0], call[1])
        return call.elementwise(fn, x)

    return rule


def _bias_split_gelu(call: Call) -> Value:
    total = call.elementwise("add", call[0], call[1])
    half = call.quotient(total.shape[-1], 2)
    value, gate = (call.program.slice(total, -1, i * half, (i + 1) * half) for i in range(2))
    return call.elementwise("mul", value, call.elementwise("gelu", gate))


def _fused_matmul(call: Call) -> Value:
    if call.attribute("transBatchA", 0) or call.attribute("transBatchB", 0):
        raise call.refuse("transBatchA and transBatchB have no meaning here")
    turned = (bool(call.attribute("transA", 0)), bool(call.attribute("transB", 0)))
    result = call.matmul(call[0], call[1], turned)
    alpha = call.attribute("alpha", 1.0)
    return result if alpha == 1 else call.elementwise("mul", result, call.scalar(alpha, result))


def _fused_gemm(call: Call) -> Value:
    fn = call.attribute("activation", "")
    made = gemm(call)
    return call.elementwise(fn.lower(), made) if fn else made


def _int8_matmul(call: Call) -> Value:
    """A product in 8 bits whose result is scaled back; the input is rounded first if need be."""
    dynamic = call.op == "DynamicQuantizeMatMul"
    x = call.program.cast(call[0], "int8") if dynamic else call[0]
    scale, bias = (call[2], call.get(4)) if dynamic else (call[2], call.get(6))
    made = call.matmul(x, call[1], dtype=scale.dtype)
    return made if bias is None else call.elementwise("add", made, bias)


CONTRIB_RULES: Mapping[str, Rule] = {
    "GroupQueryAttention": attention.grouped_query,
    "MultiHeadAttention": attention.multi_head,
    **dict.fromkeys(("Attention", "QAttention"), attention.whole),
    "RotaryEmbedding": attention.contrib_rotary,
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _skip_norm),
    "SimplifiedLayerNormalization": norm_of("rms"),
    "LayerNormalization": norm_of("layer"),
    "EmbedLayerNormalization": _embedding,
    **dict.fromkeys(("BiasGelu", "FastGelu", "Gelu"), _biased("gelu")),
    "QuickGelu": _biased("silu"),
    "BiasSplitGelu": _bias_split_gelu,
    "FusedMatMul": _fused_matmul,
    "FusedGemm": _fused_gemm,
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulIntegerToFloat"), _int8_matmul),
    "MatMulNBits": quantized.matmul,
    "GatherBlockQuantized": quantized.gather,
    **dict.fromkeys(("MoE", "QMoE"), quantized.experts),
    **{name: RULES[name] for name in ("QuantizeLinear", "DequantizeLinear", "Trilu")},
}
