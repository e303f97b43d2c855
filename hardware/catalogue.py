"""The catalogue: chips and platforms found by name, read from a file, or put together."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hardware.chip import Chip, load_chip
from hardware.errors import SpecError, nearest, shown
from hardware.level import Level
from hardware.link import STRICT, Link, Protocol
from hardware.platform import Platform
from hardware.specs import (
    LARGEST_COUNT,
    Name,
    Text,
    as_text,
    check_name,
    find_spec,
    list_specs,
    read_spec,
    read_table,
    read_toml,
)
from hardware.tier import load_tier

_PLATFORMS = Path(__file__).parent / "data" / "platforms"
_PROTOCOLS = _PLATFORMS.parent / "protocols"
_COUNTED = re.compile(r"(?P<name>[^:×]*)[:×](?P<count>[^:×]*)")


def load_platform(name: str | Path) -> Platform:
    """Return a platform: by name, from a file, or so many chips or platforms.

    "dgx-h100" is one of the catalogue; "my.toml" a file of a platform, or of a chip for one
    alone; "h100-sxm:16" sixteen of that chip in full scale-up domains joined by their network
    interfaces; "dgx-h100:4" four of that platform; "my.toml:8" either of the two. × may stand
    for the colon of a name. Raises SpecError if there is no such thing.

    >>> load_platform("h100-sxm:16").num_chips
    16
    """
    name = as_text(name)
    base, _, count = name.rpartition(":") if ".toml:" in name else (name, "", "1")
    if base.endswith(".toml"):
        return _file_platform(Path(base), _read_count(count, name))
    return _catalogue_platform(name)


def list_platforms() -> list[str]:
    """Return the names of the platforms in the catalogue."""
    return list_specs(_PLATFORMS)


@functools.lru_cache(maxsize=256)  # more than the catalogue holds
def _catalogue_platform(name: str) -> Platform:
    counted = _COUNTED.fullmatch(name)
    if counted is None:
        return _named_platform(name)
    base, count = counted["name"], _read_count(counted["count"], name)
    if base in list_platforms():
        return _named_platform(base).replicate(count)
    chips = list_specs(_PLATFORMS.parent / "chips")
    if base not in chips:
        known = [*chips, *list_platforms()]
        raise SpecError(f"unknown chip or platform {shown(base)}{nearest(base, known)}")
    return _of_chips(load_chip(base), count)


def _file_platform(path: Path, count: int) -> Platform:
    """Read so many of the platform or of the chip in a file; a chip's has its peaks or memory."""
    if {"matrix", "memory"} & read_toml(path).keys():
        return _of_chips(load_chip(str(path)), count)
    return _read_platform(path).replicate(count)


def _named_platform(name: str) -> Platform:
    if name in list_specs(_PLATFORMS.parent / "chips"):
        raise SpecError(f"{name!r} is a chip; write '{name}:8' for a platform of 8 of them")
    return _read_platform(find_spec(_PLATFORMS, name))


def _read_count(text: str, name: str) -> int:
    digits = text.strip()
    longest = len(str(LARGEST_COUNT))
    count = int(digits) if re.fullmatch(rf"[0-9]{{1,{longest}}}", digits) else 0
    if not 1 <= count <= LARGEST_COUNT:
        raise SpecError(f"{shown(text)} in {shown(name)} is not a number from 1 to {LARGEST_COUNT}")
    return count


def _read_platform(path: Path) -> Platform:
    """Read a platform file, in which a chip, its links and tiers of memory stand as names."""
    table = read_toml(path)
    if isinstance(table.get("chip"), str):
        table["chip"] = chip = load_chip(_chip_file(path, table["chip"]))
        for level in _tables(table.get("levels")):
            level["link"] = _named_link(chip, level.get("link"), path.name)
        if isinstance(table.get("tiers"), list):
            table["tiers"] = [_named_tier(path, tier) for tier in table["tiers"]]
        if "scale_out" in table:
            table["scale_out"] = _named_link(chip, table["scale_out"], path.name)
    return read_table(table, Platform, where=path.name)


def _tables(value: Any) -> list[dict[str, Any]]:
    """Return the tables among *value*; what else is there, reading it will refuse."""
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, dict) and "link" in item]


