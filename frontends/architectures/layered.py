"""What the families of hybrids have in common: a description by layers, and frequent parts."""

from collections.abc import Callable
from dataclasses import dataclass

from frontends.architectures.dense import head_dim
from frontends.channels import FeedForward
from frontends.config import Config
from frontends.decoder import Decoder, Group, Layer, fold
from frontends.mixers import SelfAttention
from frontends.writer import NormKind
from hardware import SpecError
from hardware.errors import nearest

_STATE_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """What distinguishes a family: its *layers*, in order, as its config says; how they are
    *grouped*. Other fields as in `Decoder`, where the config does not say.
    """

    layers: Callable[[Config], list[Layer]]
    grouped: Callable[[list[Layer]], tuple[Group, ...]] = fold
    norm: NormKind = "rms"
    tied: bool = False
    embedding_norm: bool = False

    def __call__(self, config: Config, source: str, family: str) -> Decoder:
        """The decoder of a config."""
        return Decoder(
            name=config.name,
            source=source,
            family=family,
            model=config.positive("hidden_size"),
            vocab=config.positive("vocab_size"),
            groups=self.grouped(self.layers(config)),
            norm=self.norm,
            tied=config.flag("tie_word_embeddings", self.tied),
            embedding_norm=self.embedding_norm,
        )


def plain_attention(config: Config, rotary: float = 1.0, dim: int = 0) -> SelfAttention:
    """Grouped attention as in Llama, its heads of *dim* where the config has another key.

    *rotary*: the part of each head that is rotated.
    """
    heads = config.positive("num_attention_heads")
    return SelfAttention(
        heads=heads,
        kv_heads=config.positive("num_key_value_heads", heads),
        head_dim=dim or head_dim(config, heads),
        bias=config.flag("attention_bias"),
        out_bias=config.flag("attention_bias"),
        rotary=rotary,
    )


def state_dtype(config: Config, key: str) -> str:
    """The format of the states, which stands under *key*; 32 bits if it does not."""
    name = config.values.get(key, "float32")
    if name not in _STATE_DTYPES:
        raise SpecError(f"{config.name}: {key!r} is {name!r}{nearest(name, _STATE_DTYPES)}")
    return _STATE_DTYPES[name]


def named(config: Config, key: str, parts: dict[str, Layer], names: list[str]) -> list[Layer]:
    """The layer of each of *names*, which stand under *key*."""
    for name in names:
        if name not in parts:
            raise SpecError(f"{config.name}: no layer {name!r} in {key!r}{nearest(name, parts)}")
    return [parts[name] for name in names]


def shared_network(ffn: int, gated: bool = True) -> FeedForward | None:
    """The network that every token goes to, *ffn* wide, if there is one."""
    if not ffn:
        return None
    return FeedForward(ffn=ffn, gated=gated, label="shared", name="shared_", weight_class="shared")
