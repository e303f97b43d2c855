"""Operators of encoders: attention without a mask, and features put among the tokens."""

from dataclasses import dataclass
from functools import cached_property

from hardware import Number
from opgraph.operator import Attention, Operator, Work
from opgraph.sizes import Sizes
from opgraph.tensor import Tensor


@dataclass(frozen=True, kw_only=True)
class UnmaskedAttention(Attention):
    """Every query sees every key: within an encoder, or from a decoder across to one.

    Inputs are queries, keys and values, then the caches to which keys and values are written for
    later steps, if they are. Keys and values may themselves lie in a cache. The positions are
    the third dimension from the end.
    """

    causal: bool = False

    def pairs(self, sizes: Sizes) -> Number:
        """Query–key pairs of one sequence and head."""
        return self.size(sizes, self.inputs[0].dims[-3]) * self.keys(sizes)

    def keys(self, sizes: Sizes) -> Number:
        """Positions of the keys."""
        return self.size(sizes, self.inputs[1].dims[-3])

    def shape(self, sizes: Sizes) -> dict[str, Number]:
        """``batch seq context heads kv_heads head_dim value_dim pairs keys`` on one chip."""
        query, key, value, *_ = self.inputs
        keys = self.keys(sizes)
        return {
            "batch": self.size(sizes, *query.dims[:-3]),
            "seq": self.size(sizes, query.dims[-3]),
            "context": keys,
            "heads": self.size(sizes, query.dims[-2]),
            "kv_heads": self.size(sizes, key.dims[-2]),
            "head_dim": self.size(sizes, query.dims[-1]),
            "value_dim": self.size(sizes, value.dims[-1]),
            "pairs": self.pairs(sizes),
            "keys": keys,
        }

    def work(self, sizes: Sizes) -> Work:
        """Queries, keys and values read once; the result and the caches written."""
        read = sum(tensor.nbytes(sizes) for tensor in self.inputs[:3])
        kept = sum(tensor.nbytes(sizes) for tensor in self.inputs[3:])
        return Work(self.flop(sizes), read, self.outputs[0].nbytes(sizes) + kept)


@dataclass(frozen=True, kw_only=True)
class Insert(Operator):
    """Features take the places of placeholder tokens in a sequence, in place.

    Inputs are the sequence and the features; the sequence is otherwise left alone.
    """

    kind = "insert"
    in_place = True
    whole = frozenset({"seq"})

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        first = self.inputs[0]
        return (self._make(self.name, first.dims, first.format),)

    def work(self, sizes: Sizes) -> Work:
        nbytes = self.inputs[1].nbytes(sizes)
        return Work(0, nbytes, nbytes)
