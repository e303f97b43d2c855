"""Blocks that several layers share: their weights stand once, their KV caches for each use."""

from dataclasses import dataclass, replace

from frontends.decoder import Group, Layer
from frontends.mixers import SelfAttention
from frontends.writer import Part, Writer
from opgraph.operator import Activation, Elementwise
from opgraph.recurrent import SILU_FLOP
from opgraph.tensor import Tensor


@dataclass(frozen=True, kw_only=True)
class SharedTransformer:
    """Zamba's shared block *index*: attention and a gated feed-forward network on the residual
    next to the embedding (Glorioso et al. 2024, section 2).

    Each use has its own adapter of *rank* on the feed-forward network and its own projection of
    the result.
    """

    index: int
    attention: SelfAttention
    ffn: int
    rank: int

    def write(self, writer: Writer, residual: Tensor) -> Tensor:
        """From the residual to what is added to it."""
        outer = writer.prefix
        writer.prefix, writer.shared = f"{outer}shared.", f"shared{self.index}."
        wide = writer.derive("concat", "2*model")
        embedding = Tensor("embedding", residual.dims, writer.precision.of("embedding"))
        joined = writer.add(
            Elementwise(
                name=f"{writer.prefix}concat",
                inputs=(residual, embedding),
                dims=f"batch seq {wide}",
                flop_per_element=0,
            )
        )
        normed = writer.norm("attention_norm", joined, dim=wide)[0]
        mixed = self.attention.write(writer, normed)
        result = self._feed_forward(writer, writer.norm("ffn_norm", mixed)[0])
        writer.prefix, writer.shared = outer, ""
        own = result.dims[-1]
        pattern = f"batch seq {own}, {own} model -> batch seq model"
        return writer.linear("use", result, pattern, "ffn")

    def _feed_forward(self, writer: Writer, x: Tensor) -> Tensor:
        ffn, rank = writer.dim("ffn", self.ffn), writer.dim("rank", self.rank, "adapter")
        wide = writer.derive("gate_up", f"2*{ffn}")
        up = writer.linear(
            "gate_up", x, f"batch seq model, model {wide} -> batch seq {wide}", "ffn"
        )
        block, writer.shared = writer.shared, ""
        low = writer.linear(
            "adapter_down", x, f"batch seq model, model {rank} -> batch seq {rank}", "ffn"
        )
        adapted = writer.linear(
            "adapter_up", low, f"batch seq {rank}, {rank} {wide} -> batch seq {wide}", "ffn"
        )
        writer.shared = block
        up = writer.elementwise("adapter_sum", up, adapted)
        hidden = writer.add(
            Activation(
                name=f"{writer.prefix}activation",
                inputs=(up,),
                dims=f"batch seq {ffn}",
                flop_per_element=SILU_FLOP + 1,
            )
        )
        own = writer.dim("model.shared", writer.numbers["model"])
        pattern = f"batch seq {ffn}, {ffn} {own} -> batch seq {own}"
        return writer.linear("down", hidden, pattern, "ffn")


@dataclass(frozen=True, kw_only=True)
class SharedLayer(Layer):
    """A layer with a shared *block* after its mixer, before the next layer."""

    mixer: Part
    block: SharedTransformer

    def write(self, writer: Writer, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """From this layer's normalised input and residual to the next one's."""
        residual = writer.elementwise("sum", residual, self.mixer.write(writer, x))
        x, residual = writer.norm("next_norm", self.block.write(writer, residual), residual)
        return x, residual


def runs(layers: list[Layer]) -> tuple[Group, ...]:
    """Equal layers that follow each other as one group, shared ones each alone: what a group
    repeats, it has once for each repetition, but a shared block's weights are there once.
    """
    groups: list[Group] = []
    for layer in layers:
        if groups and groups[-1].layers == (layer,) and not isinstance(layer, SharedLayer):
            groups[-1] = replace(groups[-1], count=groups[-1].count + 1)
        else:
            groups.append(Group(name=f"layers{len(groups)}", count=1, layers=(layer,)))
    return tuple(groups)
