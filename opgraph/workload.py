"""What is asked of the model: how many sequences, how long."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from hardware import Number, SpecError

# 2**40: no sequence, batch or prompt of a real service comes near, and products stay exact floats
LARGEST = 2**40


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A batch of equal sequences. Each number is an integer ≥ 1 or an array of them.

    Parameters
    ----------
    batch : sequences in flight on the whole platform.
    prompt : tokens of each prompt.
    output : tokens generated for each.

    Raises
    ------
    SpecError : a number that is not a whole number from 1 to 2⁴⁰.
    """

    batch: Number = 1
    prompt: Number = 2048
    output: Number = 256

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            object.__setattr__(self, entry.name, _checked(entry.name, value))

    @property
    def context(self) -> Number:
        """Tokens of each sequence when it ends: what the KV cache must hold."""
        return self.prompt + self.output


def _checked(name: str, value: Any) -> Number:
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.size:
        whole = value.astype(float)
        if np.all((whole >= 1) & (whole <= LARGEST) & (whole == np.floor(whole))):
            return whole
        wrong: Any = whole[~((whole >= 1) & (whole <= LARGEST) & (whole == np.floor(whole)))].flat[
            0
        ]
    elif isinstance(value, int | np.integer) and not isinstance(value, bool):
        if 1 <= value <= LARGEST:
            return int(value)
        wrong = value
    else:
        wrong = value
    raise SpecError(f"{name}={wrong!r}: must be a whole number from 1 to {LARGEST}")
