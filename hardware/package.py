"""Packages: chiplets on an interposer, their links, their temperatures and how they bow."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from hardware.bending import Sheet, bow, curvature
from hardware.die import die_cost
from hardware.errors import SpecError
from hardware.link import STRICT, check_positive
from hardware.specs import (
    Celsius,
    HeatTransfer,
    Metres,
    Name,
    Offset,
    Text,
    Watts,
    as_text,
    read_spec,
)
from hardware.technology import Interposer, Material, named, technology
from hardware.thermal import Heat, heat_of

ROOM = 25.0  # °C at which a package is measured for flatness (JEDEC JESD22-B112)
ROUNDING = 1e-9  # m; what is nearer touches
BITS, WAYS = 8, 2  # in a byte; directions that a wire may run


@dataclass(frozen=True, kw_only=True)
class Chiplet:
    """A rectangle of silicon: its lower left corner and its size in m, what it draws in W.

    idle: the part of *power* that a slower clock does not save. limit: hottest allowed, °C.
    process: in which it is made, by name; None if it is bought, as stacks of memory are.
    """

    name: Name
    corner: tuple[Offset, Offset]
    size: tuple[Metres, Metres]
    power: Watts
    limit: Celsius
    idle: Watts | None = None
    process: Text | None = None

    __pydantic_config__: ClassVar = STRICT

    def __post_init__(self) -> None:
        width, height = self.size
        check_positive(f"chiplet {self.name}", width=width, height=height, power=self.power)
        if self.idle is not None and self.idle > self.power:
            raise SpecError(f"chiplet {self.name} draws {self.power:g} W, but {self.idle:g} idle")
        if self.process is not None:
            named("process", self.process, technology().processes)

    @property
    def sides(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Where it begins and ends along x and y, in m."""
        (x, y), (width, height) = self.corner, self.size
        return (float(x), float(x + width)), (float(y), float(y + height))


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A sheet that covers the package: a material of the catalogue, and m."""

    material: Text
    thickness: Metres

    __pydantic_config__: ClassVar = STRICT

    def __post_init__(self) -> None:
        named("material", self.material, technology().materials)

    @property
    def made_of(self) -> Material:
        """The material."""
        return named("material", self.material, technology().materials)


@dataclass(frozen=True, kw_only=True)
class Cooling:
    """W/(m² K) from the top to the surroundings, from the bottom into the board; °C there."""

    top: HeatTransfer
    board: HeatTransfer
    ambient: Celsius

    __pydantic_config__: ClassVar = STRICT


class DieLink(NamedTuple):
    """Two chiplets that face each other: m of edge, B/s in each direction, W at that rate."""

    chiplets: tuple[str, str]
    shoreline: float
    bandwidth: float
    power: float


@dataclass(frozen=True, kw_only=True)
class Package:
    """Chiplets, equally thick, on an interposer, with layers below and above.

    thickness: m of the interposer, die_thickness of the chiplets. below: from the board up,
    under the interposer; above: from the dies up. assembled: °C at which the joints set.

    Raises SpecError if chiplets overlap, stand over the edge or share a name, and for names
    of technologies that do not exist.
    """

    name: Name
    source: Text
    interposer: Text
    size: tuple[Metres, Metres]
    thickness: Metres
    die_thickness: Metres
    assembled: Celsius
    cooling: Cooling
    chiplets: tuple[Chiplet, ...]
    below: tuple[Layer, ...] = ()
    above: tuple[Layer, ...] = ()

    __pydantic_config__: ClassVar = STRICT

    def __post_init__(self) -> None:
        named("interposer", self.interposer, technology().interposers)
        check_positive(self.name, thickness=self.thickness, die_thickness=self.die_thickness)
        if not self.chiplets:
            raise SpecError(f"{self.name} needs [[chiplets]]")
        if not self.cooling.top + self.cooling.board > 0:
            raise SpecError(f"{self.name} is cooled neither at the top nor through the board")
        names = [chiplet.name for chiplet in self.chiplets]
        if len(set(names)) < len(names):
            raise SpecError(f"chiplets of {self.name} need different names: {', '.join(names)}")
        for i, chiplet in enumerate(self.chiplets):
            self._check_place(chiplet, self.chiplets[:i])

    def _check_place(self, chiplet: Chiplet, others: Sequence[Chiplet]) -> None:
        for (_, end), whole in zip(chiplet.sides, self.size, strict=True):
            if end > whole + ROUNDING:
                raise SpecError(f"chiplet {chiplet.name} stands over the edge of {self.name}")
        for other in others:
            sides = zip(chiplet.sides, other.sides, strict=True)
            if all(_overlap(a, b) > ROUNDING for a, b in sides):
                raise SpecError(f"chiplets {other.name} and {chiplet.name} overlap")

    @property
    def carrier(self) -> Interposer:
        """The interposer's technology."""
        return named("interposer", self.interposer, technology().interposers)

    @property
    def power(self) -> float:
        """Watts of all chiplets."""
        return float(sum(chiplet.power for chiplet in self.chiplets))

    @property
    def die_cost(self) -> float:
        """Dollars for the good dies of the chiplets whose process is said."""
        known = technology().processes
        areas = [(a.size[0] * a.size[1], a.process) for a in self.chiplets if a.process]
        return float(sum(die_cost(area, named("process", of, known)) for area, of in areas))

    @property
    def interposer_cost(self) -> float:
        """Dollars for the interposer: its area at its price, yield left out."""
        return float(self.size[0] * self.size[1] * self.carrier.price)

    @property
    def links(self) -> list[DieLink]:
        """The links between chiplets that face each other within reach.

        Bandwidth = shoreline · wires · rate, half of the wires in each direction.
        """
        return [
            self._link(one, other, edge)
            for i, one in enumerate(self.chiplets)
            for other in self.chiplets[i + 1 :]
            if (edge := self._facing(one, other)) > 0
        ]

    def _link(self, one: Chiplet, other: Chiplet, edge: float) -> DieLink:
        carrier = self.carrier
        both = edge * float(carrier.wires) * float(carrier.rate) / BITS
        return DieLink((one.name, other.name), edge, both / WAYS, both * float(carrier.energy))

    def _facing(self, one: Chiplet, other: Chiplet) -> float:
        """Metres of edge of two chiplets that face each other; 0 if too far or none."""
        for along, across in ((0, 1), (1, 0)):
            edge = _overlap(one.sides[along], other.sides[along])
            gap = -_overlap(one.sides[across], other.sides[across])
            near = -ROUNDING <= gap <= self.carrier.reach + ROUNDING
            if edge > ROUNDING and near and not self._between(one, other):
                return edge
        return 0.0

    def _between(self, one: Chiplet, other: Chiplet) -> bool:
        """Whether a third chiplet lies in the gap between two."""
        gap = [
            (max(a[0], b[0]), min(a[1], b[1])) for a, b in zip(one.sides, other.sides, strict=True)
        ]
        window = [(min(span), max(span)) for span in gap]
        return any(
            all(_overlap(a, b) > ROUNDING for a, b in zip(third.sides, window, strict=True))
            for third in self.chiplets
            if third is not one and third is not other
        )

    @property
    def bow(self) -> float:
        """Metres by which the middle stands off the corners at 25 °C; > 0 if it rises.

        The larger of two pairs after Timoshenko: the dies on the interposer, and both of
        them, as one sheet, on what lies below.
        """
        materials = technology().materials
        dies = Sheet.of(materials["silicon"], self.die_thickness)
        carrier = Sheet.of(named("material", self.carrier.material, materials), self.thickness)
        below = [Sheet.of(layer.made_of, layer.thickness) for layer in self.below]
        joints = [(carrier, dies)]
        if below:
            joints.append((sum(below[1:], below[0]), carrier + dies))
        change = ROOM - self.assembled
        diagonal = math.hypot(*map(float, self.size))
        bows = [float(bow(curvature(low, high, change), diagonal)) for low, high in joints]
        return max(bows, key=abs)

    @cached_property
    def heat(self) -> Heat:
        """Its temperatures; see `thermal.heat_of`."""
        return heat_of(self)

    def to_dict(self) -> dict[str, Any]:
        """Its figures, under the keys of ``opgraph package --json``."""
        heat, giga, milli, micro = self.heat, 1e9, 1e3, 1e6
        chiplets = [
            {
                "name": chiplet.name,
                "power_W": float(chiplet.power),
                "hottest_C": heat.hottest[chiplet.name],
                "limit_C": float(chiplet.limit),
            }
            for chiplet in self.chiplets
        ]
        links = [
            {
                "between": " – ".join(link.chiplets),
                "shoreline_mm": link.shoreline * milli,
                "bandwidth_GB_per_s": link.bandwidth / giga,
                "power_W": link.power,
            }
            for link in self.links
        ]
        return {
            "name": self.name,
            "interposer": self.interposer,
            "power_W": self.power,
            "slowdown": heat.slowdown,
            "bow_um": self.bow * micro,
            "die_cost_dollars": self.die_cost,
            "interposer_cost_dollars": self.interposer_cost,
            "chiplets": chiplets,
            "links": links,
        }


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Length that two spans share; negative, how far they are apart."""
    return min(one[1], other[1]) - max(one[0], other[0])


def load_package(path: str | Path, interposer: str | None = None) -> Package:
    """Return the package in a TOML file, on another *interposer* if one is named.

    Raises SpecError if the file describes none.
    """
    package = read_spec(Path(as_text(path)), Package)
    return package if interposer is None else dataclasses.replace(package, interposer=interposer)
