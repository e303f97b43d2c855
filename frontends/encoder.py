"""Encoders: images, sound or text become features that a decoder reads.

An encoder is a stem (patches or frames become vectors), layers in which every position sees every
other, and a neck (what the decoder wants to read). It runs in the prefill step only. Its
dimensions carry its *label* (``model.vision heads.vision``), where they are not the decoder's.
"""

from dataclasses import dataclass, replace
from typing import Literal, Protocol

from frontends.channels import FeedForward
from frontends.precision import WeightClass
from frontends.writer import NormKind, Part, Writer
from opgraph.encoding import Insert, UnmaskedAttention
from opgraph.operator import Rotary, View
from opgraph.tensor import Tensor


class Stem(Protocol):
    """What turns an input into vectors."""

    def write(self, writer: Writer) -> Tensor:
        """Append its operators; the positions' vectors."""


class Neck(Protocol):
    """What turns the encoder's vectors into what the decoder reads."""

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Append its operators; the features."""


@dataclass(frozen=True, kw_only=True)
class EncoderAttention:
    """Attention without a mask or a cache.

    *bias*: of queries, keys and values; *key_bias*: of the keys among them; *out_bias*: of the
    output. *window*: neighbouring positions that see each other (0: all do).
    """

    heads: int
    head_dim: int
    bias: bool = True
    key_bias: bool = True
    out_bias: bool = True
    rotary: bool = False
    qk_norm: bool = False
    window: int = 0
    label: str = "vision"

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Project, rotate, attend, project back."""
        *places, model = x.dims
        tokens = " ".join(places)
        heads = writer.dim("heads", self.heads, self.label)
        head_dim = writer.dim("head_dim", self.head_dim, self.label)
        shape = f"{self._windows(writer, places)} {heads} {head_dim}"
        mixed = project(writer, "qkv", x, (heads, heads, heads), head_dim, self._biases)
        parts = tuple((name, shape) for name in "qkv")
        split = View(name=f"{writer.prefix}split", inputs=(mixed,), parts=parts)
        query, key, value = writer.build.add(split)
        if self.qk_norm:
            query = writer.norm("q_norm", query, dim=head_dim)[0]
            key = writer.norm("k_norm", key, dim=head_dim)[0]
        if self.rotary:
            rotary = Rotary(name=f"{writer.prefix}rotary", inputs=(query, key))
            query, key = writer.build.add(rotary)
        attend = UnmaskedAttention(name=f"{writer.prefix}attention", inputs=(query, key, value))
        result = writer.add(attend)
        joined = f"{tokens} {heads} {head_dim}"
        if self.window:
            view = View(name=f"{writer.prefix}join", inputs=(result,), parts=(("", joined),))
            result = writer.add(view)
        pattern = f"{joined}, {heads} {head_dim} {model} -> {tokens} {model}"
        return writer.linear("out", result, pattern, "attention", self.out_bias)

    @property
    def _biases(self) -> int:
        return (2 + self.key_bias) * self.bias

    def _windows(self, writer: Writer, places: list[str]) -> str:
        if not self.window:
            return " ".join(places)
        near = writer.dim("window_patches", self.window)
        windows = writer.derive("windows", f"({places[-1]} + {near} - 1) // {near}")
        return " ".join((*places[:-1], windows, near))


def project(
    writer: Writer, name: str, x: Tensor, heads: tuple[str, ...], head_dim: str, biases: int
) -> Tensor:
    """One projection to several sets of heads side by side; *biases* of the sets have a bias."""
    *places, model = x.dims
    tokens = " ".join(places)
    width = writer.derive(name, _width(heads, head_dim))
    bias = writer.derive(name, _width(heads[:biases], head_dim)) if biases else False
    pattern = f"{tokens} {model}, {model} {width} -> {tokens} {width}"
    return writer.linear(name, x, pattern, "attention", bias)


def _width(heads: tuple[str, ...], head_dim: str) -> str:
    return " + ".join(f"{count}*{head_dim}" for count in heads)


