"""What is asked of the model: how many sequences, how long."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from hardware import Number, SpecError
from hardware.errors import shown
from opgraph.counts import LARGEST, as_count

__all__ = ["LARGEST", "MOST_SKEW", "Workload"]

# Zipf's exponent: at 4 the second expert has a sixteenth of the first one's tokens
MOST_SKEW = 4


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A batch of equal sequences. Each number may be an array.

    Numbers are whole and ≥ 1 (*images*: ≥ 0); *skew* is any from 0 to 4.

    Parameters
    ----------
    batch : sequences in flight on the whole platform.
    prompt : tokens of each prompt; those that its images become are among them.
    output : tokens generated for each.
    images : images in each prompt, of a size that the model says.
    skew : how unequally tokens choose experts: the exponent of Zipf's law (0: all alike).

    Raises
    ------
    SpecError : a number that is not a whole number from 1 (*images*: 0) to 2⁴⁰; a *skew* out of
        its range.
    """

    batch: Number = 1
    prompt: Number = 2048
    output: Number = 256
    images: Number = 0
    skew: Number = 0.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            least = 0 if entry.name == "images" else 1
            number = _as_skew(value) if entry.name == "skew" else as_count(entry.name, value, least)
            object.__setattr__(self, entry.name, number)

    @property
    def context(self) -> Number:
        """Tokens of each sequence when it ends: what the KV cache must hold."""
        return self.prompt + self.output


def _as_skew(value: Any) -> Number:
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.size:
        skew: Number = value.astype(float)
        if np.all((skew >= 0) & (skew <= MOST_SKEW)):
            return skew
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_SKEW:
        return float(value)
    raise SpecError(
        f"skew={shown(value)}: must be a number from 0 (all experts alike) to {MOST_SKEW}"
    )
