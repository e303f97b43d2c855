"""Tiers: memory beyond a chip's own, which it copies from and to over a link."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hardware.arithmetic import smaller
from hardware.chip import Memory
from hardware.errors import SpecError
from hardware.link import STRICT, check_not_negative, check_positive, widen
from hardware.specs import (
    Bytes,
    BytesPerSecond,
    Count,
    JoulesPerByte,
    Name,
    Seconds,
    Text,
    as_text,
    find_spec,
    list_specs,
    read_spec,
)
from hardware.units import Number

_TIERS = Path(__file__).parent / "data" / "tiers"


@dataclass(frozen=True, kw_only=True)
class Tier:
    """Host DRAM, CXL or pooled memory that *shared_by* chips reach.

    capacity: bytes of the whole. bandwidth: bytes per second per direction that one chip
    gets on its own; total_bandwidth: that the whole gives to all that share it, None where
    the links of the chips are the limit. latency: seconds from a request to its first byte,
    on few datasheets, so latency_source says where it is from. energy: joules per byte
    moved, None where unknown. cache: memory in front, such as HBM before DDR5, from which
    what it holds comes at its own bandwidth for all chips.

    Raises SpecError if a number is not finite and positive, or a cache has no bandwidth.
    """

    name: Name
    source: Text
    capacity: Bytes
    bandwidth: BytesPerSecond
    latency: Seconds
    latency_source: Text
    shared_by: Count = 1
    total_bandwidth: BytesPerSecond | None = None
    energy: JoulesPerByte | None = None
    cache: Memory | None = None

    __pydantic_config__: ClassVar = STRICT

    def __post_init__(self) -> None:
        owner = f"tier {self.name}"
        check_positive(
            owner,
            capacity=self.capacity,
            bandwidth=self.bandwidth,
            shared_by=self.shared_by,
            total_bandwidth=self.total_bandwidth,
            energy=self.energy,
        )
        check_not_negative(owner, latency=self.latency)
        if self.cache is not None and self.cache.bandwidth is None:
            raise SpecError(f"'bandwidth' is missing in the cache of {owner}")
        widen(self)

    @property
    def capacity_per_chip(self) -> Number:
        """Bytes for each chip, if all that share the tier have as much."""
        return self.capacity / self.shared_by

    def rate(self, chips: Number | None = None, *, cached: bool = False) -> Number:
        """Return the bytes per second that each of so many chips gets at the same time.

        chips: all that share the tier if not given. cached: of what the cache in front
        holds. A chip never gets more than its own bandwidth. Arrays broadcast.
        """
        users = self.shared_by if chips is None else chips
        total = self.total_bandwidth
        if cached:
            if self.cache is None:
                raise SpecError(f"tier {self.name} has no cache in front")
            total = self.cache.bandwidth
        return self.bandwidth if total is None else smaller(self.bandwidth, total / users)


def load_tier(name: str | Path) -> Tier:
    """Return the tier of the catalogue called *name*, or the one in the file *name*.toml.

    Raises SpecError if there is no such tier or the file does not describe one.

    >>> load_tier("host-pcie5").bandwidth
    64000000000.0
    """
    name = as_text(name)
    if name.endswith(".toml"):
        return read_spec(find_spec(_TIERS, name), Tier)
    return _catalogue_tier(name)


@functools.lru_cache(maxsize=256)  # more than the catalogue holds
def _catalogue_tier(name: str) -> Tier:
    return read_spec(find_spec(_TIERS, name), Tier)


def list_tiers() -> list[str]:
    """Return the names of the tiers in the catalogue."""
    return list_specs(_TIERS)
