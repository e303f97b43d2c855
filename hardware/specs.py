"""Spec files: TOML read strictly into frozen dataclasses.

A dataclass says for each field how it is read, by annotating its type with a `Read`.
What the file may not say (an unknown or missing key, a bare number, another unit, a
value no machine has) is a `SpecError` of one line that names the file and the key.
"""

import math
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from hardware.errors import SpecError, nearest, shown
from hardware.units import Number, parse_quantity

__all__ = ["SpecError", "find_spec", "nearest", "read_spec", "read_table", "read_toml"]

T = TypeVar("T")

LARGEST_FILE = 1_000_000  # bytes; the largest spec we know has two thousand
MESSAGE_SHOWN = 120  # characters of another library's message
LARGEST_COUNT = 1_000_000  # chips in one platform: ten times the largest cluster announced
LARGEST = 1e3  # of a plain ratio: nothing dimensionless in a spec comes near
BITS = 8  # in a byte
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

# What a file may plausibly say, in SI units: from a thousandth of the smallest machine
# worth describing to a thousand times the largest. Outside, a prefix is wrong.
PLAUSIBLE = {
    "B": (1.0, 1e18),
    "B/s": (1.0, 1e20),
    "FLOP/s": (1.0, 1e21),
    "W": (1e-6, 1e8),
    "Hz": (1.0, 1e13),
    "s": (0.0, 1.0),  # zero: an ideal link is a fair question
    "J/FLOP": (1e-18, 1e-6),
    "J/B": (1e-18, 1e-3),
    "m": (1e-9, 1.0),
    "m²": (1e-12, 1.0),
    "/m²": (0.0, 1e8),  # zero: a process without defects
    "/m": (1.0, 1e9),
    "W/m/K": (1e-3, 1e4),
    "W/m²/K": (0.0, 1e8),  # zero: a face that is not cooled
    "/K": (-1e-3, 1e-3),
    "Pa": (1e5, 1e13),
    "°C": (-273.15, 1e3),
    "$": (0.0, 1e9),
    "$/s": (0.0, 1e3),
    "$/J": (0.0, 1e-3),
    "$/B": (0.0, 1.0),
    "$/m²": (0.0, 1e9),
    "years": (1e3, 1e10),  # seconds
}


@dataclass(frozen=True)
class Read:
    """How a field is read from a file: put it in the `Annotated` type of the field."""

    convert: Callable[[Any], object]

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> Any:
        """Tell pydantic to call *convert*; pydantic finds this method by its name."""
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(self.convert)


def _offset(value: object) -> float:
    """Read a length from an origin, which may be 0."""
    if not isinstance(value, str):
        raise SpecError(f"{shown(value)} needs a unit: write text such as '1.5 mm'")
    number = parse_quantity(value, "m")
    if not 0 <= number <= PLAUSIBLE["m"][1]:
        raise SpecError(f"{shown(value)} is not between 0 and {PLAUSIBLE['m'][1]:g} m")
    return number


def _quantity(unit: str) -> Callable[[object], float]:
    low, high = PLAUSIBLE[unit]

    def convert(value: object) -> float:
        if not isinstance(value, str):
            raise SpecError(f"{shown(value)} needs a unit: write text such as '1.5 {unit}'")
        number = parse_quantity(value, unit)
        if not low <= number <= high:
            raise SpecError(f"{shown(value)} is not between {low:g} and {high:g} {unit}")
        return number

    return convert


