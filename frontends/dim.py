"""A dimension and its parts: an atom, the product or the sum of others; unified with its equals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from frontends.program import Size, Value


@dataclass(eq=False)
class Dim:
    """A dimension: an atom, or the product or the sum of its parts. *same* leads to its equal.

    *origin* is a weight or an input that has it, and the number of the axis.
    """

    size: Size
    parts: "tuple[Dim, ...]" = ()
    how: Literal["product", "sum"] = "product"
    same: "Dim | None" = None
    origin: tuple[Value, int] | None = field(default=None, repr=False)

    @property
    def root(self) -> "Dim":
        """What stands for all that are equal to this one."""
        found = self
        while found.same is not None:
            found = found.same
        return found

    @property
    def atoms(self) -> "tuple[Dim, ...]":
        """The factors, outermost first; a sum is one factor."""
        root = self.root
        if root.how == "sum" or not root.parts:
            return (root,)
        return tuple(atom for part in root.parts for atom in part.atoms)

    @property
    def summands(self) -> "tuple[Dim, ...]":
        """The parts one after the other; itself if it is no sum."""
        root = self.root
        if root.how == "product" or not root.parts:
            return (root,)
        return tuple(part for whole in root.parts for part in whole.summands)


class Unlike(Exception):
    """Two dimensions that are the same but do not consist of the same parts."""


def unify(one: Dim, other: Dim) -> None:
    """Make two dimensions the same.

    Raises
    ------
    Unlike : they consist of parts that have no common refinement.
    """
    one, other = one.root, other.root
    if one is other:
        return
    if one.parts and other.parts:
        if one.how != other.how:
            raise Unlike
        parts = (one.atoms, other.atoms) if one.how == "product" else (one.summands, other.summands)
        _refine(*parts, _cut_product if one.how == "product" else _cut_sum)
    elif one.parts:
        one, other = other, one
    elif not other.parts and other.origin is None:
        other.origin = one.origin
    one.same = other


Cut = Callable[[Dim, Dim], "Dim | None"]


def _refine(ones: Sequence[Dim], others: Sequence[Dim], cut: Cut) -> None:
    """Unify two sequences of parts, cutting the larger ones."""
    left, right = list(ones), list(others)
    while left and right:
        one, other = left.pop(0).root, right.pop(0).root
        if one is other:
            continue
        if one.size == other.size:
            unify(one, other)
        elif (rest := cut(one, other)) is not None:
            left.insert(0, rest)
        elif (rest := cut(other, one)) is not None:
            right.insert(0, rest)
        else:
            raise Unlike
    if left or right:
        raise Unlike


def _cut_product(whole: Dim, first: Dim) -> Dim | None:
    """Make *whole* the product of *first* and a rest, which is returned, if that is possible."""
    rest = quotient(whole.size, first.size)
    if rest is None or whole.parts:
        return None
    inner = Dim(rest)
    whole.parts, whole.how = (first, inner), "product"
    return inner


def _cut_sum(whole: Dim, first: Dim) -> Dim | None:
    """Make *whole* the sum of *first* and a rest."""
    rest = whole.size - first.size
    if whole.parts or not getattr(rest, "is_positive", rest > 0 if isinstance(rest, int) else None):
        return None
    inner = Dim(rest)
    whole.parts, whole.how = (first, inner), "sum"
    return inner


def quotient(whole: Size, part: Size) -> Size | None:
    """*whole* / *part*, where that is a size again."""
    if isinstance(whole, int) and isinstance(part, int):
        return whole // part if part > 0 and whole % part == 0 else None
    import sympy

    ratio = sympy.cancel(sympy.sympify(whole) / part)
    if sympy.denom(ratio) != 1 or ratio.has(sympy.zoo, sympy.nan):
        return None
    return int(ratio) if ratio.is_Integer else ratio
