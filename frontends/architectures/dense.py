"""Dense decoders: Llama and those that differ from it in a few words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from frontends.channels import FeedForward
from frontends.config import LARGEST, Config
from frontends.decoder import Decoder, Layer, fold
from frontends.hyper import HyperLayer
from frontends.mixers import QkNorm, SelfAttention
from frontends.writer import NormKind, Part
from hardware import SpecError

# From the config as a layer sees it and the layer's number; None: the layer has no such part.
Choice = Callable[[Config, int], Part | None]


@dataclass(frozen=True, kw_only=True)
class Heads:
    """What distinguishes a family's attention from Llama's.

    *bias*, *out_bias*: of the q, k, v projections and of the output; None: as ``attention_bias``
    says. *asks*: queries and keys are normalised only where ``use_qk_norm`` says so. *window*:
    tokens that a layer looks back. Other fields as in `SelfAttention`.
    """

    bias: bool | None = None
    out_bias: bool | None = None
    qk_norm: QkNorm = ""
    asks: bool = False
    window: Callable[[Config, int], int] | None = None
    rotary: bool = True
    sinks: bool = False

    def __call__(self, config: Config, index: int) -> SelfAttention:
        """The attention of a layer."""
        heads, kv_heads = grouped(config)
        window = self.window(config, index) if self.window else 0
        size = head_dim(config, heads)
        biased = config.flag("attention_bias")
        return SelfAttention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=size,
            window=window,
            bias=biased if self.bias is None else self.bias,
            out_bias=biased if self.out_bias is None else self.out_bias,
            rotary=rotated(config, size) if self.rotary else 0.0,
            qk_norm="" if self.asks and not config.flag("use_qk_norm") else self.qk_norm,
            sinks=self.sinks,
            label="local" if window else "",
        )


@dataclass(frozen=True, kw_only=True)
class Wide:
    """What distinguishes a family's feed-forward network; *bias* None: as ``mlp_bias`` says."""

    gated: bool = True
    bias: bool | None = None

    def __call__(self, config: Config, index: int) -> FeedForward:
        """The network of a layer."""
        del index
        bias = config.flag("mlp_bias") if self.bias is None else self.bias
        return FeedForward(ffn=config.positive("intermediate_size"), gated=self.gated, bias=bias)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What distinguishes a family of decoders from Llama.

    *called*: what its configs call a key, where not as Llama's do. *positions*: rows that its
    table of positions has besides ``max_position_embeddings`` (None: there is no table).
    *streams*: the key that says how many residual streams there are. Other fields as in `Layer`
    and `Decoder`.
    """

    mixer: Choice = field(default_factory=Heads)
    channel: Choice = field(default_factory=Wide)
    called: Mapping[str, str] = field(default_factory=dict)
    norm: NormKind = "rms"
    parallel: bool | Callable[[Config], bool] = False
    own_norms: bool | Callable[[Config], bool] = False
    pre_norm: bool = True
    post_norm: bool = False
    scalar: bool = False
    scaled: bool = False
    tied: bool = False
    positions: int | None = None
    streams: str = ""

    def __call__(self, config: Config, source: str, family: str) -> Decoder:
        """The decoder that *config* describes."""
        config = config.called(**self.called)
        layers = self._layers(config)
        positions = 0
        if self.positions is not None:
            positions = config.positive("max_position_embeddings") + self.positions
        return Decoder(
            name=config.name,
            source=source,
            family=family,
            model=config.positive("hidden_size"),
            vocab=config.positive("vocab_size"),
            groups=fold(layers),
            norm=self.norm,
            tied=config.flag("tie_word_embeddings", self.tied),
            positions=positions,
            scaled=self.scaled,
            softcap=bool(config.get("final_logit_softcapping")),
            head_bias=config.flag("lm_head_bias"),
            pre_norm=self.pre_norm,
            streams=config.positive(self.streams) if self.streams else 0,
        )

    def _layers(self, config: Config) -> list[Layer | HyperLayer]:
        count = config.layers()
        found = [self._layer(config.layer(index, count), index) for index in range(count)]
        return [layer for layer in found if layer.mixer or layer.channel]

    def _layer(self, config: Config, index: int) -> Layer | HyperLayer:
        mixer, channel = self.mixer(config, index), self.channel(config, index)
        if self.streams and mixer and channel:
            return HyperLayer(mixer=mixer, channel=channel)
        return Layer(
            mixer=mixer,
            channel=channel,
            parallel=_said(self.parallel, config),
            own_norms=_said(self.own_norms, config),
            pre_norm=self.pre_norm,
            post_norm=self.post_norm,
            scalar=self.scalar,
        )


def _said(value: bool | Callable[[Config], bool], config: Config) -> bool:
    return value if isinstance(value, bool) else value(config)


def grouped(config: Config) -> tuple[int, int]:
    """Heads and KV heads.

    Raises
    ------
    SpecError : the heads cannot share the KV heads evenly.
    """
    heads = config.positive("num_attention_heads")
    kv_heads = config.positive("num_key_value_heads", heads)
    if heads % kv_heads:
        raise SpecError(
            f"{config.name}: {config.key('num_attention_heads')!r} {heads} is not a multiple of "
            f"{config.key('num_key_value_heads')!r} {kv_heads}"
        )
    return heads, kv_heads


def head_dim(config: Config, heads: int) -> int:
    """The size of a head: its own key, or the model's width over the heads."""
    width = config.positive("hidden_size")
    if config.given("head_dim"):
        return config.positive("head_dim")
    if width % heads:
        raise SpecError(
            f"{config.name}: {config.key('hidden_size')!r} {width} is not a multiple of "
            f"{config.key('num_attention_heads')!r} {heads}, and there is no 'head_dim'"
        )
    return width // heads