@dataclass(frozen=True, kw_only=True)
class EncoderLayer:
    """Attention and a feed-forward channel, each after a norm.

    *post_norm*: what each adds is normalised first. *gated*: it is multiplied by a learned gate.
    """

    attention: Part
    ffn: FeedForward
    norm: NormKind = "layer"
    post_norm: bool = False
    gated: bool = False

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """From the layer's input to the next one's."""
        width = x.dims[-1]
        normed = writer.norm("attention_norm", x, dim=width)[0]
        delta = self._added(writer, "attention", self.attention.write(writer, normed))
        normed, x = writer.norm("ffn_norm", delta, x, dim=width)
        delta = self._added(writer, "ffn", self.ffn.write(writer, normed))
        return writer.elementwise("sum", x, delta)

    def _added(self, writer: Writer, name: str, delta: Tensor) -> Tensor:
        if self.post_norm:
            delta = writer.norm(f"{name}_post_norm", delta, dim=delta.dims[-1])[0]
        return gate(writer, f"{name}_gate", delta) if self.gated else delta


def gate(writer: Writer, name: str, delta: Tensor) -> Tensor:
    """*delta* times a learned number."""
    return writer.elementwise(name, delta, writer.weight(f"{name}.weight", ""))


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Equal layers, *count* of them; *final_norm*: of what the last one leaves."""

    count: int
    layer: EncoderLayer
    final_norm: bool = False

    def write(self, writer: Writer, name: str, x: Tensor) -> Tensor:
        """Append the layers as one block, and the norm after them."""

        def body(x: Tensor) -> tuple[Tensor, ...]:
            writer.prefix = f"{name}."
            return (self.layer.write(writer, x),)

        if self.count:
            x = writer.build.repeat(name, self.count, body, x)[0]
        if self.final_norm:
            x = writer.norm("final_norm", x, dim=x.dims[-1])[0]
        return x


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A stem, stacks of layers and necks, each of which gives the decoder features to read.

    *weight_class*: whose number format its matrices have, if not each that of its own class.
    *given*: the dimension without which it does not run. *into*: whether the features take
    places in the decoder's ``sequence`` or are what its cross-``attention`` reads.
    """

    label: str
    stem: Stem
    stacks: tuple[Stack, ...]
    necks: tuple[Neck, ...] = ()
    weight_class: WeightClass | None = None
    given: str = ""
    into: Literal["sequence", "attention"] = "sequence"

    def write(self, writer: Writer) -> tuple[Tensor, ...]:
        """Append the encoder's blocks; the features."""
        outer = (writer.norm_kind, writer.precision)
        writer.norm_kind = self.stacks[0].layer.norm
        if self.weight_class:
            own = writer.precision.scheme(self.weight_class)
            writer.precision = replace(
                writer.precision, weights=own, classes={self.weight_class: own}
            )
        with writer.build.given(self.given):
            writer.prefix = f"{self.label}."
            x = self.stem.write(writer)
            writer.build.block(f"{self.label}.stem")
            for index, stack in enumerate(self.stacks):
                x = stack.write(writer, f"{self.label}{index or ''}", x)
                writer.prefix = f"{self.label}{index or ''}."
            features = self._features(writer, x)
            writer.build.block(f"{self.label}.neck")
        writer.prefix = ""
        writer.norm_kind, writer.precision = outer
        return features

    def joined(self, writer: Writer, features: Tensor) -> Tensor:
        """The features of all images in one row, as cross-attention reads them."""
        batch, *places, model = features.dims
        if len(places) == 1:
            return features
        source = writer.derive("source", "*".join(places))
        parts = (("", f"{batch} {source} {model}"),)
        with writer.build.given(self.given):
            return writer.add(View(name=f"{self.label}.joined", inputs=(features,), parts=parts))

    def insert(self, writer: Writer, x: Tensor, features: tuple[Tensor, ...]) -> Tensor:
        """The decoder's sequence with the features in their places."""
        with writer.build.given(self.given):
            for index, feature in enumerate(features):
                name = f"{self.label}.insert{index or ''}"
                x = writer.add(Insert(name=name, inputs=(x, feature)))
        return x

    def _features(self, writer: Writer, x: Tensor) -> tuple[Tensor, ...]:
        features = []
        for index, neck in enumerate(self.necks):
            writer.prefix = f"{self.label}.neck{index or ''}."
            features.append(neck.write(writer, x))
        return tuple(features) or (x,)
