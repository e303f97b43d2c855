"""Kernel physics: what each operator class costs on a chip, at four levels of fidelity."""

from opgraph.kernels.attention import DECODE, PREFILL, AttentionShape
from opgraph.kernels.calibration import (
    TRANSFERS,
    Calibration,
    interval,
    kind_of,
    load_calibration,
    price,
)
from opgraph.kernels.chip import KernelChip, kernel_chip
from opgraph.kernels.collective import (
    COLLECTIVES,
    COMBINE,
    CUSTOM_ALL_REDUCE,
    DISPATCH,
    CollectiveShape,
    DispatchShape,
)
from opgraph.kernels.gemm import GEMM, GemmShape
from opgraph.kernels.interval import RELATIONS, Band
from opgraph.kernels.kernel import (
    LEVELS,
    Kernel,
    KernelTime,
    Limiter,
    Parameter,
    Work,
    declared,
)
from opgraph.kernels.linear_attention import LINEAR, LinearShape
from opgraph.kernels.memory_bound import STREAM, StreamShape
from opgraph.kernels.mla import MLA_DECODE, MLA_PREFILL, MlaShape
from opgraph.kernels.moe import MOE, MoeShape, Routing, route

KERNELS = {
    "gemm": GEMM,
    "attention_prefill": PREFILL,
    "attention_decode": DECODE,
    "mla_prefill": MLA_PREFILL,
    "mla_decode": MLA_DECODE,
    "moe": MOE,
    **COLLECTIVES,
    "custom_all_reduce": CUSTOM_ALL_REDUCE,
    "dispatch": DISPATCH,
    "combine": COMBINE,
    "quantise": STREAM,
    **LINEAR,
}

__all__ = [
    "COLLECTIVES",
    "COMBINE",
    "CUSTOM_ALL_REDUCE",
    "DECODE",
    "DISPATCH",
    "GEMM",
    "KERNELS",
    "LEVELS",
    "LINEAR",
    "MLA_DECODE",
    "MLA_PREFILL",
    "MOE",
    "PREFILL",
    "RELATIONS",
    "STREAM",
    "TRANSFERS",
    "AttentionShape",
    "Band",
    "Calibration",
    "CollectiveShape",
    "DispatchShape",
    "GemmShape",
    "Kernel",
    "KernelChip",
    "KernelTime",
    "Limiter",
    "LinearShape",
    "MlaShape",
    "MoeShape",
    "Parameter",
    "Routing",
    "StreamShape",
    "Work",
    "declared",
    "interval",
    "kernel_chip",
    "kind_of",
    "load_calibration",
    "price",
    "route",
]