def rotated(config: Config, size: int) -> float:
    """The part of a head of *size* that is rotated."""
    if not config.given("rotary_dim"):
        return config.share("partial_rotary_factor")
    rotary = config.whole("rotary_dim")
    if rotary > size:
        raise SpecError(f"{config.name}: 'rotary_dim' {rotary} is more than a head of {size}")
    return rotary / size


def every_window(config: Config, index: int) -> int:
    """The same window in all layers, if the config has one and it is in use."""
    del index
    size = config.whole("sliding_window", 0)
    return size if config.flag("use_sliding_window", True) else 0


def typed_window(every: int = 0) -> Callable[[Config, int], int]:
    """Windows by ``layer_types``; without it in all but every *every*-th layer."""

    def window(config: Config, index: int) -> int:
        size = config.whole("sliding_window", 0)
        kind = config.word("layer_types")
        if kind:
            return size if kind == "sliding_attention" else 0
        period = config.whole("sliding_window_pattern", every)
        return size if period and (index + 1) % period else 0

    return window


def _whole_width(config: Config, index: int, heads: Heads) -> SelfAttention:
    """Attention whose heads make up the model's width, as the architecture demands."""
    attention = heads(config, index)
    width = config.positive("hidden_size")
    if attention.heads * attention.head_dim != width:
        raise SpecError(
            f"{config.name}: {config.key('num_attention_heads')!r} {attention.heads} × 'head_dim' "
            f"{attention.head_dim} is not {config.key('hidden_size')!r} {width}"
        )
    return attention


def _falcon(config: Config, index: int) -> SelfAttention:
    """One KV head, or as many as ``num_kv_heads`` says in the new architecture."""
    if config.flag("new_decoder_architecture"):
        config = config.called(num_key_value_heads="num_kv_heads")
    biased = config.flag("bias")
    heads = Heads(bias=biased, out_bias=biased, rotary=not config.flag("alibi"))
    attention = _whole_width(config, index, heads)
    if config.flag("multi_query") and not config.flag("new_decoder_architecture"):
        return replace(attention, kv_heads=1)
    return attention


def _falcon_ffn(config: Config, index: int) -> FeedForward:
    del index
    # four times the width, if the config does not say (Almazrouei et al. 2023)
    ffn = config.positive("ffn_hidden_size", 4 * config.positive("hidden_size"))
    return FeedForward(ffn=ffn, gated=False, bias=config.flag("bias"))


def _gpt2_ffn(config: Config, index: int) -> FeedForward:
    del index
    # four times the width, if the config does not say (Radford et al. 2019)
    ffn = config.positive("n_inner", 4 * config.positive("hidden_size"))
    return FeedForward(ffn=ffn, gated=False, bias=True)


def _opt(config: Config, index: int) -> SelfAttention:
    width = config.positive("hidden_size")
    if config.positive("word_embed_proj_dim", width) != width:
        raise SpecError(
            f"{config.name}: 'word_embed_proj_dim' {config.whole('word_embed_proj_dim')} is not "
            f"'hidden_size' {width}: an embedding of another width is not known here"
        )
    if not config.flag("do_layer_norm_before", True):
        raise SpecError(f"{config.name}: 'do_layer_norm_before' false is not known here")
    return _whole_width(config, index, Heads(bias=True, out_bias=True, rotary=False))


