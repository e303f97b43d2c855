"""Writes the operators of a model: names its dimensions, makes its weights, in its formats."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from hardware import SpecError
from opgraph.graph import Builder
from opgraph.operator import Einsum, Elementwise, Norm, Operator
from opgraph.tensor import Format, Tensor, as_format

WeightClass = Literal["attention", "ffn", "experts", "head", "embedding"]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The number format of each class of tensors.

    *weights* holds for every matrix that has no entry of its own in *classes*; norms and biases
    stay in the activations' format.
    """

    weights: str | Format = "bf16"
    activations: str | Format = "bf16"
    kv_cache: str | Format = "bf16"
    classes: Mapping[WeightClass, str | Format] = field(default_factory=dict)

    def of(self, weight_class: WeightClass) -> Format:
        """The format of the matrices of a class."""
        return as_format(self.classes.get(weight_class, self.weights))


class Writer:
    """Writes the operators of one model: names dimensions, makes weights, prefixes names."""

    def __init__(self, name: str, precision: Precision, norm: "NormKind") -> None:
        self.build = Builder(name)
        self.precision = precision
        self.norm_kind = norm
        self.numbers: dict[str, int] = {}
        self.derived: dict[str, str] = {}
        self.prefix = ""

    def dim(self, word: str, size: int, label: str = "") -> str:
        """The dimension *word* of *size*; where another size has the word, with *label*."""
        if size < 1:
            raise SpecError(f"{self.build.name}: {word} is {size}, but must be at least 1")
        if self.numbers.setdefault(word, size) == size:
            return word
        name = f"{word}.{label or size}"
        if self.numbers.setdefault(name, size) != size:
            name = f"{word}.{size}"
            self.numbers[name] = size
        return name

    def derive(self, word: str, expression: str) -> str:
        """The dimension *word*, which is *expression*; numbered where the word is taken."""
        name, number = word, 1
        while self.derived.setdefault(name, expression) != expression:
            number += 1
            name = f"{word}.{number}"
        return name

    def weight(self, name: str, dims: str, weight_class: WeightClass | None = None) -> Tensor:
        """A weight; without a class (norms, biases) in the activations' format."""
        dtype = self.precision.of(weight_class) if weight_class else self.precision.activations
        return Tensor.of(self.prefix + name, dims, dtype, "weight")

    def linear(
        self, name: str, x: Tensor, pattern: str, weight_class: WeightClass, bias: bool = False
    ) -> Tensor:
        """A projection: the weight's dimensions are those of the pattern's second operand."""
        dims = pattern.split("->", maxsplit=1)[0].split(",")[1]
        result = pattern.split("->")[1].split()
        inputs = [x, self.weight(f"{name}.weight", dims, weight_class)]
        if bias:
            inputs.append(
                self.weight(f"{name}.bias", " ".join(d for d in result if d in dims.split()))
            )
        return self.add(Einsum(name=self.prefix + name, inputs=tuple(inputs), pattern=pattern))

    def norm(
        self, name: str, x: Tensor, *residual: Tensor, dim: str = "model"
    ) -> tuple[Tensor, ...]:
        """Normalise *x*, or its sum with *residual*; what comes out is also the sum then."""
        inputs = [x, *residual, self.weight(f"{name}.weight", dim)]
        if self.norm_kind == "layer":
            inputs.append(self.weight(f"{name}.bias", dim))
        return self.build.add(Norm(name=self.prefix + name, inputs=tuple(inputs)))

    def elementwise(self, name: str, *inputs: Tensor, flop: float = 1.0) -> Tensor:
        """An elementwise operation with a result like the first input."""
        return self.add(Elementwise(name=self.prefix + name, inputs=inputs, flop_per_element=flop))

    def add(self, operator: Operator) -> Tensor:
        """Append an operator with a single result."""
        return self.build.add(operator)[0]


NormKind = Literal["rms", "layer"]


class Part(Protocol):
    """A mixer or a channel of a layer."""

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Append the operators that turn the normalised *x* into what is added to the residual."""
