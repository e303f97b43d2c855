"""Indexers: light heads that choose the tokens a query attends to."""

from dataclasses import dataclass

from frontends.writer import NormKind, Writer
from opgraph.attention import Choose
from opgraph.operator import Rotary, View
from opgraph.tensor import Tensor


@dataclass(frozen=True, kw_only=True)
class Indexer:
    """*heads* narrow queries score one key per token; the *topk* best tokens are attended to.

    *weighted*: the heads' scores are weighed by the token (DeepSeek-V3.2), else the largest
    counts (MiniMax-M3). *norm*: of the keys; *query_norm*: of the queries too. *present*: a
    layer without one of its own attends to what an earlier layer has chosen (GLM-5.2).
    """

    heads: int
    dim: int
    topk: int
    weighted: bool = True
    norm: NormKind = "layer"
    query_norm: bool = False
    present: bool = True

    def best(self, writer: Writer) -> str:
        """The dimension of the tokens that are chosen."""
        return writer.dim("chosen", self.topk)

    def write(self, writer: Writer, x: Tensor, source: Tensor) -> Tensor:
        """The tokens chosen; queries are made from *source*, keys from *x*."""
        heads = writer.dim("index_heads", self.heads)
        dim = writer.dim("index_dim", self.dim)
        wide = writer.derive("index_q", f"{heads}*{dim}")
        width = source.dims[-1]
        query = writer.linear(
            "index_q", source, f"batch seq {width}, {width} {wide} -> batch seq {wide}", "attention"
        )
        view = View(
            name=f"{writer.prefix}index_split",
            inputs=(query,),
            parts=(("q", f"batch seq {heads} {dim}"),),
        )
        query = writer.add(view)
        key = writer.linear(
            "index_k", x, f"batch seq model, model {dim} -> batch seq {dim}", "attention"
        )
        key = writer.norm("index_k_norm", key, dim=dim, kind=self.norm)[0]
        if self.query_norm:
            query = writer.norm("index_q_norm", query, dim=dim, kind=self.norm)[0]
        turned = Rotary(name=f"{writer.prefix}index_rotary", inputs=(query, key))
        inputs = list(writer.build.add(turned))
        if self.weighted:
            pattern = f"batch seq model, model {heads} -> batch seq {heads}"
            inputs.append(writer.linear("index_weights", x, pattern, None))
        cache = writer.cache("index_cache", f"batch context {dim}")
        choose = Choose(
            name=f"{writer.prefix}choose", inputs=(*inputs, cache), best=self.best(writer)
        )
        return writer.add(choose)
