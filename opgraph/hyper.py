"""Hyper-connections: operators that mix residual streams (Zhu et al. 2024; DeepSeek-V4, 2026)."""

from dataclasses import dataclass
from functools import cached_property

from hardware import Number
from opgraph.operator import Operator
from opgraph.sizes import Sizes
from opgraph.tensor import Tensor


@dataclass(frozen=True, kw_only=True)
class Mix(Operator):
    """The mixture of the streams that a part of a layer reads, and the coefficients of all others.

    Inputs are the streams, the matrix that makes the coefficients from all of them, its bias and
    scales. The few dozen coefficients of a token are normalised on the chip; that work is not
    counted.
    """

    kind = "hyper_connection"
    unit = "matrix"

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        streams, matrix = self.inputs[:2]
        batch, seq, _, model = streams.dims
        mixed = self._make(self.name, (batch, seq, model), streams.format)
        plan = self._make(f"{self.name}.plan", (batch, seq, matrix.dims[0]), streams.format)
        return mixed, plan

    def flop(self, sizes: Sizes) -> Number:
        coefficients = self.size(sizes, self.inputs[1].dims[0])
        return 2 * (coefficients + 1) * self.inputs[0].numel(sizes)


@dataclass(frozen=True, kw_only=True)
class Merge(Mix):
    """The mixture of the streams that the head reads."""

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        return super().outputs[:1]


@dataclass(frozen=True, kw_only=True)
class Spread(Operator):
    """Mix the streams with each other, and add to each its share of what a part has made.

    Inputs are the streams, the part's result and the coefficients.
    """

    kind = "hyper_connection"

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        streams = self.inputs[0]
        return (self._make(self.name, streams.dims, streams.format),)

    def flop(self, sizes: Sizes) -> Number:
        streams = self.inputs[0]
        # a product and a sum with every stream and with the result
        return 2 * (self.size(sizes, streams.dims[-2]) + 1) * streams.numel(sizes)
