"""A kernel: what one operator class costs on one chip, with the parameters it is fitted by."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from opgraph.kernels.chip import KernelChip

LEVELS = ("ideal", "calibrated", "tiled", "corrected")
TINY = 1e-30  # seconds: keeps 0 / 0 out


class Limiter(IntEnum):
    """What a time is bound by."""

    COMPUTE = 0
    MEMORY = 1
    CACHE = 2
    LAUNCH = 3  # launch, drain and every other latency inside the chip
    NETWORK_BANDWIDTH = 4
    NETWORK_LATENCY = 5


class KernelTime(NamedTuple):
    """Seconds, and the `Limiter` code of each."""

    time: Any
    limiter: Any


class Work(NamedTuple):
    """What the operator needs whatever the kernel: FLOP, bytes, and the peak that does the FLOP.

    `bandwidth` is that of the memory unless the bytes go elsewhere (over a link).
    """

    flop: Any
    nbytes: Any
    peak: str = "bf16"
    bandwidth: Any = None


class Parameter(NamedTuple):
    """A fitted number: its unit, its physical bounds, where a fit starts, what it means.

    Where kernels of several kinds exist, fits try all `starts`, and what other chips have says
    nothing.
    """

    name: str
    unit: str
    lower: float
    upper: float
    start: float
    meaning: str
    starts: tuple[float, ...]


def parameter(
    unit: str,
    lower: float,
    start: float,
    upper: float,
    meaning: str,
    *,
    starts: tuple[float, ...] = (),
) -> Any:
    """Declare a fitted parameter as a dataclass field; its start is the default."""
    data = {"unit": unit, "lower": lower, "upper": upper, "meaning": meaning, "starts": starts}
    return field(default=start, metadata=data)


def declared(kind: type) -> tuple[Parameter, ...]:
    """Return the parameters that a dataclass declares, in order."""
    return tuple(
        Parameter(
            f.name,
            f.metadata["unit"],
            f.metadata["lower"],
            f.metadata["upper"],
            float(str(f.default)),
            f.metadata["meaning"],
            f.metadata["starts"],
        )
        for f in fields(kind)
    )


@dataclass(frozen=True)
class Kernel:
    """One operator class: its work, its physics, its parameters, and where the residual looks.

    `features` gives named logarithms of dimensionless numbers; `terms` are the groups of features
    whose joint, interpolated table corrects the physics. `sizes` are the fields of a shape that a
    model fixes, whatever its load. `levels` are those that lower the error
    on rows never fitted; asked for another, a kernel answers with the best below it. `over_links`
    says that it sends to other chips.
    """

    name: str
    parameters: type
    work: Callable[[Any], Work]
    tiled: Callable[[Any, KernelChip, Any], KernelTime]
    features: Callable[[Any, KernelChip], dict[str, Any]]
    terms: tuple[tuple[str, ...], ...]
    sizes: tuple[str, ...]
    levels: tuple[str, ...] = LEVELS
    over_links: bool = False

    def level(self, asked: str) -> str:
        """Return the level of fidelity that answers for the one asked for."""
        upto = LEVELS[: LEVELS.index(asked) + 1]
        return next(level for level in reversed(upto) if level in self.levels)


def soft_max(a: Any, b: Any, sharpness: Any, settle: float = np.inf) -> Any:
    """Return the p-norm of two times: what both cost when they overlap all but perfectly.

    They overlap better in a long kernel, whose pipeline stays full: p grows by √2 at `settle`
    seconds, and with the root of the length beyond.
    """
    larger = np.maximum(a, b)
    if settle < np.inf:
        sharpness = sharpness * np.sqrt(1 + larger / settle)
    ratio = np.minimum(a, b) / np.maximum(larger, TINY)
    return larger * (1 + ratio**sharpness) ** (1 / sharpness)


def soft_min(times: list[Any], sharpness: float) -> Any:
    """Return the smooth minimum of several times: what a library's switch between them reaches."""
    least = np.minimum.reduce(np.broadcast_arrays(*times))
    return least * sum((least / time) ** sharpness for time in times) ** (-1 / sharpness)


def resident(footprint: Any, capacity: Any, sharpness: float = 8.0) -> Any:
    """Return the part of a cyclically read footprint that still hits a cache of this capacity.

    LRU falls from all to nothing around the capacity; the exponent sets how fast.
    """
    return 1 / (1 + (footprint / capacity) ** sharpness)


def largest(*terms: tuple[Limiter, Any]) -> Any:
    """Return the limiter code of the largest of several times."""
    times = np.stack(np.broadcast_arrays(*(time for _, time in terms)))
    codes = np.array([code for code, _ in terms])
    return codes[np.argmax(times, axis=0)]
