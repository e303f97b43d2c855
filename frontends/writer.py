"""Writes the operators of a model: names its dimensions, makes its weights, in its formats."""

from typing import Literal, Protocol

from frontends.precision import Precision, WeightClass
from frontends.variant import AS_TRAINED, Lora
from hardware import SpecError
from opgraph.experts import AdapterEinsum
from opgraph.graph import Builder
from opgraph.operator import Add, Einsum, Elementwise, Norm, Operator, Quantize, Scale
from opgraph.tensor import Tensor


class Writer:
    """Writes the operators of one step: names dimensions, makes weights, prefixes names.

    Attributes
    ----------
    source : what cross-attention reads, in the step in which an encoder has just made it.
    tokens : the input, by number.
    numbers, derived : the dimensions so far: sizes, and expressions over others.
    inactive : dimensions of which one token uses only as much as another is large (experts).
    attention : kinds of attention, each once.
    decodes : the step is one token long; else a prompt.
    variant : adapters, a pruned cache, a window: what the checkpoint does not fix.
    absorb : whether latent attention is written in the latent space; None: where that pays.
    """

    def __init__(self, name: str, precision: Precision, norm: "NormKind") -> None:
        self.build = Builder(name)
        self.precision = precision
        self.norm_kind = norm
        self.numbers: dict[str, int] = {}
        self.derived: dict[str, str] = {}
        self.tokens = Tensor.of("tokens", "batch seq", "int32")
        self.inactive: dict[str, str] = {}
        self.attention: list[str] = []
        self.absorb: bool | None = None
        self.variant = AS_TRAINED
        self.decodes = False
        self.prefix = ""
        self.source: Tensor | None = None
        self.shared = ""
        self._quantized: dict[str, Tensor] = {}

    def again(self) -> "Writer":
        """A writer of another graph of the same model: with the dimensions that are named."""
        writer = Writer(self.build.name, self.precision, self.norm_kind)
        writer.numbers, writer.derived = self.numbers, self.derived
        writer.inactive, writer.attention = self.inactive, self.attention
        writer.absorb, writer.variant = self.absorb, self.variant
        return writer

    def dim(self, word: str, size: int, label: str = "") -> str:
        """The dimension *word* of *size*; where another size has the word, with *label*."""
        if size < 1:
            raise SpecError(f"{self.build.name}: {word} is {size}, but must be at least 1")
        if self.numbers.setdefault(word, size) == size:
            return word
        # an expression can name a qualifier only if it does not begin with a digit
        name = f"{word}.{label or f'x{size}'}"
        if self.numbers.setdefault(name, size) != size:
            name = f"{word}.x{size}"
            self.numbers[name] = size
        return name

    def derive(self, word: str, expression: str) -> str:
        """The dimension *word*, which is *expression*; numbered where the word is taken."""
        name, number = word, 1
        while self.derived.setdefault(name, expression) != expression:
            number += 1
            name = f"{word}.{number}"
        return name

    def kept(self) -> str | None:
        """The dimension that is the share of cached positions kept; None if all are."""
        if self.variant.kv_kept == 1:
            return None
        return self.derive("kept", repr(float(self.variant.kv_kept)))

    def attends(self, kind: str) -> None:
        """Note the *kind* of attention that a layer has."""
        if kind not in self.attention:
            self.attention.append(kind)

    def weight(self, name: str, dims: str, weight_class: WeightClass | None = None) -> Tensor:
        """A weight; without a class (norms, biases) in the activations' format.

        While *shared* is set, it takes the place of the prefix: layers with the same weights.
        """
        dtype = self.precision.of(weight_class) if weight_class else self.precision.activations
        return Tensor.of((self.shared or self.prefix) + name, dims, dtype, "weight")

    def cache(self, name: str, dims: str) -> Tensor:
        """A cache, in the KV cache's format."""
        return Tensor.of(self.prefix + name, dims, self.precision.kv_cache, "cache")

    def linear(
        self,
        name: str,
        x: Tensor,
        pattern: str,
        weight_class: WeightClass | None,
        bias: bool | str = False,
    ) -> Tensor:
        """A projection: the weight's dimensions are those of the pattern's second operand.

        *bias* names its dimensions where only a part of the result has one.
        """
        dims = pattern.split("->", maxsplit=1)[0].split(",")[1]
        result = pattern.split("->")[1].split()
        inputs = [
            self.entering(x, weight_class),
            self.weight(f"{name}.weight", dims, weight_class),
        ]
        if bias:
            every = " ".join(dim for dim in result if dim in dims.split())
            inputs.append(self.weight(f"{name}.bias", every if bias is True else bias))
        product = Einsum(
            name=self.prefix + name,
            inputs=tuple(inputs),
            pattern=pattern,
            dtype_out=self.precision.activations,
        )
        lora = self.variant.lora
        if lora and weight_class in lora.targets and not product.roles["batch"]:
            return self._adapted(product, x, lora)
        return self.add(product)

    def _adapted(self, product: Einsum, x: Tensor, lora: Lora) -> Tensor:
        """A projection and, beside it, the adapter of each sequence: down to its rank and up."""
        self.dim("adapters", lora.count)
        rank = self.dim("rank", lora.rank)
        (before, matrix), result = product.operands, product.result
        contracted = " ".join(dim for dim in matrix if dim in product.contracted)
        kept = " ".join(dim for dim in before if dim not in product.contracted)
        made = " ".join(dim for dim in matrix if dim not in product.contracted)
        whole = self.add(product)
        for part, source, target in (
            ("down", f"{' '.join(before)}, adapters {contracted} {rank}", f"{kept} {rank}"),
            ("up", f"{kept} {rank}, adapters {rank} {made}", " ".join(result)),
        ):
            name = f"{product.name}.lora_{part}"
            dims = source.split(",")[1]
            weight = Tensor.of(f"{name}.weight", dims, self.precision.activations, "weight")
            pattern = f"{source} -> {target}"
            x = self.add(AdapterEinsum(name=name, inputs=(x, weight), pattern=pattern))
        return self.add(Add(name=f"{product.name}.lora", inputs=(whole, x)))

    def entering(self, x: Tensor, weight_class: WeightClass | None) -> Tensor:
        """*x* in the format in which the products of a class take it, quantised once if need be."""
        wanted = self.precision.scheme(weight_class).inputs if weight_class else None
        if wanted is None or wanted.bits >= x.format.bits:
            return x
        name = f"{x.name}.{wanted}"
        if name not in self._quantized:
            self._quantized[name] = self.add(Quantize(name=name, inputs=(x,), dtype_out=wanted))
        return self._quantized[name]

    def norm(
        self,
        name: str,
        x: Tensor,
        *residual: Tensor,
        dim: str = "model",
        kind: "NormKind | None" = None,
        over: str = "",
    ) -> tuple[Tensor, ...]:
        """Normalise *x*, or its sum with *residual*; what comes out is also the sum then.

        *dim* are the weight's dimensions; none: there is no weight. *kind*: the model's own.
        *over*: what the mean is over, if not over the weight's dimensions.
        """
        inputs = [x, *residual]
        if dim:
            inputs.append(self.weight(f"{name}.weight", dim))
        if dim and (kind or self.norm_kind) == "layer":
            inputs.append(self.weight(f"{name}.bias", dim))
        return self.build.add(Norm(name=self.prefix + name, inputs=tuple(inputs), over=over))

    def elementwise(self, name: str, *inputs: Tensor, flop: float = 1.0) -> Tensor:
        """An elementwise operation with a result like the first input."""
        return self.add(Elementwise(name=self.prefix + name, inputs=inputs, flop_per_element=flop))

    def sum(self, name: str, *inputs: Tensor) -> Tensor:
        """The sum of the inputs; sums over chips may wait until after it."""
        return self.add(Add(name=self.prefix + name, inputs=inputs))

    def scale(self, name: str, x: Tensor, *factors: Tensor) -> Tensor:
        """*x* times the factors, which are whole."""
        return self.add(Scale(name=self.prefix + name, inputs=(x, *factors)))

    def add(self, operator: Operator) -> Tensor:
        """Append an operator with a single result."""
        return self.build.add(operator)[0]


# unbiased: a layer norm without a bias
NormKind = Literal["rms", "layer", "unbiased"]


class Part(Protocol):
    """A mixer or a channel of a layer."""

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Append the operators that turn the normalised *x* into what is added to the residual."""
