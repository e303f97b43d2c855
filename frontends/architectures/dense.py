"""Dense decoders: Llama and those that differ from it in a few words."""

from collections.abc import Callable
from dataclasses import dataclass

from frontends.channels import FeedForward
from frontends.config import Config
from frontends.decoder import Decoder, Layer, fold
from frontends.mixers import SelfAttention
from hardware import SpecError


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


DENSE: dict[str, Dense] = {
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
