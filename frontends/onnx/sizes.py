"""The open sizes of a file: what its names for them mean, as given, by custom or as learned."""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from frontends.program import Shape, Size
from hardware import SpecError
from hardware.errors import nearest, shown

if TYPE_CHECKING:
    from onnx import GraphProto, ValueInfoProto

# what a simulation binds: sequences, the new tokens of each, all tokens attended to
OWN = ("batch", "seq", "context")
_PAST = "context - seq"
# names that exporters give: optimum, onnxruntime-genai, the examples of torch.onnx
CUSTOMARY: Mapping[str, str] = {
    **dict.fromkeys(("batch", "batch_size", "n"), "batch"),
    **dict.fromkeys(("seq", "seq_len", "seq_length", "sequence", "sequence_length"), "seq"),
    "decoder_sequence_length": "seq",
    **dict.fromkeys(("past_sequence_length", "past_decoder_sequence_length"), _PAST),
    **dict.fromkeys(("past_seq_len", "past_length", "past_sliding_length"), _PAST),
    **dict.fromkeys(("total_sequence_length", "total_sliding_length"), "context"),
    "encoder_sequence_length": "source",
}
# what the axes of an input are, by its name, where the file calls them s0, s1 … (torch.export)
_ROLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(decoder_)?input_ids|tokens|position_ids", ("batch", "seq")),
    (r"(decoder_)?inputs_embeds", ("batch", "seq", "")),
    (r"attention_mask", ("batch", "context")),
    (r".*(past|cache).*", ("batch", "", _PAST, "")),
)
_OPERATIONS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def symbol(name: str) -> Size:
    """The open size *name*: a whole number of at least 1."""
    from sympy import Symbol

    return Symbol(name, integer=True, positive=True)


@dataclass(frozen=True)
class Sizes:
    """What each open size of a file stands for: a number, or an expression over others.

    Attributes
    ----------
    given : what the user says, by the file's own names.
    roles : what a name means by the place where an input has it.
    learned : open sizes that operators show to be the same as another one.
    fixed : what a simulation would bind, but the file has as a number.
    cached : there are keys and values of past tokens; without, what is attended to is what is new.
    """

    file: str
    given: Mapping[str, str | int] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    learned: Mapping[Size, Size] = field(default_factory=dict)
    fixed: Mapping[str, int] = field(default_factory=dict)
    cached: bool = False

    @classmethod
    def of(cls, graph: "GraphProto", file: str, given: Mapping[str, str | int]) -> "Sizes":
        """The sizes of the inputs of *graph*.

        Raises
        ------
        SpecError : *given* has a name that is not among them.
        """
        made = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in made]
        axes = [axis for value in inputs for axis in zip(_dims(value), _labels(value), strict=True)]
        fixed = {role: dim.dim_value for dim, (_, role) in axes[::-1] if dim.dim_value > 0}
        open_ = {label: role for dim, (label, role) in axes[::-1] if _is_open(dim, label)}
        roles = {label: role for label, role in open_.items() if role and label not in CUSTOMARY}
        known = {word: word for label in open_ for word in _parts(label)}
        known |= {_word(label): label for label in open_} | {label: label for label in open_}
        for name in given:
            if name not in known:
                raise SpecError(f"{file}: no open size is called {name!r}{nearest(name, known)}")
        given = {known[name]: meaning for name, meaning in given.items()}
        cached = any(_role(value)[2:3] == (_PAST,) for value in inputs)
        if cached and "seq" in fixed:
            raise SpecError(
                f"{file}: it reads {fixed['seq']} token at a time, so that prompts cannot be "
                "simulated; export it with an open number of new tokens"
            )
        return cls(file, given, roles, fixed=fixed, cached=cached)

    def shape(self, value: "ValueInfoProto") -> Shape:
        """The shape of an input."""
        return tuple(
            dim.dim_value if dim.dim_value > 0 else self.parse(label)
            for dim, (label, _) in zip(_dims(value), _labels(value), strict=True)
        )

    def parse(self, text: str) -> Size:
        """The size that the file calls *text*: a name, or sums and products of names and numbers.

        What is no such expression is a name.
        """
        if text in self.given:
            return self.settle(self._named(text))
        try:
            return self.settle(_evaluate(text, self._named))
        except _NoExpression:
            return self.settle(self._named(text))

    def _named(self, name: str) -> Size:
        meaning = self.given.get(name, CUSTOMARY.get(name.lower(), self.roles.get(name)))
        if meaning is None:
            return symbol(_word(name))
        try:
            return _evaluate(str(meaning), self._meant)
        except _NoExpression:
            raise SpecError(
                f"{self.file}: {name}={shown(meaning)} is neither a number nor an expression "
                f"over {', '.join(OWN)}"
            ) from None

    def _meant(self, word: str) -> Size:
        word = "seq" if word == "context" and not self.cached else word
        return self.fixed.get(word) or symbol(word)

    def settle(self, size: Size) -> Size:
        """*size* with everything learned put in; a plain number where nothing is open."""
        if isinstance(size, int):
            return size
        for _ in self.learned:
            size = size.subs(self.learned)
        return int(size) if size.is_Integer else size

    def learn(self, one: Size, other: Size) -> "Sizes | None":
        """The sizes if *one* and *other* are the same; None if that cannot be."""
        for free, value in ((one, other), (other, one)):
            if getattr(free, "is_Symbol", False) and free.name not in OWN:
                if free in getattr(value, "free_symbols", ()):
                    return None
                return replace(self, learned={**self.learned, free: value})
        return None


class _NoExpression(Exception):
    """What should be an expression over sizes is none."""


def _evaluate(text: str, named: Callable[[str], Size]) -> Size:
    """The value of an expression, with *named* giving that of each name."""

    def value(node: ast.AST) -> Size:
        match node:
            case ast.Constant(value=int() as number) if not isinstance(number, bool):
                return number
            case ast.Name(id=name):
                return named(name)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
                return _OPERATIONS[type(op)](value(left), value(right))
        raise _NoExpression

    try:
        return value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError, ZeroDivisionError) as error:
        raise _NoExpression from error


def _is_open(dim: Any, label: str) -> bool:
    return not (dim.dim_value > 0 or label.isdigit())


def _parts(label: str) -> list[str]:
    """The names in a size that is an expression."""
    return re.findall(r"[^\W\d]\w*", label) if re.search(r"[-+*/]", label) else []


def _word(name: str) -> str:
    """*name* as a word that can stand in an expression."""
    return re.sub(r"\W", "_", f"_{name}" if name[:1].isdigit() else name)


def _dims(value: "ValueInfoProto") -> list[Any]:
    return list(value.type.tensor_type.shape.dim)


def _labels(value: "ValueInfoProto") -> list[tuple[str, str]]:
    """What each axis of an input is called, and what it is by its place.

    An axis without a name is called after the input: ``x_2``.
    """
    named = (dim.dim_param.replace("?", "") for dim in _dims(value))
    labels = [name or f"{value.name}_{axis}" for axis, name in enumerate(named)]
    return list(zip(labels, _role(value) or ("",) * len(labels), strict=True))


def _role(value: "ValueInfoProto") -> tuple[str, ...]:
    rank = len(_dims(value))
    found = (r for pattern, r in _ROLES if re.fullmatch(pattern, value.name) and len(r) == rank)
    return next(found, ())
