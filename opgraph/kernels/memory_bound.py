"""Kernels that stream memory: norm, activation, rotary, quantise, embedding, residual.

A launch, then the larger of memory traffic and the rows that each core handles one after another.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from opgraph.kernels.chip import KernelChip
from opgraph.kernels.kernel import (
    Kernel,
    KernelTime,
    Limiter,
    Work,
    largest,
    parameter,
    resident,
    soft_max,
)

BYTES_16 = 2.0


class StreamShape(NamedTuple):
    """Rows of `columns` numbers; bytes read and written per number; FLOP per number."""

    rows: Any
    columns: Any
    read: Any = BYTES_16
    write: Any = BYTES_16
    flop: Any = 1.0


@dataclass(frozen=True)
class StreamParameters:
    """Parameters of `stream`."""

    launch: float = parameter("s", 1e-7, 1.5e-6, 5e-5, "launch and drain, paid once")
    memory_efficiency: float = parameter("1", 0.05, 0.8, 1.1, "reached part of memory bandwidth")
    cache_bandwidth: float = parameter("1", 0.3, 2, 50, "L2 bandwidth in memory bandwidths")
    cache_fraction: float = parameter("1", 0.05, 0.6, 2, "part of L2 that keeps the operands")
    row: float = parameter("s", 1e-10, 1e-8, 5e-6, "time that a core spends on a row besides")
    vector_efficiency: float = parameter("1", 1e-3, 0.2, 1, "reached part of the vector peak")
    least: float = parameter("s", 1e-9, 5e-7, 3e-5, "least time of reading and writing once")
    sharpness: float = parameter("1", 1, 3, 12, "exponent joining these")


def stream_work(shape: StreamShape) -> Work:
    """Return FLOP and bytes; the FLOP are of the vector units, hence not counted as matrix work."""
    count = shape.rows * shape.columns
    return Work(0.0, count * (shape.read + shape.write))


def stream(shape: StreamShape, chip: KernelChip, params: StreamParameters) -> KernelTime:
    """Return the time of one pass over the rows."""
    nbytes = stream_work(shape).nbytes
    hit = resident(nbytes, params.cache_fraction * chip.cache.capacity)
    each = (1 - hit) / params.memory_efficiency + hit / params.cache_bandwidth
    memory = nbytes / chip.memory_bandwidth * each
    flop = shape.rows * shape.columns * shape.flop
    compute = flop / (chip.vector * params.vector_efficiency)
    compute = compute + np.ceil(shape.rows / chip.cores) * params.row
    busy = soft_max(soft_max(memory, compute, params.sharpness), params.least, params.sharpness)
    limiter = largest((Limiter.MEMORY, memory * (1 - hit)), (Limiter.CACHE, memory * hit),
                      (Limiter.COMPUTE, compute), (Limiter.LAUNCH, params.launch))  # fmt: skip
    return KernelTime(params.launch + busy, limiter)


def quantise(rows: Any, columns: Any, out: Any = 1.0) -> StreamShape:
    """Return a cast of 16-bit numbers to `out` bytes."""
    return StreamShape(rows, columns, BYTES_16, out, 2.0)


def stream_features(shape: StreamShape, chip: KernelChip) -> dict[str, Any]:
    """Return where the residual looks."""
    return {
        "rows": np.log2(shape.rows),
        "columns": np.log2(shape.columns),
        "footprint": np.log2(stream_work(shape).nbytes / chip.cache.capacity),
    }


STREAM = Kernel(
    "quantise", StreamParameters, stream_work, stream, stream_features,
    terms=(("rows", "columns"), ("footprint",)), sizes=("columns", "read", "write", "flop"),
)  # fmt: skip
