"""Number formats of matrix products: bytes per element and the peak that multiplies them."""

from typing import NamedTuple


class Format(NamedTuple):
    """Bytes per element of activation and weight, scales included; the output is 16 bits wide."""

    activation: float
    weight: float
    peak: str
    quantises: bool  # the kernel sequence starts by quantising the 16-bit activation


BLOCK_SCALE = 1 + 4 / 128  # fp8 with one fp32 scale per 128 elements (DeepSeek-V3, sec. 3.3)
MICRO_SCALE = 0.5 + 1 / 16  # fp4 with one fp8 scale per 16 elements (NVFP4)
GROUP_SCALE = 0.5 + 2 / 128  # int4 with one 16-bit scale per 128 elements (AWQ, GPTQ)
OCP_SCALE = 0.5 + 1 / 32  # fp4 with one 8-bit scale per 32 elements (OCP MX 1.0)

FORMATS = {
    "bf16": Format(2, 2, "bf16", quantises=False),
    "fp8_static": Format(1, 1, "fp8", quantises=False),
    "fp8": Format(1, 1, "fp8", quantises=True),
    "fp8_block_static": Format(BLOCK_SCALE, BLOCK_SCALE, "fp8", quantises=False),
    "fp8_block": Format(BLOCK_SCALE, BLOCK_SCALE, "fp8", quantises=True),
    "nvfp4_static": Format(MICRO_SCALE, MICRO_SCALE, "fp4", quantises=False),
    "nvfp4": Format(MICRO_SCALE, MICRO_SCALE, "fp4", quantises=True),
    "w8a16": Format(2, 1, "bf16", quantises=False),
    "w4a16": Format(2, GROUP_SCALE, "bf16", quantises=False),
    "int8_static": Format(1, 1, "int8", quantises=False),
    "int8": Format(1, 1, "int8", quantises=True),
    "w4a16_mxfp4": Format(2, OCP_SCALE, "bf16", quantises=False),
    "w4a8_mxfp4_static": Format(1, OCP_SCALE, "fp8", quantises=False),
    "w4a8_mxfp4": Format(1, OCP_SCALE, "fp8", quantises=True),
}
"""By name; `_static` is the same product whose activation a graph quantises beforehand."""

OUTPUT_BYTES = 2.0
