"""Units: inside, every number is in one SI unit; at the edges, it says which.

Seconds, bytes, FLOP, watts, hertz, joules, metres, kelvin; money in dollars. A number may
be one float or an array of them, one for each design point. Files and command lines carry
text such as "3.35 TB/s" or "80 GiB": GB is 1e9 bytes, GiB is 2**30.
"""

import math
import re
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hardware.errors import SpecError, nearest, shown

Number: TypeAlias = float | NDArray[Any]
"""One number, or a NumPy array of them that broadcasts against the others."""

UNITS = ("s", "B", "B/s", "FLOP", "FLOP/s", "W", "Hz", "J", "J/FLOP", "J/B", "m", "Pa")
_COUNTED = ("B", "B/s", "FLOP", "FLOP/s")  # never a fraction of one: "80 mB" is a slip for MB

_SMALL = {"p": 1e-12, "n": 1e-9, "u": 1e-6, "µ": 1e-6, "m": 1e-3}
_LARGE = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}

_HOUR, _YEAR = 3600.0, 365.25 * 86400.0
SYMBOLS = {
    "m²": {"mm²": 1e-6, "cm²": 1e-4, "um²": 1e-12, "m²": 1.0},
    "/m²": {"/cm²": 1e4, "/mm²": 1e6, "/m²": 1.0},
    "/m": {"/mm": 1e3, "/um": 1e6, "/m": 1.0},
    "W/m/K": {"W/m/K": 1.0},
    "W/m²/K": {"W/m²/K": 1.0, "W/cm²/K": 1e4, "kW/m²/K": 1e3},
    "/K": {"ppm/K": 1e-6, "/K": 1.0},
    "°C": {"°C": 1.0},
    "$": {"$": 1.0},
    "$/s": {"$/h": 1 / _HOUR, "$/s": 1.0},
    "$/J": {"$/kWh": 1 / (1e3 * _HOUR), "$/J": 1.0},
    "$/B": {"$/GB": 1e-9, "$/B": 1.0},
    "$/m²": {"$/mm²": 1e6, "$/m²": 1.0},
    "years": {"years": _YEAR, "year": _YEAR, "s": 1.0},
}
"""Units that take no prefixes: what may stand after a number, and what each multiplies by
(years to seconds; a temperature stays in °C, of which only differences are computed with)."""

_LONGEST = 64  # characters; a longer text is no quantity, and is not worth matching
_USUAL = {"s": "u", "Hz": "G", "m": "m", "Pa": "G", "J/FLOP": "p", "J/B": "p"}
_QUANTITY = re.compile(r"\s*([+-]?\d+\.?\d*(?:[eE][+-]?\d+)?)\s*(\D*?)\s*", re.ASCII)


def prefixes(unit: str) -> dict[str, float]:
    """Return the prefixes *unit* takes and what each multiplies by."""
    if unit not in UNITS:
        raise SpecError(f"unknown unit {shown(unit)}{nearest(unit, UNITS)}")
    small = {} if unit in _COUNTED else _SMALL
    return small | _LARGE | (_BINARY if unit.startswith("B") else {})


def parse_quantity(text: str, unit: str) -> float:
    """Read *text*, a number and a unit, as a float in *unit*.

    Raises SpecError, quoting the text, for a bare number, another unit, an unknown
    prefix, and a number that is not finite.

    >>> parse_quantity("3.35 TB/s", "B/s")
    3350000000000.0
    """
    scales = SYMBOLS.get(unit) or {prefix + unit: scale for prefix, scale in prefixes(unit).items()}
    match = _QUANTITY.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        raise SpecError(f"{shown(text)} is not a quantity; write a number and {_example(unit)}")
    digits, symbol = match.groups()
    if not symbol:
        raise SpecError(f"{shown(text)} has no unit; write {_example(unit, digits)}")
    if symbol not in scales:
        raise SpecError(f"{shown(text)} is not in {unit}; write a number and {_example(unit)}")
    value = float(digits) * scales[symbol]
    if not math.isfinite(value):
        raise SpecError(f"{shown(text)} is not a finite number")
    return value


def _example(unit: str, digits: str = "") -> str:
    prefix = "T" if unit in _COUNTED else _USUAL.get(unit, "")
    symbol = next(iter(SYMBOLS.get(unit, {prefix + unit: 1.0})))
    return f"'{digits} {symbol}'" if digits else f"its unit, such as '{symbol}'"


def in_unit(name: str, value: Any, unit: str | None) -> Any:
    """Return a text with a unit as a number in *unit*, a list of them or of numbers as an array,
    anything else as it is.

    Raises SpecError, which begins with *name*, for a text that is none.
    """
    if isinstance(value, list | tuple):
        numbers = [in_unit(name, each, unit) for each in value]
        return np.array(numbers) if all(isinstance(n, int | float) for n in numbers) else value
    if unit is None or not isinstance(value, str):
        return value
    try:
        return parse_quantity(value, unit)
    except SpecError as error:
        raise SpecError(f"{name}: {error}") from None


def format_number(value: float, digits: int = 4) -> str:
    """Write a number to so many digits, large ones whole and in groups of three.

    >>> format_number(10223.4), format_number(0.51239)
    ('10,223', '0.5124')
    """
    whole = abs(value) >= 10 ** (digits - 1) or float(value).is_integer()
    return f"{value:,.0f}" if whole else f"{value:.{digits}g}"


def format_quantity(value: float, unit: str, digits: int = 3) -> str:
    """Write one number in *unit* as text, with decimal prefixes.

    `parse_quantity` reads it back, to the digits kept.

    >>> format_quantity(3.35e12, "B/s")
    '3.35 TB/s'
    """
    rounded = float(f"{value:.{digits}g}")
    scales = {p: s for p, s in prefixes(unit).items() if p not in _BINARY and p != "µ"}
    fitting = [prefix for prefix, scale in scales.items() if abs(rounded) >= scale]
    smallest = "" if rounded == 0 else min(scales, key=lambda prefix: scales[prefix])
    prefix = max(fitting, key=lambda p: scales[p], default=smallest)
    if not math.isfinite(rounded):
        prefix = ""
    return f"{rounded / scales[prefix]:.{digits}g} {prefix}{unit}"


def format_range(value: Number, unit: str) -> str:
    """Write a number in *unit*; of an array the least and the largest.

    >>> format_range(np.array([1e12, 8e12]), "B/s")
    '1 TB/s to 8 TB/s'
    """
    low, high = (format_quantity(float(end), unit) for end in (np.min(value), np.max(value)))
    return low if low == high else f"{low} to {high}"
