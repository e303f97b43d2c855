"""Prices: what a chip costs by the hour, at list price or from what it takes to own one."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from hardware.chip import Chip
from hardware.errors import SpecError, nearest, shown
from hardware.link import STRICT, check_positive, widen
from hardware.specs import (
    Dollars,
    DollarsPerJoule,
    DollarsPerSecond,
    Factor,
    Name,
    Part,
    Text,
    Years,
    read_spec,
)
from hardware.technology import named, technology
from hardware.units import Number

_DATA = Path(__file__).parent / "data"
HOUR, YEAR = 3600.0, 365.25 * 86400  # seconds
WAYS = ("list", "ownership")


@dataclass(frozen=True, kw_only=True)
class Price:
    """$/s of one chip with its share of a server, from whom, of when."""

    chip: Name
    rate: DollarsPerSecond
    provider: Text
    source: Text
    date: Text = ""

    __pydantic_config__: ClassVar = STRICT

    def __post_init__(self) -> None:
        check_positive(f"the price of {self.chip}", rate=self.rate)
        widen(self)

    @property
    def origin(self) -> str:
        """From whom it is, and of when."""
        return ", ".join(filter(None, (self.provider, self.date)))


@dataclass(frozen=True, kw_only=True)
class _PriceList:
    prices: tuple[Price, ...]

    __pydantic_config__: ClassVar = STRICT


@dataclass(frozen=True, kw_only=True)
class BuildCost:
    """What making one chip costs, in dollars."""

    dies: Number
    memory: Number
    assembly: Number

    @property
    def total(self) -> Number:
        """All of it."""
        return self.dies + self.memory + self.assembly


@dataclass(frozen=True, kw_only=True)
class Ownership:
    """What owning a chip costs beside its dies and memory.

    assembly: $ of packaging, test and board. margin: the seller's, of the price. host,
    network: $ per chip. lifetime: s over which the purchase is written off. upkeep: of the
    purchase in a year. electricity: $/J. overhead: the building's power per the machine's.

    Raises SpecError for a margin of 1 or more, and what is not finite and positive.
    """

    source: Text
    assembly: Dollars
    margin: Part
    host: Dollars
    network: Dollars
    lifetime: Years
    upkeep: Part
    electricity: DollarsPerJoule
    overhead: Factor

    __pydantic_config__: ClassVar = STRICT

    def __post_init__(self) -> None:
        check_positive("ownership", lifetime=self.lifetime, overhead=self.overhead)
        if np.any(np.greater_equal(self.margin, 1)):
            raise SpecError("ownership: a margin of 1 leaves nothing for making the chip")
        widen(self)

    def build_cost(self, chip: Chip) -> BuildCost:
        """What making *chip* costs; SpecError if its dies or its kind of memory are unknown."""
        if not chip.dies:
            raise SpecError(
                f"{chip.name} has no [[dies]], from which its cost would follow: give a price "
                "per chip-hour"
            )
        kinds = technology().memories
        memory = sum(
            tier.capacity * named("kind of memory", tier.name, kinds).price for tier in chip.memory
        )
        dies = sum(die.cost for die in chip.dies)
        return BuildCost(dies=dies, memory=memory, assembly=self.assembly)

    def purchase(self, chip: Chip) -> Number:
        """Dollars for a chip at its seller's margin, its host and its network."""
        return self.build_cost(chip).total / (1 - self.margin) + self.host + self.network

    def rate(self, chip: Chip, power: Number | None = None) -> Number:
        """Dollars per second of owning *chip* while it draws *power* W, its TDP if not given."""
        drawn = chip.power if power is None else power
        if drawn is None:
            raise SpecError(f"{chip.name} has no power: say how much it draws")
        capital = self.purchase(chip) * (1 / self.lifetime + self.upkeep / YEAR)
        return capital + drawn * self.overhead * self.electricity


@functools.cache
def list_prices() -> dict[str, Price]:
    """Return the list price of each chip that has one."""
    rows = read_spec(_DATA / "prices.toml", _PriceList).prices
    return {row.chip: row for row in rows}


def load_ownership(path: str | None = None) -> Ownership:
    """Return what owning chips costs: the catalogue's figures, or those of a TOML file."""
    return read_spec(Path(path) if path else _DATA / "ownership.toml", Ownership)


def chip_hour(chip: Chip, by: str = "list") -> Price:
    """Return the price of *chip* in $/s, by "list" price or by "ownership".

    The two differ severalfold, so one never stands in for the other. Raises SpecError if the
    chip has no such price.

    >>> from hardware.chip import load_chip
    >>> price = chip_hour(load_chip("h100-sxm"))
    >>> round(price.rate * 3600, 3), price.date
    (4.916, '2024-12')
    """
    if by not in WAYS:
        raise SpecError(f"unknown way to a price {by!r}{nearest(by, WAYS)}")
    if by == "ownership":
        owned = load_ownership()
        return Price(
            chip=chip.name, rate=owned.rate(chip), provider="to own it", source=owned.source
        )
    if chip.name not in list_prices():
        raise SpecError(
            f"{chip.name} has no list price: give one in $ per chip-hour, or ask for ownership"
        )
    return list_prices()[chip.name]


def read_price(text: str, chip: Chip) -> Price:
    """Return the price that *text* means: $ per chip-hour, or a way that `chip_hour` knows.

    Raises SpecError if it is neither, or the chip has no such price.
    """
    if text in WAYS:
        return chip_hour(chip, text)
    try:
        rate = float(text.removeprefix("$")) / HOUR
    except ValueError:
        raise SpecError(
            f"price {shown(text)} is neither a number of $ per chip-hour nor {' or '.join(WAYS)}"
        ) from None
    if not 0 < rate < math.inf:
        raise SpecError(f"price {shown(text)}: $ per chip-hour must be finite and above 0")
    return Price(chip=chip.name, rate=rate, provider="as given", source="as given")
