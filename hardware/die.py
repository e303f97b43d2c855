"""Dies: how many a wafer holds, how many of them work, and what a good one costs."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hardware.errors import SpecError
from hardware.link import STRICT, check_positive, widen
from hardware.specs import Count, SquareMetres, Text
from hardware.technology import Process, named, technology
from hardware.units import Number

WAFER = 0.3  # diameter in m, of the prices in the catalogue


@dataclass(frozen=True, kw_only=True)
class Die:
    """One kind of die in a chip: area in m², process by name, how many of it."""

    area: SquareMetres
    process: Text
    source: Text
    count: Count = 1

    __pydantic_config__: ClassVar = STRICT

    def __post_init__(self) -> None:
        check_positive("a die", area=self.area)
        widen(self)

    @property
    def cost(self) -> Number:
        """Dollars for the good dies of this kind in one chip; SpecError if too large a die."""
        process = named("process", self.process, technology().processes)
        return self.count * die_cost(self.area, process)


def die_yield(area: Number, process: Process) -> Number:
    """Return the share of dies without a defect: (1 + A D / α)^-α.

    The negative binomial model (Stapper, Proc. IEEE 71, 1983): *area* A in m², defects D
    per m² that cluster by α; without clustering, α → ∞, Poisson's exp(-A D).

    >>> round(die_yield(814e-6, technology().processes["N5"]), 3)  # an H100 without spare cores
    0.487
    """
    return (1 + area * process.defects / process.clustering) ** -process.clustering


def dies_per_wafer(area: Number) -> Number:
    """Return the whole dies of *area* m² on a wafer: π d²/(4 A) - π d/√(2 A).

    De Vries, IEEE Trans. Semicond. Manuf. 18, 2005, his first-order form.
    """
    return math.pi * WAFER**2 / (4 * area) - math.pi * WAFER / np.sqrt(2 * area)


def die_cost(area: Number, process: Process) -> Number:
    """Return dollars per good die: a wafer's price over the good dies on it.

    Raises SpecError if a wafer does not hold a whole die of that area.
    """
    whole = dies_per_wafer(area)
    if np.any(whole < 1):
        largest = float(np.max(area)) * 1e6
        raise SpecError(f"a die of {largest:g} mm² does not fit a wafer of {WAFER * 1e3:g} mm")
    return process.wafer / (whole * die_yield(area, process))
