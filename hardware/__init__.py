"""What machines are: chips, memories, links, platforms, and how chips exchange data.

Every number may be a NumPy array, one element for each design point. Everything a user
can get wrong raises `SpecError`, whose message is one line. Knows no model and no graph.
"""

from hardware.catalogue import list_platforms, load_platform, load_protocols
from hardware.chip import Chip, Memory, list_chips, load_chip
from hardware.collectives import algorithm_name, collective
from hardware.die import Die, die_cost, die_yield
from hardware.energy import Energy
from hardware.errors import SpecError
from hardware.level import Level, Span
from hardware.link import Fabric, Link, Protocol
from hardware.offers import CollectiveCost
from hardware.package import Chiplet, Package, load_package
from hardware.placement import Group
from hardware.platform import Platform
from hardware.price import Ownership, Price, chip_hour, list_prices, load_ownership
from hardware.thermal import slowed
from hardware.tier import Tier, list_tiers, load_tier
from hardware.traffic import chain_energy, network_energy, traffic
from hardware.units import Number, format_number, format_quantity, format_range, parse_quantity

__all__ = [
    "Chip",
    "Chiplet",
    "CollectiveCost",
    "Die",
    "Energy",
    "Fabric",
    "Group",
    "Level",
    "Link",
    "Memory",
    "Number",
    "Ownership",
    "Package",
    "Platform",
    "Price",
    "Protocol",
    "Span",
    "SpecError",
    "Tier",
    "algorithm_name",
    "chain_energy",
    "chip_hour",
    "collective",
    "die_cost",
    "die_yield",
    "format_number",
    "format_quantity",
    "format_range",
    "list_chips",
    "list_platforms",
    "list_prices",
    "list_tiers",
    "load_chip",
    "load_ownership",
    "load_package",
    "load_platform",
    "load_protocols",
    "load_tier",
    "network_energy",
    "parse_quantity",
    "slowed",
    "traffic",
]
