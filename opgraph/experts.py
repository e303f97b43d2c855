"""Mixture of experts: routing, grouped products and what they read.

A token's copies for its experts are rows ``batch seq topk model``. Splitting the experts over
chips splits the rows along ``topk``: where that split comes from ``batch``, the rows move between
chips, all to all; where every chip has every token, each takes its own rows and the results are
summed over chips.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from hardware import Number
from opgraph.operator import Einsum, Operator, Work
from opgraph.routing import Routing, imbalance, routing, touched_experts
from opgraph.sizes import Sizes
from opgraph.tensor import Tensor
from opgraph.work import Basis


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
    """Copy each token once for each of its experts. Inputs: tokens, routes.

    Chips that hold parts of the same experts have the same rows: tokens are gathered before.
    """

    kind = "dispatch"
    idle = frozenset({"expert_ffn"})

    def complaint(self, basis: Basis) -> str:
        tokens, routes = self.inputs
        return "" if tokens.dims[:-1] == routes.dims[:-1] else f"{routes} does not route {tokens}"

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        tokens, routes = self.inputs
        dims = (*tokens.dims[:-1], routes.dims[-1], tokens.dims[-1])
        return (self._make(self.name, dims, tokens.format),)


@dataclass(frozen=True, kw_only=True)
class Combine(Operator):
    """Add up each token's results, weighted. Inputs: rows, routes."""

    kind = "combine"

    @property
    def summands(self) -> tuple[Tensor, ...]:
        return self.inputs[:1]

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        rows = self.inputs[0]
        return (self._make(self.name, (*rows.dims[:-2], rows.dims[-1]), rows.format),)

    @property
    def contracted(self) -> frozenset[str]:
        return frozenset(self.inputs[0].dims[-2:-1])

    def complaint(self, basis: Basis) -> str:
        rows, routes = self.inputs
        return "" if rows.dims[:-1] == routes.dims else f"{routes} does not weigh {rows}"

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
        """Rows on the busiest chip, expected."""
        return self.size(sizes, *self.roles["m"]) * imbalance(*self.routing(sizes))

    def touched(self, sizes: Sizes) -> Number:
        """Experts of the busiest chip that at least one row goes to, expected."""
        routed = self.routing(sizes)
        return touched_experts(*routed[:4], self.tokens(sizes), routed.redundant)

    def routing(self, sizes: Sizes) -> Routing:
        """Who the rows go to, and the chips that the experts are dealt out to."""
        return routing(sizes, self._topk, self.experts, self.layout.get(self.experts, ()))

    def shape(self, sizes: Sizes) -> dict[str, Number]:
        """``batch m n k`` on one chip: *batch* experts, *m* rows in all."""
        n, k = (self.size(sizes, *self.roles[role]) for role in ("n", "k"))
        return {"batch": self.touched(sizes), "m": self.rows(sizes), "n": n, "k": k}

    def flop(self, sizes: Sizes) -> Number:
        return self._flop(self.shape(sizes))

    def _flop(self, shape: Mapping[str, Number]) -> Number:
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
        unpacked = shape["batch"] * shape["n"] * shape["k"] if self.unpacks else 0
        written = shape["m"] * shape["n"] * out
        return Work(self._flop(shape), read, written, unpacked=unpacked)


@dataclass(frozen=True, kw_only=True)
class AdapterEinsum(GroupedEinsum):
    """A product of each sequence's rows with the matrix of its adapter (LoRA).

    Sequences choose one of the adapters, independently and all alike; those chosen are read.
    Linear in its input, so that it waits for the same sum over chips as the product beside it.
    """

    experts: str = "adapters"

    kind = "adapter"

    @property
    def follows(self) -> Mapping[str, str]:
        return {}

    @property
    def summands(self) -> tuple[Tensor, ...]:
        return self.inputs[:1]

    def rows(self, sizes: Sizes) -> Number:
        return self.size(sizes, *self.roles["m"])

    def touched(self, sizes: Sizes) -> Number:
        sequences = self.size(sizes, self.operands[0][0])
        return touched_experts(int(sizes[self.experts]), 1, 0.0, 1, sequences)
