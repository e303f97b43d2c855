"""Attention to the last tokens and to compressed groups of tokens (DeepSeek-V4, 2026).

Every *ratio* tokens leave one compressed key, a learned weighted mean of them. Where the ratio
is small, an indexer chooses which of these a query attends to, and groups overlap: a key is made
from twice as many tokens. Tokens of a group that is not yet full are kept besides; they are few
and not counted.
"""

from dataclasses import dataclass

from frontends.writer import Writer
from opgraph import attention as ops
from opgraph.operator import Rotary, View
from opgraph.tensor import Tensor

# below it groups overlap and are chosen by an indexer; beyond it they are few and all attended to
_MOST_INDEXED = 4


@dataclass(frozen=True, kw_only=True)
class CompressedAttention:
    """One key per token that is its own value, shared by all *heads*.

    *window*: tokens that a query looks back. *ratio*: tokens in a compressed group (0: there are
    none). The output is projected in two steps: to *out_rank* in each of *groups* of heads, then
    back. *index_heads*, *index_dim*, *topk*: of the indexer.
    """

    heads: int
    head_dim: int
    query_rank: int
    rotary: float
    window: int
    groups: int
    out_rank: int
    ratio: int
    index_heads: int
    index_dim: int
    topk: int

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Project, compress, choose, attend, project back."""
        writer.attends("compressed MQA" if self.ratio else "local MQA")
        heads, size = writer.dim("heads", self.heads), writer.dim("head_dim", self.head_dim)
        window = writer.dim("window", self.window)
        narrow, query, key = self._project(writer, x, heads, size)
        recent = writer.derive("context.window", f"min(context, {window})")
        caches = [writer.cache("k_cache", f"batch {recent} {size}")]
        inputs = [query, key]
        if self.ratio:
            inputs.append(self._compress(writer, "compress", x, size))
            caches.append(writer.cache("compressed_cache", f"batch {self._context(writer)} {size}"))
        indexed = 0 < self.ratio <= _MOST_INDEXED
        if indexed:
            inputs.append(self._choose(writer, x, narrow))
        sinks = writer.weight("sinks.weight", heads)
        attend = ops.CompressedAttention(
            name=f"{writer.prefix}attention",
            inputs=(*inputs, sinks, *caches),
            window=window,
            ratio=self.ratio,
            best=writer.dim("chosen", self.topk) if indexed else None,
        )
        return self._out(writer, writer.add(attend))

    def _project(
        self, writer: Writer, x: Tensor, heads: str, size: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What queries are made from, queries, keys."""
        rank = writer.dim("query_rank", self.query_rank)
        wide = writer.derive("qkv_down", f"{rank} + {size}")
        pattern = f"batch seq model, model {wide} -> batch seq {wide}"
        mixed = writer.linear("qkv_down", x, pattern, "attention")
        parts = (("q_latent", f"batch seq {rank}"), ("k", f"batch seq {size}"))
        split = View(name=f"{writer.prefix}qkv_split", inputs=(mixed,), parts=parts)
        narrow, key = writer.build.add(split)
        narrow = writer.norm("q_norm", narrow, dim=rank)[0]
        key = writer.norm("k_norm", key, dim=size)[0]
        pattern = f"batch seq {rank}, {rank} {heads} {size} -> batch seq {heads} {size}"
        query = writer.linear("q_up", narrow, pattern, "attention")
        rotary = Rotary(name=f"{writer.prefix}rotary", inputs=(query, key), share=self.rotary)
        query, key = writer.build.add(rotary)
        return narrow, query, key

    def _compress(self, writer: Writer, name: str, x: Tensor, size: str) -> Tensor:
        """Keys of groups: their tokens' values weighted by gates, normalised."""
        overlap = 2 if self.ratio <= _MOST_INDEXED else 1
        width = writer.derive(f"{name}_width", f"{overlap}*{size}") if overlap > 1 else size
        wide = writer.derive(f"{name}_gated", f"2*{width}")
        pattern = f"batch seq model, model {wide} -> batch seq {wide}"
        mixed = writer.linear(name, x, pattern, "attention")
        ratio = writer.dim("ratio", self.ratio, f"r{self.ratio}")
        new = writer.derive(f"seq.r{self.ratio}", f"max(seq // {self.ratio}, 1)")
        places = writer.weight(f"{name}_places.weight", f"{ratio} {width}")
        norm = writer.weight(f"{name}_norm.weight", size)
        pool = ops.Compress(
            name=f"{writer.prefix}{name}_pool", inputs=(mixed, places, norm), groups=new
        )
        return writer.add(pool)

    def _context(self, writer: Writer) -> str:
        return writer.derive(f"context.r{self.ratio}", f"context // {self.ratio}")

    def _choose(self, writer: Writer, x: Tensor, narrow: Tensor) -> Tensor:
        heads = writer.dim("index_heads", self.index_heads)
        size = writer.dim("index_dim", self.index_dim)
        key = self._compress(writer, "index_compress", x, size)
        rank = narrow.dims[-1]
        pattern = f"batch seq {rank}, {rank} {heads} {size} -> batch seq {heads} {size}"
        query = writer.linear("index_q", narrow, pattern, "attention")
        pattern = f"batch seq model, model {heads} -> batch seq {heads}"
        weights = writer.linear("index_weights", x, pattern, None)
        cache = writer.cache("index_cache", f"batch {self._context(writer)} {size}")
        choose = ops.Choose(
            name=f"{writer.prefix}choose",
            inputs=(query, key, weights, cache),
            best=writer.dim("chosen", self.topk),
            ratio=self.ratio,
        )
        return writer.add(choose)

    def _out(self, writer: Writer, x: Tensor) -> Tensor:
        """Groups of heads are split as the heads are: they go by that word."""
        groups, rank = "heads.groups", writer.dim("out_rank", self.out_rank)
        writer.numbers[groups] = self.groups
        width = writer.dim("group_width", self.heads * self.head_dim // self.groups)
        parts = (("", f"batch seq {groups} {width}"),)
        x = writer.add(View(name=f"{writer.prefix}groups", inputs=(x,), parts=parts))
        pattern = (
            f"batch seq {groups} {width}, {groups} {width} {rank} -> batch seq {groups} {rank}"
        )
        x = writer.linear("out_down", x, pattern, "attention")
        pattern = f"batch seq {groups} {rank}, {groups} {rank} model -> batch seq model"
        return writer.linear("out", x, pattern, "attention")
