"""Encoder–decoders: T5 (text to text) and Whisper (speech to text).

T5's encoder reads the prompt; its decoder starts from a single token, so that ``output`` tokens
follow it. Whisper's encoder reads 30 s of sound, always; its prompt is the decoder's (language,
task, earlier text). Keys and values of what the encoder has read are computed once and kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from frontends.channels import FeedForward
from frontends.config import Config
from frontends.cross import CrossAttention, CrossLayer
from frontends.decoder import Decoder, Group
from frontends.encoder import Encoder, EncoderAttention, EncoderLayer, Stack
from frontends.mixers import SelfAttention
from frontends.writer import Part, Writer
from hardware import SpecError
from opgraph.operator import Activation, Elementwise, Lookup, View
from opgraph.tensor import Tensor

# GELU (tanh approximation), as counted for the layers' activations
_ACTIVATION_FLOP = 4
# both of Whisper's convolutions see three frames at a time (Radford et al. 2022, section 2.2);
# the second one takes every other frame
_KERNEL, _STRIDE = 3, 2


@dataclass(frozen=True, kw_only=True)
class TokenStem:
    """The encoder's tokens, found in the decoder's embedding."""

    def write(self, writer: Writer) -> Tensor:
        """Look them up."""
        tokens = writer.build.input(Tensor.of("source_tokens", "batch source", "int32"))
        table = Tensor.of(
            "embedding.weight", "vocab model", writer.precision.of("embedding"), "weight"
        )
        return writer.add(Lookup(name=f"{writer.prefix}embedding", inputs=(tokens, table)))


@dataclass(frozen=True, kw_only=True)
class SoundStem:
    """Two convolutions over the mel spectrum, then learned places: *frames* come out."""

    mels: int
    frames: int

    def write(self, writer: Writer) -> Tensor:
        """Each convolution is a product over the frames that it sees."""
        mels = writer.derive("mels_seen", f"{_KERNEL}*{writer.dim('mels', self.mels)}")
        fine = writer.derive("sound", f"{_STRIDE}*{writer.dim('source', self.frames)}")
        width = writer.derive("model_seen", f"{_KERNEL}*model")
        sound = Tensor.of("sound", f"batch {fine} {mels}", writer.precision.activations)
        x = self._convolve(writer, "conv1", writer.build.input(sound))
        view = View(
            name=f"{writer.prefix}frames", inputs=(x,), parts=(("", f"batch source {width}"),)
        )
        x = self._convolve(writer, "conv2", writer.add(view))
        places = writer.weight("places.weight", "source model", "embedding")
        return writer.elementwise("place_sum", x, places)

    def _convolve(self, writer: Writer, name: str, x: Tensor) -> Tensor:
        batch, frames, seen = x.dims
        pattern = f"{batch} {frames} {seen}, {seen} model -> {batch} {frames} model"
        x = writer.linear(name, x, pattern, "embedding", bias=True)
        active = Activation(
            name=f"{writer.prefix}{name}_activation",
            inputs=(x,),
            flop_per_element=_ACTIVATION_FLOP,
        )
        return writer.add(active)


@dataclass(frozen=True, kw_only=True)
class Relative:
    """Attention with the table of relative places that all layers of its stack share.

    The scores' sums with it are part of the attention kernel.
    """

    attention: Part
    buckets: int
    heads: int

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Read the table, then attend."""
        rows = writer.dim("buckets", self.buckets)
        heads = writer.dim("heads", self.heads)
        bias = writer.weight("relative.weight", f"{rows} {heads}")
        writer.add(Elementwise(name=f"{writer.prefix}relative", inputs=(bias,), flop_per_element=0))
        return self.attention.write(writer, x)


