"""Arithmetic on a number or an array: arrays broadcast, plain numbers stay plain."""

import operator
from collections.abc import Iterable
from functools import reduce
from typing import Any

import numpy as np

from hardware import Number, SpecError
from hardware.errors import shown

# 2**40: no sequence, batch, prompt or number of chips of a real service comes near, and products
# of them stay far from what a float can hold
LARGEST = 2**40


def product(factors: Iterable[Number]) -> Number:
    """The product of all; 1 for none."""
    return reduce(operator.mul, factors, 1)


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


def smaller(first: Number, second: Number) -> Number:
    """The elementwise minimum."""
    return np.minimum(first, second) if _any_array(first, second) else min(first, second)


def larger(first: Number, second: Number) -> Number:
    """The elementwise maximum."""
    return np.maximum(first, second) if _any_array(first, second) else max(first, second)


def where(condition: Any, this: Any, that: Any) -> Any:
    """*this* where *condition* holds, *that* elsewhere."""
    if isinstance(condition, np.ndarray):
        return np.where(condition, this, that)
    return this if condition else that


def _any_array(first: Number, second: Number) -> bool:
    return isinstance(first, np.ndarray) or isinstance(second, np.ndarray)
