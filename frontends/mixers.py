"""Mixers: how the tokens of a sequence see each other."""

from dataclasses import dataclass
from typing import Literal

from frontends.sparse import Indexer
from frontends.writer import Writer
from hardware import SpecError
from opgraph.operator import Attention, Norm, Rotary, View
from opgraph.tensor import Tensor

# exponential, sum and quotient of the sigmoid, and the product
GATE_FLOP = 4

QkNorm = Literal["", "head", "each", "whole", "plain"]


@dataclass(frozen=True, kw_only=True)
class SelfAttention:
    """Multi-head attention, grouped if *kv_heads* < *heads* (Ainslie et al. 2023).

    Parameters
    ----------
    heads, kv_heads, head_dim, value_dim : sizes; a value is as wide as a key if 0.
    window, chunk : tokens a query looks back; tokens within which it sees the earlier ones
        (0: all).
    bias, key_bias, out_bias : of the q, k, v projections; of the keys' among them; the output's.
    rotary : the part of each head that is rotated.
    qk_norm : queries and keys are normalised per ``head`` with one weight, with a weight for
        ``each`` head, over the ``whole`` projection, or per head without weights (``plain``).
    sinks : each head has a learned score that takes part in the softmax (Xiao et al. 2023).
    keys_are_values : there is no projection for values; they are the keys before their norm.
    gated : what attention gives is multiplied by the sigmoid of a projection of the input, with
        a number for each channel, or for each head (``head``).
    indexer : chooses the tokens that a query attends to.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int = 0
    window: int = 0
    chunk: int = 0
    bias: bool = False
    key_bias: bool = True
    out_bias: bool = False
    rotary: float = 1.0
    qk_norm: QkNorm = ""
    sinks: bool = False
    keys_are_values: bool = False
    gated: bool | Literal["head"] = False
    indexer: Indexer | None = None
    label: str = ""

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Project, rotate, attend, project back."""
        if self.heads % self.kv_heads:
            raise SpecError(
                f"{writer.build.name}: {self.heads} heads cannot share {self.kv_heads} KV heads "
                "evenly"
            )
        writer.attends(self._kind)
        heads = writer.dim("heads", self.heads, self.label)
        query, key, value, *gates = self._project(writer, x, heads)
        query, key, value = self._positions(writer, query, key, value)
        also = (*self._also(writer, x, heads), *self._caches(writer, key, value))
        attend = Attention(
            name=f"{writer.prefix}attention",
            inputs=(query, key, value, *also),
            kept=None if self._limited(writer) else writer.kept(),
            window=self._bound(writer, "window", self._window(writer)),
            chunk=self._bound(writer, "chunk", self.chunk),
            chosen=self.indexer.best(writer) if self.indexer else None,
        )
        result = writer.add(attend)
        if self.gated:
            result = writer.elementwise("out_gate", result, *gates, flop=GATE_FLOP)
        return writer.linear(
            "out",
            result,
            f"batch seq {heads} {value.dims[-1]}, {heads} {value.dims[-1]} model"
            " -> batch seq model",
            "attention",
            self.out_bias,
        )

    @property
    def _kind(self) -> str:
        shared = "GQA" if self.kv_heads > 1 else "MQA"
        kind = "MHA" if self.heads == self.kv_heads else shared
        if self.indexer:
            return f"sparse {kind}"
        return f"local {kind}" if self.window or self.chunk else kind

    def _project(self, writer: Writer, x: Tensor, heads: str) -> tuple[Tensor, ...]:
        """Queries, keys, values, and the gate if there is one: one product."""
        kv_heads = writer.dim("kv_heads", self.kv_heads, self.label)
        head_dim = writer.dim("head_dim", self.head_dim, self.label)
        value_dim = head_dim
        if self.value_dim and self.value_dim != self.head_dim:
            value_dim = writer.dim("value_dim", self.value_dim, self.label)
        widths = f"{heads}*{head_dim}"
        if self.keys_are_values:
            widths += f" + {kv_heads}*{head_dim}"
        elif value_dim == head_dim:
            widths += f" + 2*{kv_heads}*{head_dim}"
        else:
            widths += f" + {kv_heads}*{head_dim} + {kv_heads}*{value_dim}"
        gate = heads if self.gated == "head" else f"{heads} {value_dim}"
        if self.gated:
            widths += f" + {gate.replace(' ', '*')}"
        qkv, model = writer.derive("qkv", widths), x.dims[-1]
        pattern = f"batch seq {model}, {model} {qkv} -> batch seq {qkv}"
        bias: bool | str = self.bias
        if bias and not self.key_bias:
            bias = writer.derive("qv", f"{heads}*{head_dim} + {kv_heads}*{value_dim}")
        mixed = writer.linear("qkv", x, pattern, "attention", bias)
        parts = (
            ("q", f"batch seq {heads} {head_dim}"),
            ("k", f"batch seq {kv_heads} {head_dim}"),
            ("v", f"batch seq {kv_heads} {value_dim}"),
            *((("gate", f"batch seq {gate}"),) if self.gated else ()),
        )
        split = View(name=f"{writer.prefix}split", inputs=(mixed,), parts=parts)
        return writer.build.add(split)

    def _positions(
        self, writer: Writer, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.qk_norm:
            shape = slice(-2, None) if self.qk_norm in ("whole", "each") else slice(-1, None)
            weights = slice(0, 0) if self.qk_norm == "plain" else shape
            each = self.qk_norm == "each"
            query, key = (
                writer.norm(
                    f"{name}_norm",
                    tensor,
                    dim=" ".join(tensor.dims[weights]),
                    over=tensor.dims[-1] if each else "",
                )[0]
                for name, tensor in (("q", query), ("k", key))
            )
        if self.keys_are_values:
            value = writer.add(Norm(name=f"{writer.prefix}v_norm", inputs=(value,)))
        if self.rotary:
            rotary = Rotary(
                name=f"{writer.prefix}rotary", inputs=(query, key), share=float(self.rotary)
            )
            query, key = writer.build.add(rotary)
        return query, key, value

    def _also(self, writer: Writer, x: Tensor, heads: str) -> tuple[Tensor, ...]:
        """What else attention reads: the tokens that an indexer chose, sinks."""
        chosen = (self.indexer.write(writer, x, x),) if self.indexer else ()
        return (*chosen, writer.weight("sinks.weight", heads)) if self.sinks else chosen

    def _caches(self, writer: Writer, *tensors: Tensor) -> tuple[Tensor, ...]:
        context, window = "context", self._window(writer)
        if self._limited(writer):
            word, limit = ("window", window) if window else ("chunk", self.chunk)
            bound = self._bound(writer, word, limit)
            context = writer.derive(f"context.{self.label or 'window'}", f"min(context, {bound})")
        elif kept := writer.kept():
            context = writer.derive("context.kept", f"context*{kept}")
        return tuple(
            writer.cache(f"{name}_cache", " ".join(("batch", context, *tensor.dims[-2:])))
            for name, tensor in zip(("k", "v"), tensors, strict=True)
        )

    def _window(self, writer: Writer) -> int:
        """The layer's own window, or the one that the model is run with."""
        return self.window or (0 if self.chunk else writer.variant.window)

    def _limited(self, writer: Writer) -> bool:
        return bool(self._window(writer) or self.chunk)

    def _bound(self, writer: Writer, word: str, size: int) -> str | None:
        return writer.dim(word, size, self.label) if size else None