def _ratio(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value < math.inf:
        raise SpecError(f"{shown(value)} is not a number from 1 up")
    return float(value)


def _energy_per_byte(value: object) -> float:
    """Read J/B; wires are quoted per bit, and may be so here: "1.3 pJ/bit"."""
    if isinstance(value, str) and value.rstrip().endswith("/bit"):
        return BITS * _quantity("J/B")(f"{value.rstrip().removesuffix('bit')}B")
    return _quantity("J/B")(value)


def _part(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise SpecError(f"{shown(value)} is not a number between 0 and 1")
    return float(value)


def _share(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
        raise SpecError(f"{shown(value)} is not a part of 1")
    return float(value)


def _factor(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < LARGEST:
        raise SpecError(f"{shown(value)} is not a number between 0 and {LARGEST:g}")
    return float(value)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise SpecError(f"{shown(value)} is not a whole number")
    if not 1 <= value <= LARGEST_COUNT:
        raise SpecError(f"{shown(value)} is not between 1 and {LARGEST_COUNT}")
    return value


def _switches(value: object) -> int:
    return 0 if value == 0 and not isinstance(value, bool) else _count(value)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise SpecError(f"{shown(value)} is not a text")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise SpecError(f"{shown(value)} is neither true nor false")
    return value


def one_of(known: Sequence[str]) -> Read:
    """Read one of the words *known*."""

    def convert(value: object) -> str:
        if not isinstance(value, str) or value not in known:
            raise SpecError(f"{shown(value)} is unknown{nearest(str(value), known)}")
        return value

    return Read(convert)


def check_name(name: object) -> str:
    """Return *name* if it may name a spec: letters, digits, dots, dashes, underscores."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SpecError(
            f"{shown(name)} is not a name; use 1 to 64 letters, digits, dots, dashes or underscores"
        )
    return name


Name: TypeAlias = Annotated[str, Read(check_name)]
Text: TypeAlias = Annotated[str, Read(_text)]
Flag: TypeAlias = Annotated[bool, Read(_flag)]
Count: TypeAlias = Annotated[int, Read(_count)]
Switches: TypeAlias = Annotated[int, Read(_switches)]
Cores: TypeAlias = Annotated[Number, Read(_count)]
Bytes: TypeAlias = Annotated[Number, Read(_quantity("B"))]
BytesPerSecond: TypeAlias = Annotated[Number, Read(_quantity("B/s"))]
FlopPerSecond: TypeAlias = Annotated[Number, Read(_quantity("FLOP/s"))]
Watts: TypeAlias = Annotated[Number, Read(_quantity("W"))]
Hertz: TypeAlias = Annotated[Number, Read(_quantity("Hz"))]
Ratio: TypeAlias = Annotated[Number, Read(_ratio)]
Share: TypeAlias = Annotated[Number, Read(_share)]
Seconds: TypeAlias = Annotated[Number, Read(_quantity("s"))]
JoulesPerFlop: TypeAlias = Annotated[Number, Read(_quantity("J/FLOP"))]
JoulesPerByte: TypeAlias = Annotated[Number, Read(_energy_per_byte)]
Part: TypeAlias = Annotated[Number, Read(_part)]
Factor: TypeAlias = Annotated[Number, Read(_factor)]
Metres: TypeAlias = Annotated[Number, Read(_quantity("m"))]
Offset: TypeAlias = Annotated[Number, Read(_offset)]
SquareMetres: TypeAlias = Annotated[Number, Read(_quantity("m²"))]
PerSquareMetre: TypeAlias = Annotated[Number, Read(_quantity("/m²"))]
PerMetre: TypeAlias = Annotated[Number, Read(_quantity("/m"))]
Conductivity: TypeAlias = Annotated[Number, Read(_quantity("W/m/K"))]
HeatTransfer: TypeAlias = Annotated[Number, Read(_quantity("W/m²/K"))]
Expansion: TypeAlias = Annotated[Number, Read(_quantity("/K"))]
Pascals: TypeAlias = Annotated[Number, Read(_quantity("Pa"))]
Celsius: TypeAlias = Annotated[Number, Read(_quantity("°C"))]
Dollars: TypeAlias = Annotated[Number, Read(_quantity("$"))]
DollarsPerSecond: TypeAlias = Annotated[Number, Read(_quantity("$/s"))]
DollarsPerJoule: TypeAlias = Annotated[Number, Read(_quantity("$/J"))]
DollarsPerByte: TypeAlias = Annotated[Number, Read(_quantity("$/B"))]
DollarsPerSquareMetre: TypeAlias = Annotated[Number, Read(_quantity("$/m²"))]
Years: TypeAlias = Annotated[Number, Read(_quantity("years"))]


def list_specs(folder: Path) -> list[str]:
    """Return the names of the specs in *folder*, in alphabetical order."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def as_text(name: object) -> str:
    """Return *name* as text; SpecError if it is neither a text nor a path."""
    if isinstance(name, str | Path):
        return str(name)
    raise SpecError(f"{shown(name)} is neither a name nor the path of a file")


def find_spec(folder: Path, name: str) -> Path:
    """Return the path of the spec *name*: a path that ends in .toml, or a file of *folder*.

    Raises SpecError with the nearest names if *folder* has no such file.
    """
    name = as_text(name)
    if name.endswith(".toml"):
        return Path(name)
    path = folder / f"{check_name(name)}.toml"
    if not path.is_file():
        raise SpecError(
            f"unknown {folder.name.removesuffix('s')} {name!r}{nearest(name, list_specs(folder))}"
        )
    return path


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file of at most 1 MB.

    Raises SpecError if there is no such file, if it cannot be read, is too large or
    nested too deeply, or is not TOML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        table = tomllib.loads(content.decode("utf-8-sig")) if len(content) <= LARGEST_FILE else None
    except OSError as error:
        raise SpecError(f"cannot read {shown(str(path))}: {error.strerror}") from None
    except RecursionError:
        raise SpecError(f"{shown(str(path))} is nested too deeply") from None
    except ValueError as error:
        reason = " ".join(str(error).split())[:MESSAGE_SHOWN]
        raise SpecError(f"{shown(str(path))} is not TOML: {reason}") from None
    if table is None:
        raise SpecError(f"{shown(str(path))} is larger than {LARGEST_FILE} bytes")
    return table


def read_spec(path: Path, kind: type[T]) -> T:
    """Build a *kind* from the TOML file at *path*; SpecError if the file does not fit."""
    return read_table(read_toml(path), kind, where=path.name)


def read_table(table: dict[str, Any], kind: type[T], where: str) -> T:
    """Build a *kind* from a parsed *table*; *where* it came from stands in the errors."""
    from pydantic import TypeAdapter, ValidationError

    try:
        value: T = TypeAdapter(kind).validate_python(table)
    except ValidationError as error:
        # A misspelt key comes before the key that it leaves missing.
        found = error.errors(include_url=False)
        first = min(found, key=lambda one: one["type"] != "unexpected_keyword_argument")
        raise SpecError(f"{where}: {_explain(first, kind)}") from None
    return value


def _explain(error: Any, kind: type) -> str:
    """Say in our words what pydantic found wrong first."""
    *outer, last = error["loc"] or ("",)
    place = _place(outer)
    if error["type"] == "unexpected_keyword_argument":
        known = _keys(kind, outer)
        return f"unknown key {shown(last)}{place}{nearest(str(last), known)}"
    if error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{str(last)!r} is missing{place}"
    key = _place(error["loc"]).removeprefix(" in ")
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}" if key else str(error["ctx"]["error"])
    expected = {"dataclass_type": "a table", "mapping_type": "a table", "tuple_type": "a list"}
    wanted = expected.get(error["type"], error["msg"])
    return f"{key}: expected {wanted}, found {shown(error['input'])}"


def _place(location: Sequence[object]) -> str:
    path = ".".join(str(part) for part in location if part != "[key]")
    return f" in {path[:64]}" if path else ""


def _keys(kind: Any, location: Sequence[object]) -> list[str]:
    """Return the keys of the table at *location* inside a *kind*."""
    for part in location:
        if isinstance(part, str):
            hint = next(field.type for field in fields(kind) if field.name == part)
            kind = next(t for t in (hint, *getattr(hint, "__args__", ())) if is_dataclass(t))
    return [field.name for field in fields(kind)]