def _t5(config: Config, source: str, family: str) -> Decoder:
    """T5 (Raffel et al. 2020), gated or not."""
    heads, head_dim = config.positive("num_heads"), config.positive("d_kv")
    own = SelfAttention(heads=heads, kv_heads=heads, head_dim=head_dim, rotary=0)
    cross = CrossAttention(heads=heads, kv_heads=heads, head_dim=head_dim)
    layer = CrossLayer(mixer=own, cross=cross, channel=_t5_channel(config))
    first = replace(layer, mixer=_relative(config, own))
    count = config.positive("num_decoder_layers", config.positive("num_layers"))
    return Decoder(
        name=config.name,
        source=source,
        family=family,
        model=config.positive("d_model"),
        vocab=config.positive("vocab_size"),
        groups=(
            Group(name="first", count=1, layers=(first,)),
            Group(name="layer", count=count - 1, layers=(layer,)),
        ),
        tied=config.flag("tie_word_embeddings", True),
        encoder=_t5_encoder(config),
        encodes_prompt=True,
    )


def _t5_encoder(config: Config) -> Encoder:
    attention = EncoderAttention(
        heads=config.positive("num_heads"),
        head_dim=config.positive("d_kv"),
        bias=False,
        out_bias=False,
        label="encoder",
    )
    layer = EncoderLayer(attention=attention, ffn=_t5_channel(config), norm="rms")
    first = replace(layer, attention=_relative(config, attention))
    count = config.positive("num_layers")
    return Encoder(
        label="encoder",
        stem=TokenStem(),
        stacks=(Stack(count=1, layer=first), Stack(count=count - 1, layer=layer, final_norm=True)),
        into="attention",
    )


def _t5_channel(config: Config) -> FeedForward:
    kind = config.values.get("feed_forward_proj", "relu")
    if kind not in ("relu", "gated-gelu", "gated-silu"):
        raise SpecError(f"{config.name}: 'feed_forward_proj' {kind!r} is not known")
    return FeedForward(ffn=config.positive("d_ff"), gated=kind != "relu")


def _relative(config: Config, attention: Part) -> Relative:
    buckets = config.positive("relative_attention_num_buckets")
    return Relative(attention=attention, buckets=buckets, heads=config.positive("num_heads"))


def _whisper(config: Config, source: str, family: str) -> Decoder:
    """Whisper (Radford et al. 2022): no biases of the keys, learned places."""
    width = config.positive("d_model")
    heads = _heads(config, width, "decoder_attention_heads")
    own = SelfAttention(
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        bias=True,
        key_bias=False,
        out_bias=True,
        rotary=0,
    )
    cross = CrossAttention(heads=heads, kv_heads=heads, head_dim=width // heads, bias=True)
    layer = CrossLayer(mixer=own, cross=cross, channel=_gelu(config, "decoder_ffn_dim"))
    return Decoder(
        name=config.name,
        source=source,
        family=family,
        model=width,
        vocab=config.positive("vocab_size"),
        groups=(Group(name="layer", count=config.positive("decoder_layers"), layers=(layer,)),),
        norm="layer",
        tied=config.flag("tie_word_embeddings", True),
        positions=config.positive("max_target_positions"),
        encoder=_whisper_encoder(config, width),
    )


def _whisper_encoder(config: Config, width: int) -> Encoder:
    heads = _heads(config, width, "encoder_attention_heads")
    attention = EncoderAttention(
        heads=heads, head_dim=width // heads, key_bias=False, label="encoder"
    )
    layer = EncoderLayer(attention=attention, ffn=_gelu(config, "encoder_ffn_dim"))
    stem = SoundStem(
        mels=config.positive("num_mel_bins"), frames=config.positive("max_source_positions")
    )
    stack = Stack(count=config.positive("encoder_layers"), layer=layer, final_norm=True)
    return Encoder(label="encoder", stem=stem, stacks=(stack,), into="attention")


def _gelu(config: Config, key: str) -> FeedForward:
    return FeedForward(ffn=config.positive(key), gated=False, bias=True)


def _heads(config: Config, width: int, key: str) -> int:
    heads = config.positive(key)
    if width % heads:
        raise SpecError(f"{config.name}: 'd_model' {width} is not a multiple of {key!r} {heads}")
    return heads


SEQ2SEQ: dict[str, Callable[[Config, str, str], Decoder]] = {"t5": _t5, "whisper": _whisper}
