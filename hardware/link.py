"""Links: what joins chips to each other, and how they are wired."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from hardware.errors import SpecError, shown
from hardware.specs import BytesPerSecond, Count, Flag, Seconds, one_of
from hardware.units import Number

TOPOLOGIES = ("switch", "ring", "full", "mesh", "torus")
"""switch: any to any at full rate; full: an equal link to every other member;
ring, mesh, torus: links to the two neighbours in each dimension (a mesh has ends)."""

STRICT = {"extra": "forbid"}  # pydantic: a key that is no field is an error


def check_positive(owner: str, **values: Number | None) -> None:
    """Raise SpecError unless every value, or every element of it, is finite and above 0."""
    for name, value in values.items():
        if value is not None and not (_least(value) > 0):
            raise SpecError(f"{name} of {owner} must be finite and positive, not {shown(value)}")


def widen(spec: object) -> None:
    """Turn the arrays and NumPy numbers among the fields of *spec* into double precision.

    What is computed with them takes their type: a peak in float32 would round every time.
    """
    for name, value in vars(spec).items():
        object.__setattr__(spec, name, in_double(value))


def in_double(value: Any) -> Any:
    """Return *value*; in double precision if it is an array of numbers or a NumPy number."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iuf":
        return value.astype(np.float64, copy=False) if np.ndim(value) else float(value)
    return value


def _least(value: Any) -> float:
    """Return the least element, NaN if one is not a finite number."""
    try:
        numbers = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        return np.nan
    return float(numbers.min()) if numbers.size and np.isfinite(numbers).all() else np.nan


@dataclass(frozen=True)
class Link:
    """What one chip can send, in each direction, over all its links of one kind.

    bandwidth: bytes per second per direction per chip. latency: seconds from the first
    byte sent to the first byte received, small messages; it is on no datasheet, so
    latency_source says where it is from.
    """

    bandwidth: BytesPerSecond
    latency: Seconds
    latency_source: str = ""

    __pydantic_config__: ClassVar = STRICT

    def __post_init__(self) -> None:
        check_positive("a link", bandwidth=self.bandwidth)
        if not (_least(self.latency) >= 0):
            raise SpecError(f"latency of a link must be 0 or more, not {shown(self.latency)}")
        widen(self)


@dataclass(frozen=True)
class Fabric:
    """How the scale-up links of a chip are wired in the machines sold with it.

    dimensions: of a mesh or torus. wraps_at: a side that is a multiple of this closes
    to a ring; other sides are open lines. in_switch_reduction: the switches add up what
    they forward.
    """

    topology: Annotated[str, one_of(TOPOLOGIES)] = "switch"
    dimensions: Count = 1
    wraps_at: Count = 1
    in_switch_reduction: Flag = False

    __pydantic_config__: ClassVar = STRICT
