"""Arithmetic on numbers and arrays alike: a number stays one of Python, which is fast."""

import functools
import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from hardware.units import Number


def larger(a: Number, b: Number) -> Number:
    """Return the larger of two, for each element if there are arrays."""
    if isinstance(a, int | float) and isinstance(b, int | float):
        return max(a, b)
    return np.maximum(a, b)


def smaller(a: Number, b: Number) -> Number:
    """Return the smaller of two, for each element if there are arrays."""
    if isinstance(a, int | float) and isinstance(b, int | float):
        return min(a, b)
    return np.minimum(a, b)


def where(condition: Any, a: Any, b: Any) -> Any:
    """Return *a* where the condition holds, *b* elsewhere."""
    if isinstance(condition, np.ndarray):
        return np.where(condition, a, b)
    return a if condition else b


def always(condition: Any) -> bool:
    """Whether it holds, for every element if there are any."""
    return bool(condition.all()) if isinstance(condition, np.ndarray) else bool(condition)


def ever(condition: Any) -> bool:
    """Whether it holds, for any element if there are some."""
    return bool(condition.any()) if isinstance(condition, np.ndarray) else bool(condition)


def first_false(condition: Any, *values: Number) -> tuple[int, ...]:
    """Return the whole *values* of the first element for which *condition* does not hold."""
    where_not, *columns = np.broadcast_arrays(np.logical_not(condition), *values)
    first = np.unravel_index(np.argmax(where_not), where_not.shape)
    return tuple(int(column[first]) for column in columns)


def product(factors: Iterable[Number]) -> Number:
    """Multiply; nothing makes 1."""
    return functools.reduce(operator.mul, factors, 1)


def floor(x: Number) -> Number:
    """Return the largest whole number that is not above."""
    return math.floor(x) if isinstance(x, int | float) else np.floor(x)


def ceil(x: Number) -> Number:
    """Return the least whole number that is not below."""
    return math.ceil(x) if isinstance(x, int | float) else np.ceil(x)


def nearest_whole(x: Number) -> Number:
    """Return the nearest whole number."""
    return round(x) if isinstance(x, int | float) else np.rint(x)


def divide(a: Any, b: Any) -> Any:
    """Divide, and keep whole what comes out whole."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return a / b
    return a // b if a % b == 0 else a / b


def log2_up(n: Number) -> Number:
    """Return the steps in which a message reaches *n*, if those that have it double each time."""
    return math.ceil(math.log2(n)) if isinstance(n, int | float) else np.ceil(np.log2(n))


def is_power_of_two(n: Number) -> Any:
    """Whether *n* is 1, 2, 4, …"""
    return math.log2(n).is_integer() if isinstance(n, int | float) else np.log2(n) % 1 == 0


def in_double(value: Any) -> Any:
    """Return *value*; in double precision if it is an array of numbers or a NumPy number."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iuf":
        return value.astype(np.float64, copy=False) if np.ndim(value) else float(value)
    return value
