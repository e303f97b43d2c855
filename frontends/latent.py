"""Latent attention: keys and values are made from one narrow vector per token (DeepSeek-V2, 2024).

It is written in either of two forms. *Absorbed*: queries are taken into the latent space, and all
heads attend to the same latents; what a decode step wants. *Decompressed*: keys and values are
made for every token and head; fewer operations where many queries share them, as in a prefill.
"""

from dataclasses import dataclass

from frontends.mixers import GATE_FLOP
from frontends.sparse import Indexer
from frontends.writer import Writer
from opgraph.attention import AbsorbedAttention, Append, DecompressedAttention
from opgraph.operator import Operator, Rotary, View
from opgraph.tensor import Tensor

_QUERY = "batch seq heads"


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention; sizes as in DeepSeek-V2's config.

    *query_rank*: queries too go through a narrow vector (0: they do not). *rotary*: the shared
    part of the keys is rotated. *gated*: the result is multiplied by the sigmoid of a projection
    of the input (Kimi K3). *fused*: projections of one input are one product. The latent
    cache has no heads: under tensor parallelism every chip holds all of it.
    """

    heads: int
    query_rank: int
    kv_rank: int
    nope: int
    rope: int
    value_dim: int
    rotary: bool = True
    gated: bool = False
    indexer: Indexer | None = None
    fused: bool = True

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Project down and up, rotate, attend in one of the two forms, project back."""
        writer.attends("sparse MLA" if self.indexer else "MLA")
        sizes = (self.heads, self.kv_rank, self.nope, self.rope, self.value_dim)
        words = ("heads", "kv_rank", "nope", "rope", "value_dim")
        for word, size in zip(words, sizes, strict=True):
            writer.dim(word, size)
        narrow, latent, shared = self._down(writer, x)
        latent = writer.norm("kv_norm", latent, dim="kv_rank")[0]
        query, turned = self._queries(writer, narrow)
        if self.rotary:
            rotary = Rotary(name=f"{writer.prefix}rotary", inputs=(turned, shared))
            turned, shared = writer.build.add(rotary)
        inputs: tuple[Tensor, ...] = ()
        if self.indexer and self.indexer.present:
            inputs = (self.indexer.write(writer, x, narrow),)
        cache = writer.cache("latent_cache", f"batch context {self._latent(writer)}")
        form = self._absorbed if self._absorb(writer) else self._decompressed
        out = form(writer, (query, turned, latent, shared), (*inputs, cache))
        if self.gated:
            pattern = f"batch seq model, model heads value_dim -> {_QUERY} value_dim"
            gate = writer.linear("gate", x, pattern, "attention")
            out = writer.elementwise("out_gate", out, gate, flop=GATE_FLOP)
        pattern = f"{_QUERY} value_dim, heads value_dim model -> batch seq model"
        return writer.linear("out", out, pattern, "attention")

    def _absorb(self, writer: Writer) -> bool:
        """The user's choice; else where it pays: for one query, or few keys per query."""
        if writer.absorb is None:
            return writer.decodes or self.indexer is not None
        return writer.absorb

    def _latent(self, writer: Writer) -> str:
        return writer.derive("latent", "kv_rank + rope")

    def _down(self, writer: Writer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What queries are made from, the latent, and the keys' shared part."""
        kv = (("latent", "kv_rank"), ("k_rope", "rope"))
        if not self.query_rank:
            latent, shared = self._project(writer, "kv_down", x, kv)
            return x, latent, shared
        writer.dim("query_rank", self.query_rank)
        parts = (("q_latent", "query_rank"), *kv)
        query, latent, shared = self._project(writer, "qkv_down", x, parts)
        return writer.norm("q_norm", query, dim="query_rank")[0], latent, shared

    def _queries(self, writer: Writer, narrow: Tensor) -> tuple[Tensor, Tensor]:
        parts = (("q_nope", "heads nope"), ("q_rope", "heads rope"))
        query, turned = self._project(writer, "q_up", narrow, parts)
        return query, turned

    def _project(
        self, writer: Writer, name: str, x: Tensor, parts: tuple[tuple[str, str], ...]
    ) -> tuple[Tensor, ...]:
        """Products of one input, each with its result's dimensions: one product if *fused*."""
        source = x.dims[-1]
        if not self.fused:
            patterns = (f"batch seq {source}, {source} {to} -> batch seq {to}" for _, to in parts)
            return tuple(
                writer.linear(part, x, pattern, "attention")
                for (part, _), pattern in zip(parts, patterns, strict=True)
            )
        wide = writer.derive(name, " + ".join(to.replace(" ", "*") for _, to in parts))
        pattern = f"batch seq {source}, {source} {wide} -> batch seq {wide}"
        mixed = writer.linear(name, x, pattern, "attention")
        views = tuple((part, f"batch seq {to}") for part, to in parts)
        return writer.build.add(
            View(name=f"{writer.prefix}{name}_split", inputs=(mixed,), parts=views)
        )

    def _absorbed(
        self, writer: Writer, parts: tuple[Tensor, ...], rest: tuple[Tensor, ...]
    ) -> Tensor:
        query, turned, latent, shared = parts
        pattern = f"{_QUERY} nope, heads nope kv_rank -> {_QUERY} kv_rank"
        query = writer.linear("k_up", query, pattern, "attention")
        attention = AbsorbedAttention(
            name=f"{writer.prefix}attention",
            inputs=(query, turned, latent, shared, *rest),
            chosen=self._chosen(writer),
        )
        pattern = f"{_QUERY} kv_rank, heads kv_rank value_dim -> {_QUERY} value_dim"
        return writer.linear("v_up", writer.add(attention), pattern, "attention")

    def _decompressed(
        self, writer: Writer, parts: tuple[Tensor, ...], rest: tuple[Tensor, ...]
    ) -> Tensor:
        query, turned, latent, shared = parts
        store: Operator = Append(name=f"{writer.prefix}append", inputs=(latent, shared, rest[-1]))
        latent, shared = writer.build.add(store)
        at = "batch context heads"
        keys = writer.linear(
            "k_up", latent, f"batch context kv_rank, heads nope kv_rank -> {at} nope", "attention"
        )
        pattern = f"batch context kv_rank, heads kv_rank value_dim -> {at} value_dim"
        values = writer.linear("v_up", latent, pattern, "attention")
        attention = DecompressedAttention(
            name=f"{writer.prefix}attention",
            inputs=(query, turned, keys, shared, values, *rest[:-1]),
            chosen=self._chosen(writer),
        )
        return writer.add(attention)

    def _chosen(self, writer: Writer) -> str | None:
        return self.indexer.best(writer) if self.indexer else None
