"""Cross-attention: a decoder's tokens see what an encoder has read."""

from dataclasses import dataclass

from frontends.decoder import Layer
from frontends.encoder import gate, project
from frontends.writer import Part, Writer
from opgraph.encoding import UnmaskedAttention
from opgraph.operator import View
from opgraph.tensor import Tensor


@dataclass(frozen=True, kw_only=True)
class CrossAttention:
    """Queries of the decoder, keys and values of the encoder's features.

    Keys and values are computed once, in the prefill step, and kept: that cache does not grow.
    *bias*: of queries and values; *key_bias*: of the keys; *qk_norm*: of each head.
    """

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False
    key_bias: bool = False
    qk_norm: bool = False
    source: str = "source"

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Project the queries, attend to the features, project back."""
        heads = writer.dim("heads", self.heads)
        head_dim = writer.dim("head_dim", self.head_dim)
        shape = f"batch seq {heads} {head_dim}"
        mixed = project(writer, "cross_q", x, (heads,), head_dim, int(self.bias))
        view = View(name=f"{writer.prefix}cross_split", inputs=(mixed,), parts=(("q", shape),))
        query = writer.build.add(view)[0]
        if self.qk_norm:
            query = writer.norm("cross_q_norm", query, dim=head_dim)[0]
        attend = UnmaskedAttention(
            name=f"{writer.prefix}cross_attention", inputs=(query, *self._keys(writer, head_dim))
        )
        pattern = f"{shape}, {heads} {head_dim} model -> batch seq model"
        return writer.linear("cross_out", writer.add(attend), pattern, "attention", self.bias)

    def _keys(self, writer: Writer, head_dim: str) -> tuple[Tensor, ...]:
        """Keys and values from the cache; in the step that fills it, the new ones before it."""
        kv_heads = writer.dim("kv_heads", self.kv_heads)
        shape = f"batch {self.source} {kv_heads} {head_dim}"
        cache = tuple(
            Tensor.of(f"{writer.prefix}cross_{name}", shape, writer.precision.kv_cache, "cache")
            for name in ("k_cache", "v_cache")
        )
        if writer.source is None:
            return cache
        biases = self.bias + self.key_bias
        mixed = project(writer, "cross_kv", writer.source, (kv_heads, kv_heads), head_dim, biases)
        parts = (("k", shape), ("v", shape))
        view = View(name=f"{writer.prefix}cross_kv_split", inputs=(mixed,), parts=parts)
        key, value = writer.build.add(view)
        if self.qk_norm:
            key = writer.norm("cross_k_norm", key, dim=head_dim)[0]
        return key, value, *cache


@dataclass(frozen=True, kw_only=True)
class CrossLayer(Layer):
    """A layer with cross-attention between its mixer and its channel (Vaswani et al. 2017)."""

    mixer: Part
    cross: Part

    def write(self, writer: Writer, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """From this layer's normalised input and residual to the next one's."""
        delta = self.mixer.write(writer, x)
        x, residual = writer.norm("cross_norm", delta, residual)
        delta = self.cross.write(writer, x)
        if self.channel:
            x, residual = writer.norm("ffn_norm", delta, residual)
            delta = self.channel.write(writer, x)
        x, residual = writer.norm("next_norm", delta, residual)
        return x, residual


@dataclass(frozen=True, kw_only=True)
class GatedCrossLayer(Layer):
    """A layer that only sees the features, each part behind a learned gate (Llama 3.2 Vision).

    It is skipped where the dimension *given* is 0: no images, nothing to see.
    """

    given: str = "images"

    def write(self, writer: Writer, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """From this layer's normalised input and residual to the next one's."""
        with writer.build.given(self.given):
            return super().write(writer, x, residual)

    def _part(self, writer: Writer, name: str, part: Part, x: Tensor) -> Tensor:
        return gate(writer, f"{name}_gate", super()._part(writer, name, part, x))
