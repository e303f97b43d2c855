"""Mixers: how the tokens of a sequence see each other."""

from dataclasses import dataclass
from typing import Literal

from frontends.writer import Writer
from hardware import SpecError
from opgraph.operator import Attention, Rotary, View
from opgraph.tensor import Tensor


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
