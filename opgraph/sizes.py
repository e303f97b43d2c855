"""The numbers behind the names: how large a dimension is, whole and on one chip.

A dimension is a word of one vocabulary (``batch seq context model heads kv_heads head_dim ffn
vocab …``), if need be with a qualifier after a dot (``context.local``); how it may be split goes
by the word. A dimension may be *derived*: an expression over others, such as
``qkv = heads*head_dim + 2*kv_heads*head_dim``. Every number may be an array; all broadcast.
"""

import ast
import operator
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from hardware import Number, SpecError
from hardware.arithmetic import larger, product, smaller
from hardware.errors import nearest

Axes = tuple[str, ...]


class Expression:
    """A derived dimension: sums, differences, products, ``//``, ``min``, ``max`` of dimensions."""

    _BINARY: ClassVar[Mapping[type, Callable[..., Number]]] = {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.FloorDiv: operator.floordiv,
    }
    _CALLS: ClassVar[Mapping[str, Callable[..., Number]]] = {"min": smaller, "max": larger}

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._body = ast.parse(text, mode="eval").body
            self.names = tuple(self._find_names(self._body))
        except (SyntaxError, RecursionError):
            raise SpecError(f"{text!r} is not an expression over dimensions") from None

    def __call__(self, size: Callable[[str], Number]) -> Number:
        """The value, with *size* giving that of each name."""
        return self._value(self._body, size)

    def _find_names(self, node: ast.AST) -> list[str]:
        match node:
            case ast.Name(id=name):
                return [name]
            case ast.Attribute(value=ast.Name(id=name), attr=qualifier):
                return [f"{name}.{qualifier}"]
            case ast.Constant(value=int() | float()):
                return []
            case ast.BinOp(left=left, op=op, right=right) if type(op) in self._BINARY:
                return self._find_names(left) + self._find_names(right)
            case ast.Call(func=ast.Name(id=function), args=[first, second]) if (
                function in self._CALLS
            ):
                return self._find_names(first) + self._find_names(second)
        raise SpecError(f"{ast.unparse(node)!r} in {self.text!r} is not allowed in a dimension")

    def _value(self, node: ast.AST, size: Callable[[str], Number]) -> Number:
        match node:
            case ast.Name(id=name):
                return size(name)
            case ast.Attribute(value=ast.Name(id=name), attr=qualifier):
                return size(f"{name}.{qualifier}")
            case ast.Constant(value=int() | float() as value):
                return value
            case ast.BinOp(left=left, op=op, right=right):
                function = self._BINARY[type(op)]
                return function(self._value(left, size), self._value(right, size))
            case ast.Call(func=ast.Name(id=called), args=[first, second]):
                return self._CALLS[called](self._value(first, size), self._value(second, size))
        raise AssertionError(node)


@dataclass(frozen=True, slots=True)
class Split:
    """How one dimension may be divided among chips.

    *axes* are the plan's axes that divide it. Where it does not divide evenly, *uneven* says
    what happens: ``error`` (the plan is refused), ``replicate`` (each chip keeps at least one:
    KV heads), ``pad`` (the largest part is priced: the vocabulary, the batch), ``share`` (each
    chip has its part on average: a token's experts). *spare* axes divide it only where an
    operator that may use them (`Operator.spares`) leaves them idle.
    """

    axes: Axes
    uneven: Literal["error", "replicate", "pad", "share"] = "error"
    spare: Axes = ()


@dataclass(frozen=True)
class Sizes:
    """The numbers behind the names: every dimension whole, and its part on one chip.

    Parameters
    ----------
    numbers : size of each dimension, an integer or an array.
    derived : dimensions that are expressions over others.
    degrees : chips along each axis of the plan, an integer or an array.
    splits : how each dimension may be divided (by its word).
    """

    numbers: Mapping[str, Number]
    derived: Mapping[str, Expression] = field(default_factory=dict)
    degrees: Mapping[str, Number] = field(default_factory=dict)
    splits: Mapping[str, Split] = field(default_factory=dict)

    @cached_property
    def _known(self) -> dict[tuple[str, Axes], Number]:
        return {}

    @cached_property
    def _volumes(self) -> dict[tuple[tuple[str, ...], tuple[Axes, ...]], Number]:
        return {}

    @cached_property
    def priced(self) -> dict[Hashable, Any]:
        """What cost models have found at these sizes, and want to find only once."""
        return {}

    @cached_property
    def _parts(self) -> "dict[tuple[str, int, int], Sizes]":
        return {}

    def part(self, dim: str, which: int, parts: int) -> "Sizes":
        """The sizes of one of *parts* along *dim*: each chip's part of it is divided."""
        key = (dim, which, parts)
        if key not in self._parts:
            whole, ways = self.numbers[dim], self.ways(self.axes(dim))
            each = -(-whole // ways)
            # what is in the parts before this one, and in those up to it, on all chips
            before, after = (
                smaller(whole, ways * sum(-(-(each - i) // parts) for i in range(some)))
                for some in (which, which + 1)
            )
            numbers = {**self.numbers, dim: after - before}
            self._parts[key] = replace(self, numbers=numbers)
        return self._parts[key]

    def __getitem__(self, dim: str) -> Number:
        """The whole size of *dim*."""
        return self.local(dim, ())

    def ways(self, axes: Axes) -> Number:
        """Chips over which *axes* spread something."""
        return product(self.degrees.get(axis, 1) for axis in axes)

    def axes(self, dim: str) -> Axes:
        """The axes that may split *dim*; for a derived one, those of what it is made of."""
        if dim in self.derived:
            found = (axis for name in self.derived[dim].names for axis in self.axes(name))
            return tuple(dict.fromkeys(found))
        rule = self.splits.get(dim.partition(".")[0])
        return rule.axes if rule else ()

    def spare(self, dim: str) -> Axes:
        """The axes that may split *dim* where nothing else uses them."""
        rule = self.splits.get(dim.partition(".")[0])
        return rule.spare if rule else ()

    def local(self, dim: str, axes: Axes) -> Number:
        """The size of *dim* on one chip when *axes* split it.

        Raises
        ------
        SpecError : nothing says how large *dim* is.
        """
        key = (dim, axes)
        if key not in self._known:
            self._known[key] = self._local(dim, axes)
        return self._known[key]

    def volume(self, dims: tuple[str, ...], split: tuple[Axes, ...] = ()) -> Number:
        """The product of the sizes of *dims* on one chip, each split by its axes in *split*."""
        key = (dims, split)
        if key not in self._volumes:
            pairs = zip(dims, split or ((),) * len(dims), strict=True)
            self._volumes[key] = product(self.local(dim, axes) for dim, axes in pairs)
        return self._volumes[key]

    def _local(self, dim: str, axes: Axes) -> Number:
        if dim in self.derived:
            return self.derived[dim](
                lambda name: self.local(name, tuple(a for a in axes if a in self.axes(name)))
            )
        if dim not in self.numbers:
            raise SpecError(f"no size for the dimension {dim!r}{nearest(dim, list(self.numbers))}")
        whole = self.numbers[dim]
        if not axes:
            return whole
        rule, ways = self.splits[dim.partition(".")[0]], self.ways(axes)
        if rule.uneven == "pad":
            return -(-whole // ways)
        if rule.uneven == "share":
            return whole / ways
        part = whole // ways if isinstance(whole, int) and isinstance(ways, int) else whole / ways
        return larger(part, 1) if rule.uneven == "replicate" else part
