"""Decoders: a description in sizes becomes an operator graph in named dimensions.

A decoder is an embedding, groups of layers and a head. A layer is a mixer (how tokens see each
other) and a channel (how a token's features are mixed); each is a small frozen class that writes
its own operators. Kernels are those that serving engines launch: projections of one input are
one product, the residual sum is fused into the norm that follows it.

A layer ends with the norm that the next one begins with, so that the sum before it can be fused;
the norm of the first layer stands in the stem, and the last one's is the final norm.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from hardware import SpecError
from opgraph.graph import Builder
from opgraph.model import Model
from opgraph.operator import (
    Activation,
    Attention,
    Einsum,
    Elementwise,
    Last,
    Lookup,
    Norm,
    Rotary,
    Sample,
    View,
)
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

    def add(self, operator: "Einsum | Elementwise | Attention | Activation") -> Tensor:
        """Append an operator with a single result."""
        return self.build.add(operator)[0]


NormKind = Literal["rms", "layer"]


class Part(Protocol):
    """A mixer or a channel of a layer."""

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Append the operators that turn the normalised *x* into what is added to the residual."""


# SiLU, GELU: exponential, sum, quotient, product; one product more with a gate
_ACTIVATION_FLOP = 4
# scale, hyperbolic tangent (exponential, sum, difference, quotient), scale
_SOFTCAP_FLOP = 6