def _chip_file(platform: Path, name: str) -> str:
    """Return a chip file that lies beside its platform, or a catalogue name as it is."""
    return str(platform.parent / check_name(name)) if name.endswith(".toml") else name


def _named_tier(platform: Path, tier: object) -> object:
    """Return the tier that a platform names: of the catalogue, or in a file beside it."""
    return load_tier(_chip_file(platform, tier)) if isinstance(tier, str) else tier


def _named_link(chip: Chip, value: object, where: str) -> object:
    """Return the link of *chip* that a file means by "scale_up" or "scale_out"."""
    if not isinstance(value, str):
        return value
    links: dict[str, Link | None] = {"scale_up": chip.scale_up, "scale_out": chip.scale_out}
    if value not in links:
        raise SpecError(f"{where}: unknown link {shown(value)}{nearest(value, links)}")
    if links[value] is None:
        raise SpecError(f"{where}: {chip.name} has no {value} link")
    return links[value]


def _of_chips(chip: Chip, count: int) -> Platform:
    """Put *count* chips in as few scale-up domains as hold them."""
    domain = min(count, chip.max_scale_up)
    if count % domain:
        raise SpecError(
            f"{count} of {chip.name} do not fill whole domains of {domain}; "
            f"use a multiple of {domain}"
        )
    if count > domain and chip.scale_out is None:
        raise SpecError(
            f"{chip.name} has no scale_out link, and its scale_up links join no more than "
            f"max_scale_up = {chip.max_scale_up} of it, not {count}"
        )
    levels = (_domain(chip, domain),) if domain > 1 else ()
    single = Platform(chip.name, chip.source, chip, levels, chip.scale_out)
    platform = single.replicate(count // domain)
    return dataclasses.replace(platform, name=f"{chip.name}:{count}")


def _domain(chip: Chip, size: int) -> Level:
    """Wire *size* chips with their scale-up links as the chip's fabric says."""
    link, fabric = chip.scale_up, chip.fabric
    if link is None:
        raise SpecError(f"{chip.name} has no scale_up link to join {size} of it")
    if fabric.topology == "full":  # of the links to every other chip, those in use
        used = (size - 1) / (chip.max_scale_up - 1)
        link = dataclasses.replace(link, bandwidth=link.bandwidth * used)
    if fabric.topology not in ("mesh", "torus"):
        return Level("node", size, link, fabric.topology, (), fabric.in_switch_reduction)
    shape = near_cube(size, fabric.dimensions)
    closed = all(side == 1 or side % fabric.wraps_at == 0 for side in shape)
    return Level("slice", size, link, "torus" if closed else "mesh", shape)


def near_cube(size: int, dimensions: int) -> tuple[int, ...]:
    """Return the sides of the most compact box of *size*, shortest first.

    >>> near_cube(32, 3)
    (2, 4, 4)
    """
    if dimensions == 1:
        return (size,)
    root = round(size ** (1 / dimensions))
    while root**dimensions > size:
        root -= 1
    side = next(side for side in range(max(root, 1), 0, -1) if size % side == 0)
    return tuple(sorted((side, *near_cube(size // side, dimensions - 1))))


@dataclass(frozen=True, kw_only=True)
class _Library:
    """The protocols of a communication library on each kind of link."""

    name: Name
    source: Text
    links: Mapping[Name, tuple[Protocol, ...]]

    __pydantic_config__: ClassVar = STRICT


def load_protocols(name: str, kind: str) -> tuple[Protocol, ...]:
    """Return how a communication library sends messages over one kind of link.

    name: "nccl", or a file of one's own that ends in .toml; kind: a link that it knows,
    such as nvlink, pcie or network. See `Platform.with_link`.
    Raises SpecError if there is no such library or kind.

    >>> [protocol.name for protocol in load_protocols("nccl", "nvlink")]
    ['LL', 'LL128', 'Simple']
    """
    library = read_spec(find_spec(_PROTOCOLS, name), _Library)
    if kind not in library.links:
        raise SpecError(f"{library.name} knows no link {shown(kind)}{nearest(kind, library.links)}")
    return library.links[kind]
