"""The `calibrated` level: a roofline with four fitted numbers, the same for every kernel."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from opgraph.kernels.chip import KernelChip
from opgraph.kernels.kernel import KernelTime, Limiter, Work, largest, parameter, soft_max


@dataclass(frozen=True)
class SmoothRoofline:
    """Parameters of `smooth_roofline` (Williams et al. 2009, with a floor and a rounded knee)."""

    launch: float = parameter("s", 1e-8, 4e-6, 3e-4, "launch and drain, paid once")
    compute_efficiency: float = parameter("1", 0.005, 0.6, 1.2, "reached part of the matrix peak")
    memory_efficiency: float = parameter("1", 0.03, 0.8, 1.05, "reached part of memory bandwidth")
    sharpness: float = parameter("1", 1, 2, 30, "exponent of the knee; infinity is a plain max")


def smooth_roofline(work: Work, chip: KernelChip, params: SmoothRoofline) -> KernelTime:
    """Return launch + p-norm(flop / reached peak, bytes / reached bandwidth)."""
    compute = work.flop / (chip.matrix[work.peak] * params.compute_efficiency)
    memory = work.nbytes / (_bandwidth(work, chip) * params.memory_efficiency)
    limiter = largest(
        (Limiter.COMPUTE, compute), (_carrier(work), memory), (Limiter.LAUNCH, params.launch)
    )
    return KernelTime(params.launch + soft_max(compute, memory, params.sharpness), limiter)


def roofline(work: Work, chip: KernelChip) -> KernelTime:
    """Return the `ideal` level: max(flop / peak, bytes / bandwidth) of the datasheet."""
    compute, memory = work.flop / chip.matrix[work.peak], work.nbytes / _bandwidth(work, chip)
    limiter = largest((Limiter.COMPUTE, compute), (_carrier(work), memory))
    return KernelTime(np.maximum(compute, memory), limiter)


def _bandwidth(work: Work, chip: KernelChip) -> Any:
    """Return the bandwidth that carries the bytes."""
    return chip.memory_bandwidth if work.bandwidth is None else work.bandwidth


def _carrier(work: Work) -> Limiter:
    """Return what limits when the bytes do."""
    return Limiter.MEMORY if work.bandwidth is None else Limiter.NETWORK_BANDWIDTH
