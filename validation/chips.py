"""The chips whose kernels were measured: where their tables are, and which are alike."""

from typing import NamedTuple

from hardware import load_chip


class MeasuredChip(NamedTuple):
    """A chip of the catalogue in the measured tables.

    system: its folder in the package data. generation: chips of one share their kernels.
    """

    system: str
    generation: str


MEASURED = {
    "a100-sxm-80gb": MeasuredChip("a100_sxm", "ampere"),
    "l40s": MeasuredChip("l40s", "ada"),
    "h100-sxm": MeasuredChip("h100_sxm", "hopper"),
    "h200-sxm": MeasuredChip("h200_sxm", "hopper"),
    "b200-sxm": MeasuredChip("b200_sxm", "blackwell"),
    "gb200": MeasuredChip("gb200", "blackwell"),
    "b300-sxm": MeasuredChip("b300_sxm", "blackwell"),
    "gb300": MeasuredChip("gb300", "blackwell"),
    "rtx-pro-6000": MeasuredChip("rtx_pro_6000_server", "blackwell-gddr"),
}


def alike(one: str, other: str) -> bool:
    """Tell whether two chips are of one kind: both with GDDR, or both with stacked memory."""
    return load_chip(one).has_gddr == load_chip(other).has_gddr
