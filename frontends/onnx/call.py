"""A node of the file with its operands: what the rules for its operators read."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from frontends.onnx.reading import excess
from frontends.program import Node, Program, Shape, Size, Value
from hardware import SpecError
from hardware.errors import shown

_LETTERS = "abcdefghijklmnopqrstuvw"


class Same(Exception):
    """Two sizes with different names were found to be the same one."""

    def __init__(self, one: Size, other: Size, error: SpecError) -> None:
        super().__init__(one, other)
        self.sizes = one, other
        self.error = error


@dataclass(frozen=True, eq=False)
class Call:
    """A node of the file.

    Attributes
    ----------
    op, version : the operator, and the version of its operator set.
    inputs : what it reads; None where an input is left out.
    made : how many outputs it names; *asked*: which of them.
    contents : the numbers of values that are known, by name.
    makers : what made each value so far.
    inferred : the shapes that onnx gives for its outputs, None where it gives none.
    """

    program: Program
    op: str
    version: int
    inputs: tuple[Value | None, ...]
    attributes: Mapping[str, Any]
    made: int
    contents: Mapping[str, Any]
    makers: Mapping[Value, Node]
    inferred: Sequence[Shape | None] = field(default=())

    def __getitem__(self, index: int) -> Value:
        value = self.get(index)
        if value is None:
            raise self.refuse(f"its input {index} is missing")
        return value

    def get(self, index: int) -> Value | None:
        """Input number *index*; None if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def needs(self, name: str) -> Any:
        """An attribute that has no default."""
        if name not in self.attributes:
            raise self.refuse(f"its attribute {name!r} is missing")
        return self.attributes[name]

    def refuse(self, what: str, way_out: str = "") -> SpecError:
        """The error for this node."""
        return self.program.refuse(f"{self.op}: {what}", way_out)

    def maker(self, value: Value) -> Node | None:
        """The node that makes a value."""
        return self.makers.get(value)

    def content(self, index: int) -> Any:
        """The numbers of an input as an array, if they are known."""
        value = self.get(index)
        return None if value is None else self.contents.get(value.name)

    def known(self, index: int, what: str) -> Any:
        """The numbers of an input that must be known."""
        self[index]
        found = self.content(index)
        if found is None:
            raise self.refuse(f"{what} (input {index}) is only known at run time")
        return found

    def numbers(self, name: str, index: int) -> list[Any] | None:
        """A list that older operator sets have as an attribute and newer ones as an input."""
        if name in self.attributes:
            value = self.attributes[name]
            return list(value) if isinstance(value, list | tuple) else [value]
        if self.get(index) is None:
            return None
        return list(self.known(index, f"its {name}").ravel().tolist())

    def axes(self, index: int) -> list[int] | None:
        """The axes, as attribute or input."""
        found = self.numbers("axes", index)
        return None if found is None else [int(axis) for axis in found]

    def axis(self, default: int, rank: int | None = None) -> int:
        """The axis, counted from the front."""
        axis = self.attribute("axis", default)
        rank = self[0].rank if rank is None else rank
        if not isinstance(axis, int) or not -rank <= axis < max(rank, 1):
            raise self.refuse(f"axis {shown(axis)} of a tensor of {rank}")
        return axis % max(rank, 1)

    def slices(self, rank: int) -> list[tuple[int, Size, Size, int]]:
        """Axis, start, stop and step of a Slice."""
        starts, ends = self.numbers("starts", 1) or [], self.numbers("ends", 2) or []
        axes = self.axes(3) or list(range(len(starts)))
        steps = [1] * len(starts)
        if self.get(4) is not None:
            steps = [int(step) for step in self.known(4, "its steps").ravel()]
        if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
            raise self.refuse("its starts, ends, axes and steps do not go together")
        if any(not -rank <= axis < rank for axis in axes):
            raise self.refuse(f"its axes {axes} are not among {rank}")
        return [(a % rank, s, e, t) for a, s, e, t in zip(axes, starts, ends, steps, strict=True)]

    def split_sizes(self, length: Size) -> list[Size]:
        """How long each part of a Split of *length* is."""
        given = self.numbers("split", 1)
        if given is not None:
            return given
        parts = self.attribute("num_outputs", self.made)
        if isinstance(length, int):
            each = -(-length // parts)
            return [max(0, min(each, length - each * i)) for i in range(parts)]
        return [length // parts] * parts

    def same(self, one: Size, other: Size, what: str) -> None:
        """Note that two sizes must be equal.

        Raises
        ------
        SpecError : they are not.
        Same : one of them is open; the walk starts again knowing that.
        """
        if one == other:
            return
        error = self.refuse(f"{what}: {one} is not {other}")
        if isinstance(one, int) and isinstance(other, int):
            raise error
        raise Same(one, other, error)

    def check(self, shape: Sequence[Size]) -> None:
        """Refuse a shape that no tensor has."""
        if wrong := excess(shape):
            raise self.refuse(wrong)

    def shaped(self, value: Value, shape: Sequence[Size | None], what: str) -> Value:
        """*value*, which must have this *shape*; None: any size."""
        if value.rank != len(shape):
            raise self.refuse(f"{what} has {value.rank} axes, not {len(shape)}")
        for size, wanted in zip(value.shape, shape, strict=True):
            if wanted is not None:
                self.same(size, wanted, what)
        return value

    def elementwise(self, fn: str, *values: Value, dtype: Any = None) -> Value:
        """An elementwise primitive, the operands' sizes compared first."""
        rank = max(value.rank for value in values)
        for axis in range(1, rank + 1):
            sizes = [v.shape[-axis] for v in values if v.rank >= axis and v.shape[-axis] != 1]
            for size in sizes[1:]:
                self.same(sizes[0], size, f"axis {rank - axis} of its operands")
        return self.program.elementwise(fn, *values, dtype=dtype)

    def scalar(self, number: float, like: Value) -> Value:
        """A constant number in the format of another value."""
        return self.program.constant(number, (), like.dtype)

    def matmul(
        self, a: Value, b: Value, turned: tuple[bool, bool] = (False, False), dtype: Any = None
    ) -> Value:
        """A product of matrices, or stacks of them, over the last two axes; *turned*: which of the
        two have these the other way round.
        """
        rank = max(a.rank, b.rank, 2) - 2
        if min(a.rank, b.rank) < 1 or rank > len(_LETTERS):
            raise self.refuse(f"a product of {a} and {b}")
        stack = _LETTERS[:rank]
        first = stack[rank - max(a.rank - 2, 0) :] + (_turn("xy", turned[0]) if a.rank > 1 else "y")
        second = stack[rank - max(b.rank - 2, 0) :] + (
            _turn("yz", turned[1]) if b.rank > 1 else "y"
        )
        result = stack + "x" * (a.rank > 1) + "z" * (b.rank > 1)
        return self.einsum(f"{first},{second}->{result}", a, b, dtype=dtype)

    def einsum(self, equation: str, *values: Value, dtype: Any = None) -> Value:
        """A product of values with equal sizes where letters are; axes of size 1 are dropped where
        another operand has more.
        """
        terms, _, result = equation.partition("->")
        parts = terms.split(",")
        if not any(value.kind == "weight" for value in values):
            plain = [self._plain(*pair) for pair in zip(parts, values, strict=True)]
            parts, values = [part for part, _ in plain], tuple(value for _, value in plain)
        sizes: dict[str, Size] = {}
        for term, value in zip(parts, values, strict=True):
            for letter, size in zip(term, value.shape, strict=True):
                if sizes.setdefault(letter, size) == 1:
                    sizes[letter] = size
                elif size != 1:
                    self.same(sizes[letter], size, "sizes that are multiplied")
        operands, kept_parts = [], []
        for term, value in zip(parts, values, strict=True):
            kept = [
                (letter, size)
                for letter, size in zip(term, value.shape, strict=True)
                if size == sizes[letter]
            ]
            kept_parts.append("".join(letter for letter, _ in kept))
            shape = [size for _, size in kept]
            operands.append(
                value if len(shape) == value.rank else self.program.reshape(value, shape)
            )
        return self.program.einsum(f"{','.join(kept_parts)}->{result}", *operands, dtype=dtype)

    def _plain(self, term: str, value: Value) -> tuple[str, Value]:
        """An operand before it was turned or scaled, as queries and keys are for attention."""
        while (node := self.maker(value)) is not None:
            operands = [v for v in node.inputs if v is not None and v.kind != "constant"]
            if len(operands) != 1 or operands[0].rank != value.rank:
                break
            if node.op == "transpose":
                term = "".join(term[node["order"].index(axis)] for axis in range(value.rank))
            elif (
                node.attributes.get("fn") not in ("mul", "div") or operands[0].shape != value.shape
            ):
                break
            value = operands[0]
        return term, value

    def reshape(self, x: Value, wanted: Sequence[Size]) -> Value:
        """*x* in another shape, of which one size may be -1."""
        self.check([n for n in wanted if n != -1])
        total, rest = _product(x.shape), _product(n for n in wanted if n != -1)
        if -1 in wanted:
            missing = self.quotient(total, rest)
            wanted = [missing if n == -1 else n for n in wanted]
        else:
            self.same(total, rest, f"elements before and after, {x.shape} and {tuple(wanted)}")
        return self.renamed(x, wanted)

    def renamed(self, x: Value, shape: Sequence[Size]) -> Value:
        """*x* in another shape of as many elements; the value that it was, if it had that shape."""
        before: Value | None = x
        while before is not None and before.shape != tuple(shape):
            node = self.maker(before)
            before = node.operand() if node is not None and node.op == "reshape" else None
        return self.program.reshape(x, shape) if before is None else before

    def quotient(self, total: Size, rest: Size) -> Size:
        """What is left of *total* elements along an axis, if the others have *rest*."""
        if isinstance(total, int) and isinstance(rest, int):
            if rest == 0 or total % rest:
                raise self.refuse(f"{total} elements do not divide by {rest}")
            return total // rest
        import sympy

        if rest == 0:
            raise self.refuse(f"{total} elements do not divide by 0")
        ratio = sympy.cancel(sympy.sympify(total) / rest)
        return as_size(ratio if sympy.denom(ratio) == 1 else total // rest)


Result = Value | Sequence[Value | None]
Rule = Callable[[Call], Result]


def as_size(number: Any) -> Size:
    """A size as an ``int`` if it is one."""
    return (
        int(number) if getattr(number, "is_Integer", not hasattr(number, "is_Symbol")) else number
    )


def _product(sizes: Any) -> Size:
    return math.prod(sizes)


def _turn(letters: str, turned: bool) -> str:
    return letters[::-1] if turned else letters
