"""Technology: what memories, links, processes and interposers take in energy and money."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from hardware.errors import SpecError, nearest
from hardware.link import STRICT
from hardware.specs import (
    Conductivity,
    Dollars,
    DollarsPerByte,
    DollarsPerSquareMetre,
    Expansion,
    Factor,
    Hertz,
    JoulesPerByte,
    JoulesPerFlop,
    Metres,
    Part,
    Pascals,
    PerMetre,
    PerSquareMetre,
    Switches,
    Text,
    read_spec,
)
from hardware.units import Number

_FILE = Path(__file__).parent / "data" / "technology.toml"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Idle:
    """What a chip draws doing nothing: *share* of its thermal design power."""

    share: Part
    source: Text


@dataclass(frozen=True, kw_only=True)
class MemoryKind:
    """A kind of memory: J/B of the device, J/B from there to the cores, and $/B."""

    energy: JoulesPerByte
    transport: JoulesPerByte
    price: DollarsPerByte
    source: Text


@dataclass(frozen=True, kw_only=True)
class HopClass:
    """A class of links: J/B of each end and of each of the *switches* between."""

    ends: JoulesPerByte
    switch: JoulesPerByte
    switches: Switches
    source: Text

    @property
    def energy(self) -> Number:
        """Joules per byte sent: E = 2 ends + switches · switch (arXiv:2507.14000)."""
        return 2 * self.ends + self.switches * self.switch


@dataclass(frozen=True, kw_only=True)
class Process:
    """A logic process: $ per 300 mm wafer, defects per m² and how they cluster, J/FLOP of bf16."""

    wafer: Dollars
    defects: PerSquareMetre
    clustering: Factor
    flop: JoulesPerFlop
    source: Text


@dataclass(frozen=True, kw_only=True)
class Material:
    """A material: W/(m K), expansion per K, Young's modulus in Pa, Poisson's ratio."""

    conductivity: Conductivity
    expansion: Expansion
    modulus: Pascals
    poisson: Part
    source: Text

    __pydantic_config__: ClassVar = STRICT


@dataclass(frozen=True, kw_only=True)
class Interposer:
    """What carries chiplets: wires per m of edge at *rate* bit/s each, J/B, reach in m, $/m²."""

    material: Text
    wires: PerMetre
    rate: Hertz
    energy: JoulesPerByte
    reach: Metres
    price: DollarsPerSquareMetre
    source: Text

    __pydantic_config__: ClassVar = STRICT


@dataclass(frozen=True, kw_only=True)
class Technology:
    """Everything by name, as `data/technology.toml` has it."""

    idle: Idle
    memories: Mapping[str, MemoryKind]
    links: Mapping[str, HopClass]
    processes: Mapping[str, Process]
    interposers: Mapping[str, Interposer]
    materials: Mapping[str, Material]

    __pydantic_config__: ClassVar = STRICT


@functools.cache
def technology() -> Technology:
    """Return the technologies of the catalogue."""
    return read_spec(_FILE, Technology)


def named(kind: str, name: str, known: Mapping[str, T]) -> T:
    """Return the *kind* of technology called *name*; SpecError with the nearest if unknown.

    >>> named("process", "N5", technology().processes).wafer
    16988.0
    """
    if name not in known:
        raise SpecError(f"unknown {kind} {name!r}{nearest(name, known)}")
    return known[name]
