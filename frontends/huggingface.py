"""Hugging Face ``config.json``: the dimensions of a model in the words of its architecture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from frontends.decoder import Decoder, FeedForward, Group, Layer, SelfAttention
from hardware import SpecError
from hardware.errors import nearest

# no real model comes near; beyond it sizes are typing errors
LARGEST = 2**31


@dataclass(frozen=True)
class Config:
    """A config with the words of its place for messages."""

    values: Mapping[str, Any]
    name: str

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number ≥ 0.

        Raises
        ------
        SpecError : it is missing and has no default, or is no such number.
        """
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise SpecError(f"{self.name}: {key!r} is missing{nearest(key, list(self.values))}")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
            raise SpecError(
                f"{self.name}: {key!r} is {value!r}, but must be a whole number from 0 to {LARGEST}"
            )
        return value

    def positive(self, key: str, default: int | None = None) -> int:
        """A whole number ≥ 1."""
        value = self.whole(key, default)
        if value < 1:
            raise SpecError(f"{self.name}: {key!r} is {value}, but must be at least 1")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """A truth value."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise SpecError(f"{self.name}: {key!r} is {value!r}, but must be true or false")
        return value

    def words(self, key: str, length: int) -> tuple[str, ...]:
        """A list of *length* words, or none at all."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise SpecError(f"{self.name}: {key!r} must be a list of words, not {value!r}")
        if len(value) != length:
            raise SpecError(
                f"{self.name}: {key!r} has {len(value)} entries, but there are {length} layers"
            )
        return tuple(value)


def to_decoder(config: Config, source: str = "", family: str = "") -> Decoder:
    """The decoder that *config* describes, by its ``model_type``.

    Raises
    ------
    SpecError : an architecture that is not known, a size that is missing or contradicts another.
    """
    kind = config.values.get("model_type")
    if not isinstance(kind, str):
        raise SpecError(f"{config.name}: 'model_type' is missing; it names the architecture")
    if kind not in ARCHITECTURES:
        hint = nearest(kind, ARCHITECTURES)
        raise SpecError(f"{config.name}: the architecture {kind!r} is not known{hint}")
    return ARCHITECTURES[kind](config, source or config.name, family or kind)


@dataclass(frozen=True, kw_only=True)
class Dense:
    """What distinguishes a dense family from Llama.

    *bias*: default of the q, k, v biases where the config does not say. Other fields as in
    `SelfAttention`, `Layer` and `Decoder`.
    """

    bias: bool = False
    qk_norm: str = ""
    post_norm: bool = False
    scaled: bool = False
    tied: bool = False
    windows: Callable[[Config, int], tuple[int, ...]] | None = None

    def __call__(self, config: Config, source: str, family: str) -> Decoder:
        """The decoder of a dense config."""
        layers = config.positive("num_hidden_layers")
        windows = self.windows(config, layers) if self.windows else (0,) * layers
        return Decoder(
            name=config.name,
            source=source,
            family=family,
            model=config.positive("hidden_size"),
            vocab=config.positive("vocab_size"),
            groups=fold([self._layer(config, window) for window in windows]),
            tied=config.flag("tie_word_embeddings", self.tied),
            scaled=self.scaled,
            softcap=bool(config.values.get("final_logit_softcapping")),
        )

    def _layer(self, config: Config, window: int) -> Layer:
        heads = config.positive("num_attention_heads")
        attention = SelfAttention(
            heads=heads,
            kv_heads=config.positive("num_key_value_heads", heads),
            head_dim=head_dim(config, heads),
            window=window,
            bias=config.flag("attention_bias", self.bias),
            out_bias=config.flag("attention_bias"),
            qk_norm=self.qk_norm,  # type: ignore[arg-type]
            label="local" if window else "",
        )
        ffn = FeedForward(ffn=config.positive("intermediate_size"), bias=config.flag("mlp_bias"))
        return Layer(mixer=attention, channel=ffn, post_norm=self.post_norm)


def head_dim(config: Config, heads: int) -> int:
    """The size of a head: its own key, or the model's width over the heads."""
    width = config.positive("hidden_size")
    if config.values.get("head_dim") is not None:
        return config.positive("head_dim")
    if width % heads:
        raise SpecError(
            f"{config.name}: 'hidden_size' {width} is not a multiple of 'num_attention_heads' "
            f"{heads}, and there is no 'head_dim'"
        )
    return width // heads


def fold(layers: list[Layer]) -> tuple[Group, ...]:
    """Layers as counted groups: runs of the shortest pattern that repeats most of them.

    A tail that does not complete the pattern is a group of its own.
    """
    for period in range(1, len(layers) + 1):
        count = 1
        while layers[count * period : (count + 1) * period] == layers[:period]:
            count += 1
        rest = layers[count * period :]
        # a pattern is worth its name if it repeats and leaves less than one period
        if len(rest) < period and (count > 1 or period == len(layers)):
            groups = (Group(name="layer", count=count, layers=tuple(layers[:period])),)
            return groups + ((Group(name="tail", count=1, layers=tuple(rest)),) if rest else ())
    raise AssertionError("a list repeats itself once")


def _every_window(config: Config, layers: int) -> tuple[int, ...]:
    """All layers with the same window, if the config has one and it is in use."""
    if not config.flag("use_sliding_window", True):
        return (0,) * layers
    return (config.whole("sliding_window", 0),) * layers


def _typed_windows(pattern: int) -> Callable[[Config, int], tuple[int, ...]]:
    """Windows by ``layer_types``; else all but every *pattern*-th layer."""

    def windows(config: Config, layers: int) -> tuple[int, ...]:
        window = config.whole("sliding_window", 0)
        types = config.words("layer_types", layers)
        if types:
            return tuple(window if kind == "sliding_attention" else 0 for kind in types)
        every = config.positive("sliding_window_pattern", pattern)
        return tuple(window if (i + 1) % every else 0 for i in range(layers))

    return windows


ARCHITECTURES: dict[str, Callable[[Config, str, str], Decoder]] = {
    "llama": Dense(),
    "mistral": Dense(windows=_every_window),
    "ministral": Dense(windows=_every_window),
    "qwen2": Dense(bias=True),
    "qwen3": Dense(qk_norm="head"),
    "gemma": Dense(scaled=True, tied=True),
    "gemma2": Dense(post_norm=True, scaled=True, tied=True, windows=_typed_windows(2)),
    "gemma3_text": Dense(
        post_norm=True, scaled=True, tied=True, qk_norm="head", windows=_typed_windows(6)
    ),
    "phi3": Dense(windows=_every_window),
}
