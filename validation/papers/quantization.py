"""Rethinking Channel Dimensions to Isolate Outliers for Low-bit Weight Quantization of LLMs
(AdaDim; Heo et al., ICLR 2024, arXiv:2309.15531): storage formats and what they allow at batch 1.

Published are the group-wise formats (INT3 and INT4, groups of 64, 128 and 256, FP16 scales, zero
points of the weights' width); the bits per weight and the speed-up that a memory-bound product can
reach, 16 / bits, follow. Ours are the effective bits and the ratio of decode times of the matrix
products of OPT-175B on eight A100, priced with and without the format.
"""

from frontends import Precision, load_model
from hardware import load_platform
from opgraph import Plan, Report, Workload, simulate
from opgraph.tensor import as_format
from validation.papers import Row

_BITS = {
    "int4-g64": 4.3125, "int4-g128": 4.15625, "int4-g256": 4.078125,
    "int3-g64": 3.296875, "int3-g128": 3.1484375, "int3-g256": 3.07421875,
}  # fmt: skip
_SPEEDUPS = {"int3-g128": 5.08, "int4-g128": 3.85}
# a product at batch 1 also reads and writes its activations, a few thousandths of the weights
_ACTIVATIONS = 0.01


def rows() -> list[Row]:
    """Bits per weight of six formats, and two speed-up ceilings."""
    bits = [
        Row(f"bits per weight, {name}", published, as_format(name).effective_bits, 1e-12)
        for name, published in _BITS.items()
    ]
    plain = _matrix_time("bf16")
    return bits + [
        Row(f"speed-up at batch 1, {name}", published, plain / _matrix_time(name), _ACTIVATIONS)
        for name, published in _SPEEDUPS.items()
    ]


def _matrix_time(weights: str) -> float:
    """Seconds that one decode step of a sequence spends in the layers' products."""
    model = load_model("opt-175b", precision=Precision(weights=weights))
    report: Report = simulate(model, load_platform("dgx-a100"), Plan(tp=8), Workload(prompt=128))
    return float(
        sum(
            event.time * event.count
            for event in report.decode.events
            if event.kind == "gemm" and event.block == "layer"
        )
    )
