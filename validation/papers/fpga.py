"""Pushing up to the Limit of Memory Bandwidth and Capacity Utilization for Efficient LLM Decoding
on Embedded FPGA (Li et al., DATE 2025, arXiv:2502.10659).

A decoder at batch 1 streams every linear layer and the head from DDR4 once per token; the embedding
stays in flash. Published are the streamed bytes and the rates that the memory allows at most.
"""

from frontends import Precision, load_model
from opgraph.operator import Einsum
from opgraph.sizes import Sizes
from opgraph.tensor import Format
from validation.papers import Row

# four AXI ports of 128 bit at 300 MHz: the KV260's DDR4-2400 at 64 bit
KV260_BANDWIDTH = 19.2e9
MIB = 2**20
# the paper prints three to four digits
_PRINTED = 0.002


def streamed_bytes(model: str, weights: Format) -> float:
    """Bytes of all matrices that one decode step reads, in the format *weights*."""
    precision = Precision(weights=weights, classes={"head": weights})
    loaded = load_model(model, precision=precision)
    sizes = Sizes(loaded.numbers, loaded.decode.derived)
    return float(
        sum(
            operator.inputs[1].nbytes(sizes) * count
            for operator, count in loaded.decode.operators
            if isinstance(operator, Einsum)
        )
    )


def rows() -> list[Row]:
    """Streamed MiB of two models and the token rates that bandwidth allows."""
    plain, scaled = Format(4), Format(4, group=128, scale_bits=16)
    llama2, llama3 = (streamed_bytes(name, scaled) for name in ("llama-2-7b", "llama-3-8b"))
    ideal = streamed_bytes("llama-2-7b", plain)
    return [
        Row("LLaMA2-7B streamed MiB, 4 bit + scales", 3248.95, llama2 / MIB, _PRINTED),
        Row("LLaMA3-8B streamed MiB, 4 bit + scales", 3690.3, llama3 / MIB, _PRINTED),
        Row("LLaMA2-7B token/s at most, 4 bit", 5.81, KV260_BANDWIDTH / ideal, _PRINTED),
        Row("LLaMA2-7B token/s at most, + scales", 5.64, KV260_BANDWIDTH / llama2, _PRINTED),
    ]
