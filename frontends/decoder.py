"""Decoders: a description in sizes becomes an operator graph in named dimensions.

A decoder is an embedding, groups of layers and a head. A layer is a mixer (how tokens see each
other) and a channel (how a token's features are mixed); each is a small frozen class that writes
its own operators. Kernels are those that serving engines launch: projections of one input are
one product, the residual sum is fused into the norm that follows it.

A layer ends with the norm that the next one begins with, so that the sum before it can be fused;
the norm of the first layer stands in the stem, and the last one's is the final norm.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from frontends.encoder import Encoder
from frontends.hyper import HyperLayer, expand, merge
from frontends.precision import Precision
from frontends.variant import AS_TRAINED, Variant
from frontends.writer import NormKind, Part, Writer
from hardware import SpecError
from hardware.errors import nearest
from opgraph.graph import Graph
from opgraph.model import Model
from opgraph.operator import Einsum, Last, Lookup, Sample
from opgraph.tensor import Tensor

# scale, hyperbolic tangent (exponential, sum, difference, quotient), scale
_SOFTCAP_FLOP = 6

Absorb = bool | Mapping[str, bool] | None


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A mixer and a channel, one after the other or side by side (*parallel*); or one of them.

    *own_norms*: side by side, each has a norm of its own. *pre_norm*: what they read is
    normalised; *post_norm*: what they add to the residual is (Gemma 2: both). *scalar*: the
    layer's result is multiplied by a learned number (Gemma 4).
    """

    mixer: Part | None = None
    channel: Part | None = None
    parallel: bool = False
    own_norms: bool = False
    pre_norm: bool = True
    post_norm: bool = False
    scalar: bool = False

    def write(self, writer: Writer, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """From this layer's normalised input and residual to the next one's."""
        parts = [(n, p) for n, p in (("attention", self.mixer), ("ffn", self.channel)) if p]
        if self.parallel:
            x, residual = self._side_by_side(writer, parts, x, residual)
        else:
            for index, (name, part) in enumerate(parts):
                following = "next" if index == len(parts) - 1 else parts[index + 1][0]
                delta = self._part(writer, name, part, x)
                x, residual = self._join(writer, following, delta, residual)
        if self.scalar:
            factor = writer.weight("scalar.weight", writer.dim("one", 1))
            residual = writer.scale("scalar", residual, factor)
        return x, residual

    def _side_by_side(
        self, writer: Writer, parts: list[tuple[str, Part]], x: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor]:
        deltas = []
        for index, (name, part) in enumerate(parts):
            own = writer.norm(f"{name}_norm", residual)[0] if index and self.own_norms else x
            deltas.append(self._part(writer, name, part, own))
        return self._join(writer, "next", writer.sum("branches", *deltas), residual)

    def _join(
        self, writer: Writer, name: str, delta: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add to the residual, and normalise for what follows."""
        if not self.pre_norm:
            total = writer.sum(f"{name}_residual", delta, residual)
            return total, total
        x, residual = writer.norm(f"{name}_norm", delta, residual)
        return x, residual

    def _part(self, writer: Writer, name: str, part: Part, x: Tensor) -> Tensor:
        delta = part.write(writer, x)
        return writer.norm(f"{name}_post_norm", delta)[0] if self.post_norm else delta


@dataclass(frozen=True, kw_only=True)
class Group:
    """Layers that repeat together, *count* times."""

    name: str
    count: int
    layers: tuple[Layer | HyperLayer, ...]


def fold(layers: Sequence[Layer | HyperLayer]) -> tuple[Group, ...]:
    """Layers as counted groups, so that as few as possible are written out.

    Three dense layers and 58 with experts are two groups; a local and a global one in turn are
    one group of two. A group is called by the layers that it stands for: ``layers3-60``.
    """
    kinds = {layer: number for number, layer in enumerate(dict.fromkeys(layers))}
    alike = len(kinds) == 1
    best = [(1, len(layers))] if alike else _cheapest([kinds[layer] for layer in layers])
    groups: list[Group] = []
    start = 0
    while start < len(layers):
        period, count = best[start]
        end = start + period * count
        name = f"layers{start}-{end - 1}" if end - start > 1 else f"layers{start}"
        name = "layer" if end - start == len(layers) else name
        groups.append(Group(name=name, count=count, layers=tuple(layers[start : start + period])))
        start = end
    return tuple(groups)


def _cheapest(kinds: list[int]) -> list[tuple[int, int]]:
    """Period and count of the group that begins at each layer, if all that follows is cheapest.

    The cost is the layers written out, then the groups; of equal costs the one with more
    repetitions, then the shorter period. Cost and repetitions are digits of one number, so that
    all periods are compared at once.
    """
    length = len(kinds)
    digit = length + 1
    written, group = digit**2, digit
    costs = np.zeros(length + 1, np.int64)
    # by start and period: the cost with the period's best number of repetitions, less that number
    best = np.zeros((length + 1, length + 1), np.int64)
    # by place: how many layers from there are as those from the start on
    alike = np.zeros(length + 2, np.int64)
    layers = np.array(kinds)
    chosen = [(1, 1)] * length
    for start in reversed(range(length)):
        alike[:length] = np.where(layers == layers[start], alike[1 : length + 1] + 1, 0)
        periods = np.arange(1, length - start + 1)
        ends = start + periods
        once = costs[ends] + periods * written + group - 1
        again = best[ends, periods] - 1
        repeats = alike[ends] >= periods
        found = np.where(repeats, np.minimum(once, again), once)
        if repeats[0]:  # equal layers in a row are never parted
            found[0] = again[0]
        best[start, periods] = found
        period = int(np.argmin(found))
        count = int(-found[period] % digit)
        costs[start] = found[period] + count
        chosen[start] = (period + 1, count)
    return chosen


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A decoder in sizes, and the encoder whose features it reads, if there is one.

    *positions*: rows of a learned table of positions (0: none). *tied*: the head is the
    embedding. *scaled*: the embedding is multiplied by a constant; *embedding_norm*: it is
    normalised. *softcap*: logits are. *pre_norm*: as of its layers. *streams*: residuals side by
    side, mixed by hyper-connections (0: one, plain).
    *extra_tokens*: rows of the embedding that the head has not (placeholders for images).
    *encodes_prompt*: the prompt goes to the encoder.
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
    embedding_norm: bool = False
    softcap: bool = False
    head_bias: bool = False
    extra_tokens: int = 0
    encoder: Encoder | None = None
    encodes_prompt: bool = False
    pre_norm: bool = True
    streams: int = 0

    def to_model(
        self,
        precision: Precision | None = None,
        absorb: Absorb = None,
        variant: Variant = AS_TRAINED,
    ) -> Model:
        """The model, with its graphs; an encoder runs in the prefill step only.

        *absorb*: whether latent attention runs in the latent space, in both phases or by phase
        (``{"prefill": False, "decode": True}``); where that pays if not given.

        Raises
        ------
        SpecError : *absorb* names something that is no phase, or asks for what a model without
            latent attention cannot do; an adapter wider than the model.
        """
        if variant.lora and variant.lora.rank > self.model:
            raise SpecError(
                f"lora: rank {variant.lora.rank} is more than the width {self.model} of {self.name}"
            )
        writer = Writer(self.name, precision or Precision(), self.norm)
        writer.decodes, writer.absorb = True, _choice(absorb, "decode")
        writer.variant = variant
        for word, size in (("model", self.model), ("vocab", self.vocab)):
            writer.dim(word, size)
        decode = self._graph(writer)
        writer = writer.again()
        writer.absorb = _choice(absorb, "prefill")
        prefill = self._graph(writer, self.encoder)
        asked = any(_choice(absorb, phase) for phase in ("prefill", "decode"))
        if asked and not any("MLA" in kind for kind in writer.attention):
            raise SpecError(f"absorb={absorb!r}: {self.name} has no latent attention; leave it out")
        alike = prefill.blocks == decode.blocks
        return Model(
            self.name,
            self.source,
            prefill,
            prefill if alike else replace(decode, derived=prefill.derived),
            writer.numbers,
            self.family,
            " + ".join(writer.attention),
            writer.inactive,
            self.encodes_prompt,
        )

    def _graph(self, writer: Writer, encoder: Encoder | None = None) -> Graph:
        features = encoder.write(writer) if encoder else ()
        if encoder and encoder.into == "attention":
            writer.source = encoder.joined(writer, features[0])
            features = ()
        x, residual = self._stem(writer, features)
        for group in self.groups:
            if group.count:
                x, residual = writer.build.repeat(
                    group.name, group.count, _body(writer, group), x, residual
                )
        self._head(writer, x)
        writer.build.derive(writer.derived)
        return writer.build.graph()

    def _stem(self, writer: Writer, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        tokens = writer.build.input(writer.tokens)
        rows = writer.dim("vocab", self.vocab + self.extra_tokens, "embedding")
        table = writer.weight("embedding.weight", f"{rows} model", "embedding")
        x = writer.build.add(Lookup(name="embedding", inputs=(tokens, table)))[0]
        if self.scaled:
            x = writer.elementwise("embedding_scale", x)
        if self.embedding_norm:
            x = writer.norm("embedding_norm", x)[0]
        if self.positions:
            writer.dim("positions", self.positions)
            places = writer.weight("positions.weight", "positions model", "embedding")
            found = writer.build.add(Lookup(name="positions", inputs=(tokens, places)))[0]
            x = writer.elementwise("embedding_sum", x, found)
        if self.encoder:
            x = self.encoder.insert(writer, x, features)
        if self.streams:
            x = expand(writer, x, self.streams)
        return (writer.norm("norm", x)[0] if self._normed else x), x

    @property
    def _normed(self) -> bool:
        """Whether each layer leaves a normalised input to what follows it."""
        return self.pre_norm and not self.streams

    def _head(self, writer: Writer, x: Tensor) -> None:
        if self.streams:
            x = merge(writer, x)
        if not self._normed:
            x = writer.norm("norm", x)[0]
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
            number = f".{index}" if len(group.layers) > 1 else ""
            writer.prefix = f"{group.name}{number}."
            writer.build.layer()
            x, residual = layer.write(writer, x, residual)
        writer.prefix = ""
        return x, residual

    return write


def _choice(absorb: Absorb, phase: str) -> bool | None:
    """What *absorb* says of *phase*."""
    if not isinstance(absorb, Mapping):
        return absorb
    phases = ("prefill", "decode")
    for name in absorb:
        if name not in phases:
            raise SpecError(f"absorb={dict(absorb)!r}: {name!r} is no phase{nearest(name, phases)}")
    return absorb.get(phase)
