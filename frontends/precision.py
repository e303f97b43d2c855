"""Number formats by class of tensors, and how a checkpoint's config declares them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hardware import SpecError
from opgraph.tensor import Format, as_format

WeightClass = Literal["attention", "ffn", "experts", "shared", "head", "embedding", "vision"]

# classes that checkpoints leave in 16 bit unless they say otherwise
_KEPT = ("head", "embedding", "vision")
# formats whose products run in 16 bit: only the weights are stored in them. MXFP4 as gpt-oss is
# released: weights only (OpenAI, gpt-oss model card, 2025)
_WEIGHT_ONLY = ("int4", "int3", "mxfp4", "mxfp6")


@dataclass(frozen=True)
class Scheme:
    """The format in which a class of weights is stored, and that in which its input enters.

    Where the input's format is narrower than the activations', a quantise operator comes before
    the product, which then runs at that format's rate. *inputs* None: as the activations are.
    """

    weights: Format
    inputs: Format | None = None

    @classmethod
    def of(cls, text: "str | Format | Scheme") -> "Scheme":
        """Read ``fp8`` (both), ``int4-g128`` (weights only) or ``fp8/bf16`` (weights/inputs)."""
        if isinstance(text, Scheme):
            return text
        if isinstance(text, str) and "/" in text:
            stored, _, entering = text.partition("/")
            return cls(as_format(stored), as_format(entering))
        weights = as_format(text)
        stored_only = weights.group and weights.name.startswith(_WEIGHT_ONLY)
        if stored_only or not weights.name or weights.name in _WEIGHT_ONLY:
            return cls(weights)
        return cls(weights, weights)


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The number formats of a model.

    Parameters
    ----------
    weights : of every matrix without an entry of its own in *classes*; a name such as ``fp8`` or
        ``int4-g128``, a `Format`, or a `Scheme`. The embedding, the head and a vision tower stay
        in the activations' format unless *classes* says otherwise, as in released checkpoints.
    activations : of what operators hand to each other, of norms and of biases.
    kv_cache : of cached keys and values.
    classes : formats of ``attention ffn experts shared head embedding vision``, apart.

    Raises
    ------
    SpecError : an unknown format or class.
    """

    weights: str | Format | Scheme = "bf16"
    activations: str | Format = "bf16"
    kv_cache: str | Format = "bf16"
    classes: Mapping[WeightClass, str | Format | Scheme] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = WeightClass.__args__  # type: ignore[attr-defined]
        for name in self.classes:
            if name not in known:
                raise SpecError(f"no class of weights {name!r}; there are {', '.join(known)}")
        for text in (self.weights, *self.classes.values()):
            Scheme.of(text)
        as_format(self.activations)
        as_format(self.kv_cache)

    def scheme(self, weight_class: WeightClass) -> Scheme:
        """How the matrices of a class are stored and multiplied."""
        if weight_class in self.classes:
            return Scheme.of(self.classes[weight_class])
        if weight_class in _KEPT:
            return Scheme(as_format(self.activations))
        if weight_class == "shared" and "ffn" in self.classes:
            return Scheme.of(self.classes["ffn"])
        return Scheme.of(self.weights)

    def of(self, weight_class: WeightClass) -> Format:
        """The format in which the matrices of a class are stored."""
        return self.scheme(weight_class).weights