@dataclass(frozen=True, kw_only=True)
class SelfAttention:
    """Multi-head attention, grouped if *kv_heads* < *heads* (Ainslie et al. 2023).

    *window*: tokens a query looks back (0: all). *qk_norm*: queries and keys normalised over
    each ``head`` or over the ``whole`` projection. *bias*: of the q, k, v projections;
    *out_bias*: of the output's.
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0
    bias: bool = False
    out_bias: bool = False
    rotary: bool = True
    qk_norm: Literal["", "head", "whole"] = ""
    label: str = ""

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Project, rotate, attend, project back."""
        if self.heads % self.kv_heads:
            raise SpecError(
                f"{writer.build.name}: {self.heads} heads cannot share {self.kv_heads} KV heads "
                "evenly"
            )
        heads = writer.dim("heads", self.heads, self.label)
        kv_heads = writer.dim("kv_heads", self.kv_heads, self.label)
        head_dim = writer.dim("head_dim", self.head_dim, self.label)
        qkv = writer.derive("qkv", f"{heads}*{head_dim} + 2*{kv_heads}*{head_dim}")
        mixed = writer.linear(
            "qkv", x, f"batch seq model, model {qkv} -> batch seq {qkv}", "attention", self.bias
        )
        q_dims = f"batch seq {heads} {head_dim}"
        k_dims = f"batch seq {kv_heads} {head_dim}"
        parts = (("q", q_dims), ("k", k_dims), ("v", k_dims))
        split = View(name=f"{writer.prefix}split", inputs=(mixed,), parts=parts)
        query, key, value = writer.build.add(split)
        query, key = self._positions(writer, query, key)
        cache = self._caches(writer, kv_heads, head_dim)
        window = writer.dim("window", self.window, self.label) if self.window else None
        attend = Attention(
            name=f"{writer.prefix}attention", inputs=(query, key, value, *cache), window=window
        )
        return writer.linear(
            "out",
            writer.add(attend),
            f"{q_dims}, {heads} {head_dim} model -> batch seq model",
            "attention",
            self.out_bias,
        )

    def _positions(self, writer: Writer, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if self.qk_norm:
            shape = slice(-1, None) if self.qk_norm == "head" else slice(-2, None)
            query, key = (
                writer.norm(f"{name}_norm", tensor, dim=" ".join(tensor.dims[shape]))[0]
                for name, tensor in (("q", query), ("k", key))
            )
        if self.rotary:
            rotary = Rotary(name=f"{writer.prefix}rotary", inputs=(query, key))
            query, key = writer.build.add(rotary)
        return query, key

    def _caches(self, writer: Writer, kv_heads: str, head_dim: str) -> tuple[Tensor, Tensor]:
        context = "context"
        if self.window:
            window = writer.dim("window", self.window, self.label)
            context = writer.derive(f"context.{self.label or 'window'}", f"min(context, {window})")
        key, value = (
            Tensor.of(
                f"{writer.prefix}{name}_cache",
                f"batch {context} {kv_heads} {head_dim}",
                writer.precision.kv_cache,
                "cache",
            )
            for name in ("k", "v")
        )
        return key, value


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """Two projections with an activation between; *gated*: its input has a second half (GLU)."""

    ffn: int
    gated: bool = True
    bias: bool = False
    label: str = ""

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Project up, activate, project down."""
        ffn = writer.dim("ffn", self.ffn, self.label)
        wide = writer.derive("gate_up", f"2*{ffn}") if self.gated else ffn
        up = writer.linear(
            "gate_up" if self.gated else "up",
            x,
            f"batch seq model, model {wide} -> batch seq {wide}",
            "ffn",
            self.bias,
        )
        hidden = writer.add(
            Activation(
                name=f"{writer.prefix}activation",
                inputs=(up,),
                dims=f"batch seq {ffn}",
                flop_per_element=_ACTIVATION_FLOP + self.gated,
            )
        )
        return writer.linear(
            "down", hidden, f"batch seq {ffn}, {ffn} model -> batch seq model", "ffn", self.bias
        )


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A mixer and a channel, one after the other or side by side (*parallel*).

    *post_norm*: what each of them adds to the residual is normalised first (Gemma 2).
    """

    mixer: Part
    channel: Part | None = None
    parallel: bool = False
    post_norm: bool = False

    def write(self, writer: Writer, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """From this layer's normalised input and residual to the next one's."""
        delta = self._part(writer, "attention", self.mixer, x)
        if self.parallel and self.channel:
            other = self._part(writer, "ffn", self.channel, x)
            delta = writer.elementwise("branches", delta, other)
        elif self.channel:
            x, residual = writer.norm("ffn_norm", delta, residual)
            delta = self._part(writer, "ffn", self.channel, x)
        x, residual = writer.norm("next_norm", delta, residual)
        return x, residual

    def _part(self, writer: Writer, name: str, part: Part, x: Tensor) -> Tensor:
        delta = part.write(writer, x)
        return writer.norm(f"{name}_post_norm", delta)[0] if self.post_norm else delta


@dataclass(frozen=True, kw_only=True)
class Group:
    """Layers that repeat together, *count* times."""

    name: str
    count: int
    layers: tuple[Layer, ...]


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A decoder-only model in sizes.

    *positions*: rows of a learned table of positions (0: none). *tied*: the head is the
    embedding. *scaled*: the embedding is multiplied by a constant. *softcap*: logits are.
    """

    name: str
    source: str
    family: str
    model: int
    vocab: int
    groups: tuple[Group, ...]
    norm: NormKind = "rms"
    tied: bool = False
    positions: int = 0
    scaled: bool = False
    softcap: bool = False
    head_bias: bool = False

    def to_model(self, precision: Precision | None = None) -> Model:
        """The model, with its graph."""
        precision = precision or Precision()
        writer = Writer(self.name, precision, self.norm)
        for word, size in (("model", self.model), ("vocab", self.vocab)):
            writer.dim(word, size)
        x, residual = self._stem(writer)
        for group in self.groups:
            if group.count:
                x, residual = writer.build.repeat(
                    group.name, group.count, _body(writer, group), x, residual
                )
        self._head(writer, x)
        writer.build.derive(writer.derived)
        graph = writer.build.graph()
        return Model(self.name, self.source, graph, graph, writer.numbers, self.family)

    def _stem(self, writer: Writer) -> tuple[Tensor, Tensor]:
        tokens = writer.build.input(Tensor.of("tokens", "batch seq", "int32"))
        table = writer.weight("embedding.weight", "vocab model", "embedding")
        x = writer.build.add(Lookup(name="embedding", inputs=(tokens, table)))[0]
        if self.scaled:
            x = writer.elementwise("embedding_scale", x)
        if self.positions:
            writer.dim("positions", self.positions)
            places = writer.weight("positions.weight", "positions model", "embedding")
            found = writer.build.add(Lookup(name="positions", inputs=(tokens, places)))[0]
            x = writer.elementwise("embedding_sum", x, found)
        return writer.norm("norm", x)[0], x

    def _head(self, writer: Writer, x: Tensor) -> None:
        last = writer.build.add(Last(name="last", inputs=(x,)))[0]
        if self.tied:
            table = writer.weight("embedding.weight", "vocab model", "embedding")
        else:
            table = writer.weight("head.weight", "vocab model", "head")
        biases = (writer.weight("head.bias", "vocab"),) if self.head_bias else ()
        pattern = "batch model, vocab model -> batch vocab"
        logits = writer.add(Einsum(name="head", inputs=(last, table, *biases), pattern=pattern))
        if self.softcap:
            logits = writer.elementwise("softcap", logits, flop=_SOFTCAP_FLOP)
        writer.build.add(Sample(name="sample", inputs=(logits,)))


def _body(writer: Writer, group: Group):  # type: ignore[no-untyped-def]
    """The function that writes one repetition of a group."""

    def write(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        for index, layer in enumerate(group.layers):
            number = index if len(group.layers) > 1 else ""
            writer.prefix = f"{group.name}{number}."
            x, residual = layer.write(writer, x, residual)
        writer.prefix = ""
        return x, residual

    return write
