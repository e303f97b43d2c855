"""Mixture of experts: routing, grouped products and what they read.

A token's copies for its experts are rows ``batch seq topk model``. Splitting the experts over
chips splits the rows along ``topk``: where that split comes from ``batch``, the rows move between
chips, all to all; where every chip has every token, each takes its own rows and the results are
summed over chips.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hardware import Number
from opgraph.operator import Einsum, Operator, Work
from opgraph.sizes import Sizes
from opgraph.tensor import Tensor


@dataclass(frozen=True, kw_only=True)
class Route(Operator):
    """Choose the *topk* best of each token's scores, and their weights."""

    topk: str = "topk"

    kind = "route"
    # an exponential, a comparison and a quotient for each score
    FLOP_PER_SCORE: ClassVar[int] = 3

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        scores = self.inputs[0]
        return (self._make(self.name, (*scores.dims[:-1], self.topk), scores.format),)

    def flop(self, sizes: Sizes) -> Number:
        return self.FLOP_PER_SCORE * self.inputs[0].numel(sizes)


@dataclass(frozen=True, kw_only=True)
class Dispatch(Operator):
    """Copy each token once for each of its experts. Inputs: tokens, routes."""

    kind = "dispatch"

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        tokens, routes = self.inputs
        dims = (*tokens.dims[:-1], routes.dims[-1], tokens.dims[-1])
        return (self._make(self.name, dims, tokens.format),)


@dataclass(frozen=True, kw_only=True)
class Combine(Operator):
    """Add up each token's results, weighted. Inputs: rows, routes."""

    kind = "combine"
    linear = True

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        rows = self.inputs[0]
        return (self._make(self.name, (*rows.dims[:-2], rows.dims[-1]), rows.format),)

    @property
    def contracted(self) -> frozenset[str]:
        return frozenset(self.inputs[0].dims[-2:-1])

    def flop(self, sizes: Sizes) -> Number:
        return 2 * self.inputs[0].numel(sizes)


@dataclass(frozen=True, kw_only=True)
class GroupedEinsum(Einsum):
    """A product of each row with the matrix of its expert; *experts* is the weights' dimension.

    The pattern has the rows first, then the weights; the expert of a row is not in it:
    ``"batch seq topk model, experts model ffn -> batch seq topk ffn"``. Only the experts that
    some row goes to are read. The chip with the most popular experts has the most rows.
    """

    experts: str = "experts"

    kind = "moe"

    @property
    def follows(self) -> Mapping[str, str]:
        """Rows are where their experts are."""
        return {self._topk: self.experts}

    @property
    def _topk(self) -> str:
        return next(dim for dim in self.operands[0] if dim.partition(".")[0] == "topk")

    @cached_property
    def contracted(self) -> frozenset[str]:
        return super().contracted - {self.experts}

    @cached_property
    def roles(self) -> dict[str, tuple[str, ...]]:
        weight = set(self.operands[1])
        return {
            "batch": (self.experts,),
            "m": tuple(dim for dim in self.operands[0] if dim not in weight),
            "n": tuple(dim for dim in self.result if dim in weight),
            "k": tuple(dim for dim in self.operands[0] if dim in weight),
        }

    def tokens(self, sizes: Sizes) -> Number:
        """Tokens whose rows may go to this chip's experts."""
        return self.size(sizes, *(dim for dim in self.roles["m"] if dim != self._topk))

    def rows(self, sizes: Sizes) -> Number:
        """Rows on the busiest chip."""
        parts = self._parts(sizes)
        return self.size(sizes, *self.roles["m"]) * busiest(
            sizes[self.experts], sizes["skew"], parts
        )

    def touched(self, sizes: Sizes) -> Number:
        """Experts of one chip that at least one row goes to, expected, on the busiest chip."""
        experts, topk = sizes[self.experts], sizes[self._topk]
        everywhere = expected_touched(experts, topk, self.tokens(sizes), sizes["skew"])
        share = everywhere / self._parts(sizes)
        return (
            np.minimum(share, self.rows(sizes)) if np.ndim(share) else min(share, self.rows(sizes))
        )

    def _parts(self, sizes: Sizes) -> Number:
        return sizes.ways(self.layout.get(self.experts, ()))

    def shape(self, sizes: Sizes) -> dict[str, Number]:
        """``batch m n k`` on one chip: *batch* experts, *m* rows in all."""
        n, k = (self.size(sizes, *self.roles[role]) for role in ("n", "k"))
        return {"batch": self.touched(sizes), "m": self.rows(sizes), "n": n, "k": k}

    def flop(self, sizes: Sizes) -> Number:
        shape = self.shape(sizes)
        biases = len(self.inputs) - len(self.operands)
        return (2 * shape["k"] + biases) * shape["m"] * shape["n"]

    def work(self, sizes: Sizes) -> Work:
        shape = self.shape(sizes)
        rows, out = self.inputs[0].format.nbytes, self.outputs[0].format.nbytes
        weights = sum(
            shape["batch"] * shape["n"] * (shape["k"] if index == 0 else 1) * tensor.format.nbytes
            for index, tensor in enumerate(self.inputs[1:])
        )
        read = shape["m"] * shape["k"] * rows + weights
        return Work(self.flop(sizes), read, shape["m"] * shape["n"] * out)


def popularity(experts: int, skew: float) -> NDArray[np.float64]:
    """Shares of the rows that go to each expert: Zipf's law with exponent *skew* (0: all equal)."""
    weights = np.arange(1, experts + 1, dtype=float) ** -skew
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def expected_touched(experts: Any, topk: Any, tokens: Number, skew: Any) -> Number:
    """Experts that at least one of *tokens* is routed to, expected.

    Each token chooses expert e with probability pₑ = min(1, topk · shareₑ), tokens independently:
    Σₑ 1 − (1 − pₑ)^tokens; with equal shares E(1 − (1 − K/E)ᵗ) (LLM-Viewer, Yuan et al. 2024).
    """
    if np.ndim(skew) or skew:
        return _touched_under_skew(experts, topk, tokens, skew)
    missed = (1 - topk / experts) ** tokens
    return experts * (1 - missed)


def _touched_under_skew(experts: Any, topk: Any, tokens: Number, skew: Any) -> Number:
    chosen = np.minimum(1.0, topk * popularity(int(experts), float(skew)))
    missed = (1 - chosen) ** np.expand_dims(np.asarray(tokens, float), -1)
    total = np.sum(1 - missed, axis=-1)
    return total if np.ndim(tokens) else float(total)


def busiest(experts: Any, skew: Any, parts: Number) -> Number:
    """How many times the mean the busiest of *parts* chips has, experts dealt out in turn."""
    if not skew or not np.any(np.greater(parts, 1)):
        return 1.0
    shares = popularity(int(experts), float(skew))
    loads = {int(n): float(shares[:: int(n)].sum() * n) for n in np.unique(parts)}
    if np.ndim(parts):
        return np.vectorize(loads.__getitem__, otypes=[float])(np.asarray(parts, int))  # type: ignore[no-any-return]
    return loads[int(parts)]