def _gpt2(config: Config, index: int) -> SelfAttention:
    return _whole_width(config, index, Heads(bias=True, out_bias=True, rotary=False))


def _block(config: Config, part: str) -> Config | None:
    """What ``block_configs`` says of a layer's *part*; None: the layer has none."""
    block = config.section("block_configs").section(part)
    if block.flag("replace_with_linear"):
        raise SpecError(f"{block.name}: 'replace_with_linear' is not known here")
    return None if block.flag("no_op") else block


def _nas(config: Config, index: int) -> SelfAttention | None:
    """Attention with as many KV heads as the search has found (Puzzle, Bercovich et al. 2024)."""
    block = _block(config, "attention")
    if block is None:
        return None
    heads, share = config.positive("num_attention_heads"), block.positive("n_heads_in_group")
    if heads % share:
        raise SpecError(
            f"{block.name}: 'n_heads_in_group' {share} does not divide the {heads} of "
            "'num_attention_heads'"
        )
    return replace(Heads()(config, index), kv_heads=heads // share)


def _nas_ffn(config: Config, index: int) -> FeedForward | None:
    """``ffn_mult`` × two thirds of the width, rounded up to a multiple (modeling_decilm.py)."""
    del index
    multiple = 256
    block = _block(config, "ffn")
    if block is None:
        return None
    factor = block.get("ffn_mult")
    if not isinstance(factor, int | float) or not 0 < factor <= LARGEST:
        raise SpecError(f"{block.name}: 'ffn_mult' is {factor!r}, but must be a number above 0")
    ffn = int(2 * factor * config.positive("hidden_size") / 3)
    return FeedForward(ffn=-(-ffn // multiple) * multiple)


def gemma4_attention(config: Config, index: int) -> SelfAttention:
    """Local layers as ever; global ones with heads of their own, and keys that are the values."""
    for key in ("hidden_size_per_layer_input", "num_kv_shared_layers"):
        if config.whole(key, 0):
            raise SpecError(f"{config.name}: {key!r} {config.whole(key)} is not known here")
    attention = Heads(qk_norm="head", window=typed_window())(config, index)
    if attention.window:
        return attention
    config = config.called(num_key_value_heads="num_global_key_value_heads")
    heads, kv_heads = grouped(config) if config.given("num_key_value_heads") else (0, 0)
    return replace(
        attention,
        kv_heads=kv_heads if heads else attention.kv_heads,
        head_dim=config.positive("global_head_dim", attention.head_dim),
        keys_are_values=config.flag("attention_k_eq_v"),
        label="full",
    )


GPT2_KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}

_GEMMA = Family(scaled=True, tied=True)
_MISTRAL = Family(mixer=Heads(window=every_window))
_QWEN2 = Family(mixer=Heads(bias=True, out_bias=False, window=every_window))

DENSE: dict[str, Family] = {
    "llama": Family(),
    "mistral": _MISTRAL,
    "ministral": _MISTRAL,
    "phi3": _MISTRAL,
    "qwen2": _QWEN2,
    "mimo": _QWEN2,
    "qwen3": Family(mixer=Heads(qk_norm="head", window=every_window)),
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA, post_norm=True, mixer=Heads(window=typed_window(2))),
    "gemma3_text": replace(
        _GEMMA, post_norm=True, mixer=Heads(qk_norm="head", window=typed_window(6))
    ),
    "glm": Family(mixer=Heads(out_bias=False)),
    "cohere": Family(
        mixer=Heads(qk_norm="each", asks=True), norm="unbiased", parallel=True, tied=True
    ),
    "olmo2": Family(mixer=Heads(qk_norm="whole"), pre_norm=False, post_norm=True),
    "nemotron": Family(channel=Wide(gated=False), norm="layer"),
    "nemotron-nas": Family(mixer=_nas, channel=_nas_ffn),
    "opt": Family(
        mixer=_opt,
        channel=Wide(gated=False, bias=True),
        called={"intermediate_size": "ffn_dim"},
        norm="layer",
        tied=True,
        positions=2,
    ),
    "gpt2": Family(
        mixer=_gpt2, channel=_gpt2_ffn, called=GPT2_KEYS, norm="layer", tied=True, positions=0
    ),
    "falcon": Family(
        mixer=_falcon,
        channel=_falcon_ffn,
        norm="layer",
        parallel=lambda config: (
            config.flag("parallel_attn") or config.flag("new_decoder_architecture")
        ),
        own_norms=lambda config: config.flag("new_decoder_architecture"),
        tied=True,
    ),
}
