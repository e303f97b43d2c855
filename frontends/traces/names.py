"""What measured operators are: the kind that a name stands for, the FLOP that shapes stand for."""

import math
import re
from collections.abc import Sequence
from typing import Any

# kind → operators of ATen and of ONNX (Runtime), without their name spaces
_KINDS = {
    "gemm": "linear mm addmm matmul bmm baddbmm mv addmv _scaled_mm _int_mm mkldnn_linear "
    "_weight_int4pack_mm _weight_int8pack_mm einsum "
    "MatMul Gemm FusedMatMul MatMulNBits MatMulInteger QLinearMatMul DynamicQuantizeMatMul",
    "moe": "_grouped_mm grouped_mm _scaled_grouped_mm MoE QMoE",
    "attention": "scaled_dot_product_attention _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_flash_attention_for_cpu _flash_attention_forward flex_attention "
    "Attention MultiHeadAttention GroupQueryAttention PagedAttention "
    "DecoderMaskedMultiHeadAttention",
    "norm": "rms_norm layer_norm native_layer_norm _fused_rms_norm LayerNormalization "
    "RMSNormalization SimplifiedLayerNormalization SkipLayerNormalization "
    "SkipSimplifiedLayerNormalization EmbedLayerNormalization",
    "activation": "silu silu_ gelu relu sigmoid tanh Gelu FastGelu BiasGelu QuickGelu Sigmoid "
    "Swish",
    "rotary": "RotaryEmbedding",
    "lookup": "embedding index_select Gather EmbedLayerNormalization",
    "sample": "multinomial argmax topk sort TopK ArgMax",
    "quantize": "quantize_per_tensor _scaled_quantize DynamicQuantizeLinear QuantizeLinear",
    "all_reduce": "allreduce_ all_reduce",
    "all_gather": "allgather_ _allgather_base_ all_gather_into_tensor",
    "reduce_scatter": "_reduce_scatter_base_ reduce_scatter_tensor",
    "all_to_all": "alltoall_ alltoall_base_ all_to_all_single",
    "copy": "copy_ clone to _to_copy contiguous cat index_copy_ Cast Concat Memcpy",
}
KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names.split()}
_VIEWS = (
    "view reshape transpose permute t unsqueeze squeeze expand slice narrow select split chunk "
    "as_strided alias detach flatten unflatten _unsafe_view empty empty_like empty_strided "
    "Reshape Transpose Unsqueeze Squeeze Shape Slice Split Identity"
)
VIEWS = frozenset(_VIEWS.split())
OTHER = "elementwise"
COLLECTIVES = frozenset({"all_reduce", "all_gather", "reduce_scatter", "all_to_all"})

# what a GPU's kernel is, where no operator is known: the first word that its name has
_KERNELS = {
    "attention": r"flash|fmha|attention|attn",
    "moe": r"moe|grouped",
    "gemm": r"gemm|gemv|cutlass|cublas|nvjet|xmma|wgmma|splitkreduce|matmul",
    "all_reduce": r"all_?reduce",
    "all_gather": r"all_?gather",
    "reduce_scatter": r"reduce_?scatter",
    "all_to_all": r"all_?to_?all|sendrecv",
    "norm": r"norm",
    "rotary": r"rotary|rope",
    "activation": r"silu|gelu|swiglu|act_and_mul",
    "quantize": r"quant",
    "copy": r"memcpy|memset|copy|\bcat",
}
_KERNEL_OF = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in _KERNELS.items()}

Shape = tuple[int, ...]


def plain(name: str) -> str:
    """An operator's name without its name space and its overload."""
    return name.rpartition("::")[2].partition(".")[0]


def kind_of(name: str) -> str:
    """The kind of an operator by its plain name: ``view`` where no data moves."""
    return "view" if name in VIEWS else KIND_OF.get(name, OTHER)


def kind_of_kernel(name: str) -> str:
    """The kind of a GPU kernel by its own name."""
    return next((kind for kind, word in _KERNEL_OF.items() if word.search(name)), OTHER)


def product_flop(name: str, shapes: Sequence[Shape]) -> float:
    """FLOP of a matrix product from the shapes of its operands; 0 where they do not tell.

    >>> product_flop("linear", [(2, 3, 4), (5, 4)])
    240.0
    """
    operands = [shape for shape in shapes if len(shape) > 1][:2]
    if len(operands) < 2:
        return 0.0
    first, second = operands
    transposed = name in ("linear", "mkldnn_linear")
    inner, columns = (second[-1], second[-2]) if transposed else (second[-2], second[-1])
    if first[-1] != inner:
        return 0.0
    rows = max(math.prod(first[:-2]), math.prod(second[:-2])) * first[-2]
    return 2.0 * rows * inner * columns


def shapes_in(value: Any) -> list[Shape]:
    """The shapes among what a trace says of an operator's inputs; what is none is left out."""
    listed = value if isinstance(value, list) else []
    return [
        tuple(shape)
        for shape in listed
        if isinstance(shape, list) and shape and all(_is_size(side) for side in shape)
    ]


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
