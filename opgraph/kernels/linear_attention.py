"""Linear attention with a recurrent state: gated delta rule and its short convolution.

Chunked scan: chunks of one head run one after another because the state passes through them
(Dao & Gu 2024, "Mamba-2", sec. 6; Yang et al. 2024, "Gated Delta Networks", sec. 3.3). Decode
updates the state once per token and reads and writes all of it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from opgraph.kernels.chip import KernelChip
from opgraph.kernels.kernel import (
    LEVELS,
    Kernel,
    KernelTime,
    Limiter,
    Work,
    largest,
    parameter,
    resident,
    soft_max,
)

CHUNK = 64.0  # tokens per chunk (flash-linear-attention)
HEADS_PER_CORE = 4.0  # heads whose scans share a core
BYTES_16, STATE_BYTES = 2.0, 4.0
PASSES = 8.0  # FLOP per token and state entry: decay, delta, update, read out


class LinearShape(NamedTuple):
    """Sequences, new tokens of each, heads of keys and values, head sizes; `scan` 0: no state."""

    batch: Any
    seq: Any
    key_heads: Any
    value_heads: Any
    key_dim: Any
    value_dim: Any
    scan: Any = 1.0


@dataclass(frozen=True)
class LinearParameters:
    """Parameters of `linear_attention`."""

    launch: float = parameter("s", 2e-7, 4e-6, 8e-5, "launches and drain")
    token_traffic: float = parameter("1", 0.8, 1, 50, "bytes moved per byte of tokens")
    state_traffic: float = parameter("1", 0.8, 1, 50, "bytes moved per byte of states")
    chunk: float = parameter("s", 1e-10, 5e-7, 2e-5, "time of one chunk of one head's scan")
    cache_bandwidth: float = parameter("1", 0.5, 3, 20, "L2 bandwidth in memory bandwidths")
    cache_fraction: float = parameter("1", 0.05, 0.5, 2, "part of L2 that keeps the operands")
    compute_efficiency: float = parameter("1", 1e-3, 0.1, 1, "reached part of the matrix peak")
    sharpness: float = parameter("1", 1, 3, 12, "exponent joining these")


def linear_work(shape: LinearShape) -> Work:
    """Return FLOP and compulsory bytes: tokens in and out, states read and written."""
    tokens = shape.batch * shape.seq
    state = shape.value_heads * shape.key_dim * shape.value_dim * shape.scan
    wide = shape.key_heads * shape.key_dim + shape.value_heads * shape.value_dim
    states = 2 * STATE_BYTES * shape.batch * state
    return Work(PASSES * tokens * state, 2 * BYTES_16 * tokens * wide + states)


def linear_attention(shape: LinearShape, chip: KernelChip, params: LinearParameters) -> KernelTime:
    """Return the time of one layer's scan, update or convolution."""
    work = linear_work(shape)
    heads = shape.batch * shape.value_heads
    states = 2 * STATE_BYTES * heads * shape.key_dim * shape.value_dim * shape.scan
    moved = params.token_traffic * (work.nbytes - states) + params.state_traffic * states
    hit = resident(moved, params.cache_fraction * chip.cache.capacity, 6.0)
    memory = moved / chip.memory_bandwidth * (1 - hit + hit / params.cache_bandwidth)
    chain = np.ceil(shape.seq / CHUNK) * np.ceil(heads / (HEADS_PER_CORE * chip.cores))
    serial = params.chunk * chain
    compute = work.flop / (chip.rate("bf16") * params.compute_efficiency)
    busy = soft_max(soft_max(memory, serial, params.sharpness), compute, params.sharpness)
    limiter = largest((Limiter.MEMORY, memory), (Limiter.COMPUTE, compute),
                      (Limiter.LAUNCH, params.launch + serial))  # fmt: skip
    return KernelTime(params.launch + busy, limiter)


def linear_features(shape: LinearShape, chip: KernelChip) -> dict[str, Any]:
    """Return where the residual looks."""
    return {
        "batch": np.log2(shape.batch),
        "seq": np.log2(shape.seq),
        "value_heads": np.log2(shape.value_heads),
        "waves": np.log2(shape.batch * shape.value_heads / chip.cores),
        "footprint": np.log2(linear_work(shape).nbytes / chip.cache.capacity),
    }


LINEAR_OPS = ("gdn_chunk", "gdn_recurrent", "conv1d", "conv1d_update")
# one token of a short convolution is a launch and a stream: the physics of scans predicts it worse
UNTILED = {"conv1d_update": ("ideal", "calibrated")}
LINEAR = {
    op: Kernel(op, LinearParameters, linear_work, linear_attention, linear_features,
               terms=(("batch", "seq"), ("waves", "seq"), ("footprint", "value_heads")),
               sizes=("key_heads", "value_heads", "key_dim", "value_dim"),
               levels=UNTILED.get(op, LEVELS))
    for op in LINEAR_OPS
}  # fmt: skip
