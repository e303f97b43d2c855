"""Arithmetic on a number or an array: arrays broadcast, plain numbers stay plain."""

import operator
from collections.abc import Iterable
from functools import reduce
from typing import Any

import numpy as np

from hardware import Number


def product(factors: Iterable[Number]) -> Number:
    """The product of all; 1 for none."""
    return reduce(operator.mul, factors, 1)


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
