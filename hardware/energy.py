"""Energy: the joules that a chip takes for arithmetic, for its memory and for its links.

A chip's file gives what is published under [energy]. The rest follows from technology:
memory by its kind, links by their class, and arithmetic by the assumption that products
at peak rate draw what the thermal design power leaves above idle, in every number format
(an H200 draws 663 W at bf16 and 662 W at fp8: Serial Alice GPU energy benchmark, 2026).
What clocks and waiting cores burn beyond idle is not counted, so steps that wait come out
low.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hardware.errors import SpecError, nearest, shown
from hardware.link import STRICT, Link, check_positive, widen
from hardware.specs import JoulesPerByte, JoulesPerFlop, Text, Watts
from hardware.technology import named, technology
from hardware.units import Number

if TYPE_CHECKING:
    from hardware.chip import Chip


@dataclass(frozen=True, kw_only=True)
class Energy:
    """What a chip takes: watts when idle, and above that joules for each thing it does.

    matrix: J/FLOP of products by dtype; vector: J/FLOP of the vector units; memory: J/B by
    the name of the tier. What is None or missing, `with_energy` fills in.

    Raises SpecError if a number is not finite and positive.
    """

    source: Text
    idle: Watts | None = None
    matrix: Mapping[Text, JoulesPerFlop] = field(default_factory=dict)
    vector: JoulesPerFlop | None = None
    memory: Mapping[Text, JoulesPerByte] = field(default_factory=dict)

    __pydantic_config__: ClassVar = STRICT

    def check(self, name: str, tiers: Collection[str], dtypes: Collection[str]) -> None:
        """Refuse figures of what the chip called *name* has not."""
        for what, given, known in (("memory", self.memory, tiers), ("dtype", self.matrix, dtypes)):
            for key in given:
                if key not in known:
                    hint = nearest(key, known)
                    raise SpecError(f"[energy] of {name}: unknown {what} {shown(key)}{hint}")

    def __post_init__(self) -> None:
        check_positive("[energy]", idle=self.idle, vector=self.vector)
        check_positive("[energy] matrix", **self.matrix)
        check_positive("[energy] memory", **self.memory)
        widen(self)

    @property
    def is_complete(self) -> bool:
        """Whether no figure is missing."""
        return self.idle is not None and self.vector is not None and bool(self.matrix)


def with_energy(chip: "Chip") -> "Chip":
    """Return *chip* with every figure of its energy.

    The figures stay when the chip is changed: one with twice the peak draws twice the power
    at it. A memory of no known kind has none. Raises SpecError if the others follow from
    nothing: the chip has neither 'power' nor a process.
    """
    given = chip.energy or Energy(source="technology")
    arithmetic, idle = _watts(chip, given)
    kinds = technology().memories
    memory = {
        tier.name: kinds[tier.name].energy + kinds[tier.name].transport
        for tier in chip.memory
        if tier.name in kinds
    }
    matrix = {dtype: arithmetic / rate for dtype, rate in chip.matrix.items()}
    vector = arithmetic / chip.vector if given.vector is None else given.vector
    complete = dataclasses.replace(
        given,
        idle=idle,
        matrix={**matrix, **given.matrix},
        vector=vector,
        memory={**memory, **given.memory},
    )
    return dataclasses.replace(
        chip,
        energy=complete,
        scale_up=_with_class(chip.scale_up, "tray"),
        scale_out=_with_class(chip.scale_out, "rack"),
    )


def _watts(chip: "Chip", given: Energy) -> tuple[Number, Number]:
    """Return what arithmetic at peak rate draws above idle, and what idling does."""
    share = technology().idle.share
    if chip.power is not None:
        idle = share * chip.power if given.idle is None else given.idle
        if np.any(np.greater_equal(idle, chip.power)):
            raise SpecError(
                f"{chip.name} cannot idle at {shown(idle)} W: its power is {shown(chip.power)} W"
            )
        return chip.power - idle, idle
    if not chip.dies:
        raise SpecError(
            f"{chip.name} has no figures of energy: give its file 'power', or [[dies]] whose "
            "process says what a FLOP takes"
        )
    flop = named("process", chip.dies[0].process, technology().processes).flop
    arithmetic = flop * chip.peak("bf16")
    idle = arithmetic * share / (1 - share) if given.idle is None else given.idle
    return arithmetic, idle


def _with_class(link: Link | None, name: str) -> Link | None:
    if link is None or link.energy is not None:
        return link
    return dataclasses.replace(link, energy=technology().links[name].energy)
