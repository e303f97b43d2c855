"""What machines are: chips, memories, links, platforms, and how chips exchange data.

Every number may be a NumPy array, one element for each design point. Everything a user
can get wrong raises `SpecError`, whose message is one line. Knows no model and no graph.
"""

from hardware.catalogue import list_platforms, load_platform, load_protocols
from hardware.chip import Chip, Memory, list_chips, load_chip
from hardware.collectives import algorithm_name, collective
from hardware.errors import SpecError
from hardware.level import Level, Span
from hardware.link import Fabric, Link, Protocol
from hardware.offers import CollectiveCost
from hardware.placement import Group
from hardware.platform import Platform
from hardware.tier import Tier, list_tiers, load_tier
from hardware.units import Number, format_quantity, parse_quantity

__all__ = [
    "Chip",
    "CollectiveCost",
    "Fabric",
    "Group",
    "Level",
    "Link",
    "Memory",
    "Number",
    "Platform",
    "Protocol",
    "Span",
    "SpecError",
    "Tier",
    "algorithm_name",
    "collective",
    "format_quantity",
    "list_chips",
    "list_platforms",
    "list_tiers",
    "load_chip",
    "load_platform",
    "load_protocols",
    "load_tier",
    "parse_quantity",
]
