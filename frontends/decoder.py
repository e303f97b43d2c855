"""Decoders: a description in sizes becomes an operator graph in named dimensions.

A decoder is an embedding, groups of layers and a head. A layer is a mixer (how tokens see each
other) and a channel (how a token's features are mixed); each is a small frozen class that writes
its own operators. Kernels are those that serving engines launch: projections of one input are
one product, the residual sum is fused into the norm that follows it.

A layer ends with the norm that the next one begins with, so that the sum before it can be fused;
the norm of the first layer stands in the stem, and the last one's is the final norm.
"""

from collections.abc import Callable
from dataclasses import dataclass

from frontends.writer import NormKind, Part, Precision, Writer
from opgraph.model import Model
from opgraph.operator import Einsum, Last, Lookup, Sample
from opgraph.tensor import Tensor

# scale, hyperbolic tangent (exponential, sum, difference, quotient), scale
_SOFTCAP_FLOP = 6


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


def fold(layers: list[Layer]) -> tuple[Group, ...]:
    """Layers as counted groups: runs of the shortest pattern that repeats most of them.

    A tail that does not complete the pattern is a group of its own.
    """
    for period in range(1, len(layers) + 1):
        count = 1
        while layers[count * period : (count + 1) * period] == layers[:period]:
            count += 1
        rest = layers[count * period :]
        # a pattern is worth its name if it repeats and leaves less than one period
        if len(rest) < period and (count > 1 or period == len(layers)):
            groups = (Group(name="layer", count=count, layers=tuple(layers[:period])),)
            return groups + ((Group(name="tail", count=1, layers=tuple(rest)),) if rest else ())
    raise AssertionError("a list repeats itself once")


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


def _body(writer: Writer, group: Group) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The function that writes one repetition of a group."""

    def write(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        for index, layer in enumerate(group.layers):
            number = index if len(group.layers) > 1 else ""
            writer.prefix = f"{group.name}{number}."
            x, residual = layer.write(writer, x, residual)
        writer.prefix = ""
        return x, residual

    return write
