"""A model: its operator graph in named dimensions, and the numbers of those that are its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from hardware import Number, SpecError
from hardware.arithmetic import product
from opgraph.encoding import Insert
from opgraph.graph import Graph
from opgraph.sizes import Sizes
from opgraph.tensor import Tensor

# a whole number of every group of tokens that a model compresses (DeepSeek-V4: 4 and 128), and
# no more than any window
_SPAN = 128


@dataclass(frozen=True, eq=False)
class Model:
    """A model, ready to be simulated.

    Attributes
    ----------
    name, source : what it is called and where its dimensions come from.
    prefill, decode : the graph of a step in each phase; the same object where they are alike.
    numbers : the size of each dimension that is the model's own (``model heads ffn …``).
    family : the architecture it belongs to, a word.
    attention : the kinds of attention of its layers (``MHA GQA MQA MLA``, ``local``, ``sparse`` …).
    inactive : dimensions of which a token's step uses only as much as another is large.
    encodes_prompt : the prompt goes to an encoder; the decoder starts from a single token.
    """

    name: str
    source: str
    prefill: Graph
    decode: Graph
    numbers: Mapping[str, int]
    family: str = ""
    attention: str = ""
    inactive: Mapping[str, str] = field(default_factory=dict)
    encodes_prompt: bool = False

    def __str__(self) -> str:
        total, active = (n / 1e9 for n in (self.num_parameters, self.num_active_parameters))
        used = f", {active:.4g} of them active" if active < total else ""
        return f"{self.name}: {self.attention}, {total:.4g} billion parameters{used}"

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

        The mean over the first `_SPAN` tokens: a bounded cache (a sliding window) counts as while
        it grows. A cache that does not grow counts nothing.
        """
        first, last = (self._cache_bytes(context) for context in (0, _SPAN))
        return (last - first) / _SPAN

    def _cache_bytes(self, context: int) -> float:
        sizes = Sizes({**self.numbers, "batch": 1, "context": context}, self.decode.derived)
        return sum(
            float(tensor.nbytes(sizes)) * count
            for tensor, count in self.decode.tensors("cache")
            if any(dim.partition(".")[0] == "context" for dim in tensor.dims)
        )

    @cached_property
    def tokens_per_image(self) -> int:
        """Tokens of the prompt that an image becomes; 0 where it stays outside of it."""
        inserts = (op for op, _ in self.prefill.operators if isinstance(op, Insert))
        found = next(inserts, None)
        return int(product(self._sizes[d] for d in found.inputs[1].dims[2:-1])) if found else 0

    def check_skew(self, skew: Number) -> None:
        """Refuse skewed choices of experts that the model does not have; SpecError."""
        if np.any(skew) and not any(dim.partition(".")[0] == "experts" for dim in self.numbers):
            raise SpecError(f"skew={np.max(skew):g}: {self.name} has no experts; leave it out")

    def check_images(self, images: Number, prompt: Number) -> None:
        """Refuse images that the model does not take or the prompt has no place for.

        Raises
        ------
        SpecError : the model reads no images, or they alone are longer than the prompt.
        """
        if np.any(images) and not any(op.given == "images" for op, _ in self.prefill.operators):
            raise SpecError(f"images={images}: {self.name} reads no images")
        short = np.greater(images * self.tokens_per_image, prompt)
        if np.any(short):
            raise SpecError(
                f"images={np.max(images)}: each is {self.tokens_per_image} tokens of the prompt of "
                f"{self.name}, more than the prompt={np.min(prompt)} in all"
            )

    def check_batch(self, batch: Number) -> None:
        """Refuse several sequences where what comes out has no batch.

        Raises
        ------
        SpecError : the graph is that of a single sequence.
        """
        *_, (last, _) = self.prefill.operators
        batched = any("batch" in self.prefill.basis(dim) for t in last.outputs for dim in t.dims)
        if not batched and np.any(np.not_equal(batch, 1)):
            raise SpecError(
                f"batch={np.max(batch)}: {self.name} is made for one sequence at a time; "
                "export it with an open batch"
            )

    def _active(self, tensor: Tensor) -> Number:
        return product(self._sizes[self.inactive.get(dim, dim)] for dim in tensor.dims)
