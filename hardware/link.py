"""Links: what joins chips to each other, and how they are wired."""

import functools
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from hardware.arithmetic import in_double
from hardware.errors import SpecError, shown
from hardware.specs import BytesPerSecond, Count, Flag, JoulesPerByte, Seconds, Share, Text, one_of
from hardware.topology import TOPOLOGIES
from hardware.units import Number

STRICT = {"extra": "forbid"}  # pydantic: a key that is no field is an error


def check_positive(owner: str, **values: Number | None) -> None:
    """Raise SpecError unless every value, or every element of it, is finite and above 0."""
    for name, value in values.items():
        if value is not None and not (_least(value) > 0):
            raise SpecError(f"{name} of {owner} must be finite and positive, not {shown(value)}")


def check_not_negative(owner: str, **values: Number | None) -> None:
    """Raise SpecError unless every value, or every element of it, is finite and 0 or more."""
    for name, value in values.items():
        if value is not None and not (_least(value) >= 0):
            raise SpecError(f"{name} of {owner} must be 0 or more, not {shown(value)}")


def widen(spec: object) -> None:
    """Turn the arrays and NumPy numbers among the fields of *spec* into double precision.

    What is computed with them takes their type: a peak in float32 would round every time.
    """
    for name, value in vars(spec).items():
        object.__setattr__(spec, name, in_double(value))


def _least(value: Any) -> float:
    """Return the least element, NaN if one is not a finite number."""
    try:
        numbers = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        return np.nan
    return float(numbers.min()) if numbers.size and np.isfinite(numbers).all() else np.nan


@dataclass(frozen=True)
class Protocol:
    """How a library sends messages over a link, which sets a floor to small ones.

    start: seconds before the first step. step: seconds of each, in place of the latency of
    the link. efficiency: the part of the bandwidth that is left to the data.
    """

    name: Text
    start: Seconds
    step: Seconds
    efficiency: Share

    __pydantic_config__: ClassVar = STRICT

    def __post_init__(self) -> None:
        check_not_negative(f"protocol {self.name}", start=self.start, step=self.step)
        check_positive(f"protocol {self.name}", efficiency=self.efficiency)
        if not np.all(np.less_equal(self.efficiency, 1)):
            raise SpecError(
                f"efficiency of protocol {self.name} is at most 1, not {shown(self.efficiency)}"
            )
        widen(self)


@dataclass(frozen=True)
class Link:
    """What one chip can send, in each direction, over all its links of one kind.

    bandwidth: bytes per second per direction per chip. latency: seconds from the first
    byte sent to the first byte received, small messages; it is on no datasheet, so
    latency_source says where it is from. hop_latency: what each further switch or chip that
    a message passes adds; None where chips store and forward, at a latency each.
    protocols: what a library makes of the link; the fastest is taken, and without any the
    link is ideal. energy, hop_energy: joules per byte of the two ends and what is between
    them, and of each further switch; None where unknown. through_host: whether chips reach
    each other through the bridges and memory of a host, which all share, as over PCIe.
    """

    bandwidth: BytesPerSecond
    latency: Seconds
    latency_source: str = ""
    hop_latency: Seconds | None = None
    protocols: tuple[Protocol, ...] = ()
    energy: JoulesPerByte | None = None
    hop_energy: JoulesPerByte | None = None
    through_host: Flag = False

    __pydantic_config__: ClassVar = STRICT

    def __post_init__(self) -> None:
        check_positive("a link", bandwidth=self.bandwidth, energy=self.energy)
        check_not_negative(
            "a link",
            latency=self.latency,
            hop_latency=self.hop_latency,
            hop_energy=self.hop_energy,
        )
        widen(self)

    @functools.cached_property
    def spoken(self) -> tuple[tuple[str, Number, Number, Number], ...]:
        """What follows an algorithm's name, start, step and efficiency of each protocol.

        An ideal link has one, without a name.
        """
        if not self.protocols:
            return (("", 0.0, self.latency, 1.0),)
        return tuple((f"/{p.name}", p.start, p.step, p.efficiency) for p in self.protocols)

    @property
    def passing(self) -> Number:
        """What each further switch or chip that a message passes adds to its latency."""
        return self.latency if self.hop_latency is None else self.hop_latency


@dataclass(frozen=True)
class Fabric:
    """How the scale-up links of a chip are wired in the machines sold with it.

    dimensions: of a mesh or torus. wraps_at: a side that is a multiple of this closes
    to a ring; other sides are open lines. in_switch_reduction: the switches add up what
    they forward.
    """

    topology: Annotated[str, one_of(tuple(TOPOLOGIES))] = "switch"
    dimensions: Count = 1
    wraps_at: Count = 1
    in_switch_reduction: Flag = False

    __pydantic_config__: ClassVar = STRICT
