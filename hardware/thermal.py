"""Temperatures of a package, and how much slower its chips must run to stay below their limits."""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hardware.chip import Chip
from hardware.errors import SpecError
from hardware.heat import Array, Block
from hardware.technology import technology

if TYPE_CHECKING:
    from hardware.package import Package

SLICES = 2  # cells through each layer
CELLS = (48, 96)  # along the longer side of a package: at least, at most
ACROSS = 4  # cells that the smallest chiplet should have across it


class Heat(NamedTuple):
    """What a package's temperatures follow from.

    temperature: °C where the chiplets' transistors are, ny × nx. hottest: °C of each chiplet.
    slowdown: the largest part of the clock, 1 at most, at which none is above its limit; 0 if
    idling is too much. edges: m of the cells' edges along x and y.
    """

    temperature: Array
    hottest: dict[str, float]
    slowdown: float
    edges: tuple[Array, Array]


def heat_of(package: "Package", cells: int | None = None) -> Heat:
    """Return the steady temperatures of *package* on a grid of *cells* along its longer side.

    If not said, as many as its smallest chiplet needs, within `CELLS`. All chiplets at once,
    from each alone: temperatures are linear in power. The power above idle falls with the
    clock, of which all chiplets take the same part. Raises SpecError if the grid is too
    coarse for a chiplet.
    """
    grid = _Grid.of(package, _cells(package) if cells is None else cells)
    inside = [cover > 1 / 2 for cover in grid.covers]
    for chiplet, here in zip(package.chiplets, inside, strict=True):
        if not np.any(here):
            raise SpecError(
                f"chiplet {chiplet.name} is smaller than a cell of {grid.x[1] * 1e3:.3g} mm: "
                "leave it out, or make it larger"
            )
    full, idle = (
        np.array([float(watts or 0.0) for watts in column])
        for column in zip(*((one.power, one.idle) for one in package.chiplets), strict=True)
    )
    alone, ambient = grid.rise_per_watt(), float(package.cooling.ambient)
    temperature, base = (ambient + np.tensordot(watts, alone, 1) for watts in (full, idle))
    hottest, slowdown = {}, 1.0
    for chiplet, here in zip(package.chiplets, inside, strict=True):
        hottest[chiplet.name] = float(temperature[here].max())
        spare, swing = float(chiplet.limit) - base[here], (temperature - base)[here]
        allowed = np.where(swing > spare, spare / np.maximum(swing, np.finfo(float).tiny), 1.0)
        slowdown = min(slowdown, float(allowed.min()))
    return Heat(temperature, hottest, max(slowdown, 0.0), (grid.x, grid.y))


def _cells(package: "Package") -> int:
    smallest = min(float(side) for chiplet in package.chiplets for side in chiplet.size)
    least, most = CELLS
    return min(max(least, math.ceil(ACROSS * max(map(float, package.size)) / smallest)), most)


class _Grid(NamedTuple):
    """A package in cells: their edges along x and y, and how much of each every chiplet covers."""

    package: "Package"
    x: Array
    y: Array
    covers: list[Array]

    @classmethod
    def of(cls, package: "Package", cells: int) -> "_Grid":
        width, height = map(float, package.size)
        step = max(width, height) / cells
        x = np.linspace(0, width, max(2, round(width / step) + 1))
        y = np.linspace(0, height, max(2, round(height / step) + 1))
        covers = [
            np.outer(_part(y, chiplet.sides[1]), _part(x, chiplet.sides[0]))
            for chiplet in package.chiplets
        ]
        return cls(package, x, y, covers)

    def rise_per_watt(self) -> Array:
        """K per W of each chiplet, where the transistors are: chiplets × ny × nx."""
        package, materials = self.package, technology().materials
        silicon, mould = (materials[name].conductivity for name in ("silicon", "mould"))
        covered = sum(self.covers)
        carrier = materials[package.carrier.material].conductivity
        layers = [(layer.made_of.conductivity, layer.thickness) for layer in package.below]
        layers.append((carrier, package.thickness))
        junction = len(layers) * SLICES  # flip chips: transistors face the interposer
        layers.append((covered * silicon + (1 - covered) * mould, package.die_thickness))
        layers += [(layer.made_of.conductivity, layer.thickness) for layer in package.above]
        slices = [layer for layer in layers for _ in range(SLICES)]
        plane = np.ones_like(self.covers[0])
        conductivity = np.stack([value * plane for value, _ in slices])
        widths = np.array([float(thickness) / SLICES for _, thickness in slices])
        block = Block(
            conductivity,
            (widths, np.diff(self.y), np.diff(self.x)),
            float(package.cooling.top),
            float(package.cooling.board),
        )
        power = np.zeros((len(self.covers), *conductivity.shape))
        for watts, cover in zip(power, self.covers, strict=True):
            watts[junction] = cover / cover.sum()
        rise: Array = block.rise(power)[:, junction]
        return rise


def _part(edges: Array, span: tuple[float, float]) -> Array:
    """Which part of each cell between *edges* lies within *span*."""
    shared = np.minimum(edges[1:], span[1]) - np.maximum(edges[:-1], span[0])
    part: Array = np.clip(shared, 0, None) / np.diff(edges)
    return part


def slowed(chip: Chip, slowdown: float) -> Chip:
    """Return *chip* at *slowdown* of its clock: its cores compute that much slower.

    Voltage is taken to stay, so that power falls with the clock only: a pessimist's figure.
    Raises SpecError if nothing is left of the clock.
    """
    if not 0 < slowdown <= 1:
        raise SpecError(f"a clock cannot run at {slowdown:g} of itself; use more than 0, at most 1")
    peak = {dtype: rate * slowdown for dtype, rate in chip.matrix.items()}
    clock = {} if chip.clock is None else {"clock": chip.clock * slowdown}
    if slowdown < 1:
        clock["boost"] = 1.0
    return chip.replace(peak=peak, vector=chip.vector * slowdown, **clock)
