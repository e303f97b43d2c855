"""Counts and other numbers that users give, one or an array of them."""

from numbers import Real
from typing import Any

import numpy as np

from hardware import Number, SpecError
from hardware.errors import shown

# 2**40: no sequence, batch, prompt or number of chips of a real service comes near, and products
# of them stay far from what a float can hold
LARGEST = 2**40


def as_count(name: str, value: Any, least: int = 1, of: str = "") -> Number:
    """*value* if it is a whole number from *least* to `LARGEST`, or an array of them.

    An array is in double precision, whatever its type was; a NumPy integer becomes an `int`.

    Raises
    ------
    SpecError : anything else; the message begins with *name* and tells *of* what it is a number.
    """
    wrong = value
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.size:
        whole = value.astype(float)
        right = (whole >= least) & (whole <= LARGEST) & (whole == np.floor(whole))
        if np.all(right):
            return whole if whole.ndim else int(whole)
        wrong = float(whole[~right].flat[0])
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if is_integer and least <= value <= LARGEST:
        return int(value)
    hint = f", or an array: np.array({shown(value)})" if isinstance(value, list | tuple) else ""
    raise SpecError(
        f"{name}={shown(wrong)}: must be a whole number{of} from {least} to {LARGEST}{hint}"
    )


def is_within(value: Any, low: float, high: float) -> bool:
    """Whether *value* is a number from *low* to *high*, or an array of such."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iuf" and bool(np.all((value >= low) & (value <= high)))
    return isinstance(value, Real) and not isinstance(value, bool) and low <= float(value) <= high
