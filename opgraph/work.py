"""What an operator is: a vertex of the graph, and the work that it asks of a chip."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from itertools import count
from typing import Any, ClassVar, Literal, NamedTuple

from hardware import Number
from hardware.arithmetic import product
from opgraph.sizes import Axes, Sizes
from opgraph.tensor import Format, Tensor

Basis = Callable[[str], frozenset[str]]
"""What a dimension is made up of: itself, or what its expression is over."""


@dataclass(frozen=True, slots=True)
class Work:
    """What an operator asks of one chip; adds up and scales.

    Attributes
    ----------
    flop : floating-point operations (a multiply–add is two).
    read, written : bytes from and to the chip's memory.
    sent : bytes of the buffer that a chip brings to a collective.
    unpacked : of *flop*'s operands, the weights that the vector units convert to the format of
        the product before it (weight-only quantisation).
    """

    flop: Number = 0
    read: Number = 0
    written: Number = 0
    sent: Number = 0
    unpacked: Number = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.flop + other.flop,
            self.read + other.read,
            self.written + other.written,
            self.sent + other.sent,
            self.unpacked + other.unpacked,
        )

    def __mul__(self, factor: Number) -> "Work":
        return Work(
            self.flop * factor,
            self.read * factor,
            self.written * factor,
            self.sent * factor,
            self.unpacked * factor,
        )

    @property
    def moved(self) -> Number:
        """Bytes through the chip's memory."""
        return self.read + self.written

    @property
    def intensity(self) -> Number:
        """FLOP per byte of memory traffic."""
        return self.flop / self.moved


class Part(NamedTuple):
    """One of *parts* along the dimension *dim*, *which* of them: they are equal, but for the first
    ones, which are one larger where it does not divide evenly.
    """

    dim: str
    which: int
    parts: int


@dataclass(frozen=True, kw_only=True)
class Operator(ABC):
    """A vertex of the graph: named inputs in, named outputs out.

    *layout* says, in a sharded graph, which axes split each dimension that it runs over; *given*
    names a dimension without which the operator does not run: where it is 0, it takes no time;
    *part*: it does only that part of what its dimensions say; *awaits*: tensors that must be there
    before it starts, although it does not read them. Nothing that it asks for depends on names but
    those of dimensions: operators that are alike but for theirs are laid out and priced once.

    What a kind of operator is, besides: the *stream* it runs on and the *unit* that computes it;
    *whole*: dimensions it needs whole; *spares*: those that may use idle axes; *idle*: those
    whose axes it leaves to what follows; *in_place*: its outputs take no memory of their own, each
    lies where the input at its place does; *is_view*: it costs nothing.
    """

    name: str
    inputs: tuple[Tensor, ...]
    layout: Mapping[str, Axes] = field(default_factory=dict, compare=False, repr=False)
    given: str = ""
    part: Part | None = None
    awaits: tuple[str, ...] = ()

    kind: ClassVar[str]
    stream: ClassVar[Literal["compute", "communication", "copy"]] = "compute"
    unit: ClassVar[Literal["matrix", "vector"]] = "vector"
    whole: ClassVar[frozenset[str]] = frozenset()
    spares: ClassVar[frozenset[str]] = frozenset({"batch", "seq"})
    idle: ClassVar[frozenset[str]] = frozenset()
    in_place: ClassVar[bool] = False
    is_view: ClassVar[bool] = False

    @property
    @abstractmethod
    def outputs(self) -> tuple[Tensor, ...]:
        """What comes out; the first is named after the operator."""

    @property
    def contracted(self) -> frozenset[str]:
        """Dimensions summed over: where they are split, the result is partial."""
        return frozenset()

    @property
    def follows(self) -> Mapping[str, str]:
        """Dimensions that are split as another one is, whatever they are called."""
        return {}

    @property
    def summands(self) -> tuple[Tensor, ...]:
        """Inputs in whose sum the outputs are linear: where all of them are partial over the same
        axes, the sum over chips may wait until after the operator.
        """
        return ()

    @property
    def statistics(self) -> tuple[str, ...]:
        """Dimensions over which the first input's mean or the like is taken before anything else:
        where they are split, the chips exchange it.
        """
        return ()

    def wants(self, tensor: Tensor, layout: Mapping[str, Axes]) -> Mapping[str, Axes]:
        """The layout in which it takes an input, where its own is *layout*."""
        return layout

    def complaint(self, basis: Basis) -> str:
        """What does not agree among the inputs' dimensions; empty if nothing is wrong."""
        return ""

    def flop(self, sizes: Sizes) -> Number:
        """Floating-point operations on one chip."""
        return 0

    def work(self, sizes: Sizes) -> Work:
        """What the operator asks of one chip: every input read once, every output written once."""
        return Work(
            self.flop(sizes),
            sum(tensor.nbytes(sizes) for tensor in self.inputs),
            sum(tensor.nbytes(sizes) for tensor in self.outputs),
        )

    @cached_property
    def likeness(self) -> int:
        """A number that operators have in common which differ in nothing but names: at the same
        sizes they ask for the same work.
        """
        named = ("name", "inputs", "layout", "awaits")
        own = (getattr(self, f.name) for f in fields(self) if f.name not in named)
        inputs = ((t.dims, t.format, t.role, t.split, t.partial) for t in self.inputs)
        layout = tuple(self.layout.items())
        try:
            return _number_of((type(self), *inputs, layout, *own))
        except TypeError:  # what cannot be compared is like nothing else
            return next(_NUMBERS)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: all but the likeness, whose numbers are those of a process."""
        return {name: value for name, value in self.__dict__.items() if name != "likeness"}

    @property
    def dtype(self) -> str:
        """The chip's rate that the arithmetic uses: that of the first input."""
        given = self.inputs[0].format
        return given.compute or given.name

    @property
    def activations(self) -> tuple[Tensor, ...]:
        """The inputs that other operators produce."""
        return tuple(tensor for tensor in self.inputs if tensor.role == "activation")

    def size(self, sizes: Sizes, *dims: str) -> Number:
        """Product of the sizes of *dims* on one chip."""
        return product(sizes.local(dim, self.layout.get(dim, ())) for dim in dims)

    @property
    def partial(self) -> Axes:
        """The axes over whose chips the outputs have still to be summed."""
        split = [axis for dim in sorted(self.contracted) for axis in self.layout.get(dim, ())]
        passed = [axis for tensor in self.activations for axis in tensor.partial]
        return tuple(dict.fromkeys(split + passed))

    def _make(self, name: str, dims: tuple[str, ...], dtype: Format) -> Tensor:
        return Tensor(name, dims, dtype).laid_out(self.layout, self.partial)

    def __str__(self) -> str:
        inputs = ", ".join(
            tensor.name if tensor.role == "activation" else str(tensor) for tensor in self.inputs
        )
        return f"{', '.join(map(str, self.outputs))} = {self.kind}({inputs})"


def unlike(tensors: Iterable[Tensor], known: Iterable[str], basis: Basis) -> str:
    """What to say of the first of *tensors* with a dimension that *known* ones do not make up."""
    known = tuple(known)
    made_up = frozenset[str]().union(*map(basis, known))
    for tensor in tensors:
        for dim in tensor.dims:
            if not basis(dim) <= made_up:
                return f"{dim!r} of {tensor} is not among [{' '.join(known)}]"
    return ""


_NUMBERS = count()


@lru_cache(maxsize=1 << 16)
def _number_of(likeness: Hashable) -> int:
    """A number of its own for each *likeness* of operators."""
    return next(_NUMBERS)
