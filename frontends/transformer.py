"""A model of one's own from a handful of sizes: the architect's hypothetical transformer."""

from dataclasses import dataclass, field, fields
from functools import cached_property

from frontends.channels import FeedForward, MixtureOfExperts
from frontends.config import LARGEST
from frontends.decoder import Decoder, Group, Layer
from frontends.mixers import SelfAttention
from frontends.precision import Precision
from frontends.writer import NormKind, Part
from hardware import SpecError
from opgraph.model import Model

_OPTIONAL = ("experts", "topk", "shared_experts", "window")


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """A decoder of equal layers with rotary positions, to be simulated like any other model.

    Parameters
    ----------
    layers, model, heads, ffn, vocab : number of layers, width, attention heads, width of the
        feed-forward channel, size of the vocabulary.
    kv_heads, head_dim : as many as *heads*, and *model* over *heads*, if not given.
    gated : the channel has a gate (SwiGLU): three matrices instead of two.
    experts, topk, expert_ffn : experts of each layer instead of one channel (0: none), how many
        of them a token goes to, and their width, which is *ffn* if not given.
    shared_experts : experts that every token goes to, besides.
    window : tokens that a query looks back (0: all).
    tied : the head is the embedding.
    norm : ``rms`` or ``layer``.
    precision : number formats; 16-bit everywhere if not given.

    Raises
    ------
    SpecError : a size that is not a whole number, or sizes that contradict each other.

    Examples
    --------
    The guess at GPT-4 and the SuperLLM-10T of Bambhaniya et al. 2024 (GenZ, ``misc.py``):

    >>> gpt4 = Transformer(name="gpt-4-like", layers=128, model=10752, heads=84, ffn=43008,
    ...                    vocab=100_256, gated=False, experts=16, topk=2)
    >>> gpt4.to_model().num_parameters // 10**9
    1955
    >>> from dataclasses import replace
    >>> super_llm = replace(gpt4, name="superllm-10t", model=13824, heads=108, ffn=55296,
    ...                     gated=True, experts=32, topk=4)
    >>> super_llm.to_model().num_parameters // 10**9
    9493
    """

    name: str = "transformer"
    layers: int
    model: int
    heads: int
    ffn: int
    vocab: int
    kv_heads: int | None = None
    head_dim: int | None = None
    gated: bool = True
    experts: int = 0
    topk: int = 0
    expert_ffn: int | None = None
    shared_experts: int = 0
    window: int = 0
    tied: bool = False
    norm: NormKind = "rms"
    precision: Precision = field(default_factory=Precision)

    def __post_init__(self) -> None:
        for entry in fields(self):
            if entry.type in (int, int | None):
                self._check_size(entry.name, getattr(self, entry.name))
        if self.head_dim is None and self.model % self.heads:
            self._refuse(
                "model", f"is not a multiple of heads={self.heads}, and there is no head_dim"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            self._refuse("kv_heads", f"does not divide heads={self.heads}")
        if bool(self.experts) != bool(self.topk) or self.topk > self.experts:
            self._refuse("topk", f"does not go with experts={self.experts}")
        if not self.experts and (self.shared_experts or self.expert_ffn):
            self._refuse("experts", "has neither shared_experts nor expert_ffn")
        if self.norm not in ("rms", "layer"):
            self._refuse("norm", "must be 'rms' or 'layer'")

    def to_model(self) -> Model:
        """The model, with its graph; always the same object."""
        return self._model

    @cached_property
    def _model(self) -> Model:
        attention = SelfAttention(
            heads=self.heads,
            kv_heads=self.kv_heads or self.heads,
            head_dim=self.head_dim or self.model // self.heads,
            window=self.window,
        )
        layer = Layer(mixer=attention, channel=self._channel)
        decoder = Decoder(
            name=self.name,
            source="sizes given by the user",
            family="transformer",
            model=self.model,
            vocab=self.vocab,
            groups=(Group(name="layer", count=self.layers, layers=(layer,)),),
            norm=self.norm,
            tied=self.tied,
        )
        return decoder.to_model(self.precision)

    @property
    def _channel(self) -> Part:
        if not self.experts:
            return FeedForward(ffn=self.ffn, gated=self.gated)
        width = self.expert_ffn or self.ffn
        shared = FeedForward(
            ffn=self.shared_experts * width,
            gated=self.gated,
            label="shared",
            name="shared_",
            weight_class="shared",
        )
        return MixtureOfExperts(
            experts=self.experts,
            topk=self.topk,
            ffn=width,
            gated=self.gated,
            shared=shared if self.shared_experts else None,
        )

    def _check_size(self, key: str, size: int | None) -> None:
        least = 0 if key in _OPTIONAL else 1
        if size is None and key in ("kv_heads", "head_dim", "expert_ffn"):
            return
        if isinstance(size, bool) or not isinstance(size, int) or not least <= size <= LARGEST:
            self._refuse(key, f"must be a whole number from {least} to {LARGEST}")

    def _refuse(self, key: str, reason: str) -> None:
        raise SpecError(f"{self.name}: {key}={getattr(self, key)!r} {reason}")
