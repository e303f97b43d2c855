"""A model: its operator graph in named dimensions, and the numbers of those that are its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from hardware import Number
from opgraph.arithmetic import product
from opgraph.graph import Graph
from opgraph.sizes import Sizes
from opgraph.tensor import Tensor


@dataclass(frozen=True, eq=False)
class Model:
    """A model, ready to be simulated.

    Attributes
    ----------
    name, source : what it is called and where its dimensions come from.
    prefill, decode : the graph of a step in each phase; the same object where they are alike.
    numbers : the size of each dimension that is the model's own (``model heads ffn …``).
    family : the architecture it belongs to, a word.
    """

    name: str
    source: str
    prefill: Graph
    decode: Graph
    numbers: Mapping[str, int]
    family: str = ""
    attention: str = ""
    inactive: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _sizes(self) -> Sizes:
        return Sizes(self.numbers, self.prefill.derived)

    @cached_property
    def weights(self) -> tuple[tuple[Tensor, int], ...]:
        """Every weight tensor once, with the count of its block; tied weights once."""
        found = {
            t.name: (t, n)
            for graph in (self.prefill, self.decode)
            for t, n in graph.tensors("weight")
        }
        return tuple(found.values())

    @cached_property
    def num_parameters(self) -> int:
        """All parameters, tied weights once."""
        return int(sum(tensor.numel(self._sizes) * count for tensor, count in self.weights))

    @cached_property
    def num_active_parameters(self) -> int:
        """Parameters that one token's step uses: of the experts, those it is routed to."""
        return int(sum(self._active(tensor) * count for tensor, count in self.weights))

    @cached_property
    def kv_bytes_per_token(self) -> float:
        """Bytes that one more token adds to the KV cache of a sequence, all layers together.

        A cache that is bounded (a sliding window) counts as while it grows.
        """
        total = 0.0
        for tensor, count in self.decode.tensors("cache"):
            dims = [dim for dim in tensor.dims if dim != "batch" and not dim.startswith("context")]
            if len(dims) < len(tensor.dims) - 1:
                width = product(self._sizes[dim] for dim in dims)
                total += float(width) * tensor.format.nbytes * count
        return total

    def _active(self, tensor: Tensor) -> Number:
        return product(self._sizes[self.inactive.get(dim, dim)] for dim in tensor.dims)
