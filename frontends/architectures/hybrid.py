"""Mamba, and its hybrids with attention and experts."""

from collections.abc import Callable

from frontends.architectures.layered import (
    Hybrid,
    named,
    plain_attention,
    shared_network,
    state_dtype,
)
from frontends.channels import FeedForward, MixtureOfExperts
from frontends.config import Config
from frontends.decoder import Layer
from frontends.mixers import SelfAttention
from frontends.recurrent import Mamba1, Mamba2, Together
from frontends.shared import SharedLayer, SharedTransformer, runs
from frontends.writer import Part
from hardware import SpecError

# of the reference code of Nemotron-H, where the config does not say
_ATTENTION_HEAD_DIM = 128

# what the keys of transformers' Mamba2 are called in other configs
_NEMOTRON_H = {
    "num_heads": "mamba_num_heads",
    "head_dim": "mamba_head_dim",
    "state_size": "ssm_state_size",
    "use_bias": "mamba_proj_bias",
}
_BAMBA = {
    "num_heads": "mamba_n_heads",
    "head_dim": "mamba_d_head",
    "state_size": "mamba_d_state",
    "n_groups": "mamba_n_groups",
    "conv_kernel": "mamba_d_conv",
    "chunk_size": "mamba_chunk_size",
    "use_bias": "mamba_proj_bias",
    "use_conv_bias": "mamba_conv_bias",
}
_ZAMBA2 = {
    "num_heads": "n_mamba_heads",
    "state_size": "mamba_d_state",
    "n_groups": "mamba_ngroups",
    "conv_kernel": "mamba_d_conv",
    "use_bias": "add_bias_linear",
}


def _mamba(norm: str) -> Callable[[Config], list[Layer]]:
    def layers(config: Config) -> list[Layer]:
        mixer = Mamba1(
            inner=config.positive("intermediate_size"),
            state=config.positive("state_size"),
            rank=config.positive("time_step_rank"),
            taps=config.positive("conv_kernel"),
            norm=norm,  # type: ignore[arg-type]
            bias=config.flag("use_bias"),
            conv_bias=config.flag("use_conv_bias", True),
        )
        return [Layer(mixer=mixer)] * config.layers()

    return layers


def _state_space(config: Config, dim: int = 0, norm: bool = True) -> Mamba2:
    """A Mamba-2 mixer by the keys of transformers' Mamba2; *dim* where none says it."""
    return Mamba2(
        heads=config.positive("num_heads"),
        dim=dim or config.positive("head_dim"),
        state=config.positive("state_size"),
        groups=config.positive("n_groups"),
        taps=config.positive("conv_kernel"),
        chunk=config.positive("chunk_size"),
        bias=config.flag("use_bias"),
        conv_bias=config.flag("use_conv_bias", True),
        norm=norm,
        state_dtype=state_dtype(config, "mamba_ssm_cache_dtype"),
    )


def _mamba2(config: Config) -> list[Layer]:
    mixer = _state_space(config)
    inner = config.positive("expand") * config.positive("hidden_size")
    if mixer.heads * mixer.dim != inner:
        raise SpecError(
            f"{config.name}: 'expand' × 'hidden_size' is {inner}, but 'num_heads' × 'head_dim' is "
            f"{mixer.heads * mixer.dim}"
        )
    return [Layer(mixer=mixer)] * config.layers()


def _jamba(config: Config) -> list[Layer]:
    width = config.positive("hidden_size")
    mamba = Mamba1(
        inner=config.positive("mamba_expand") * width,
        state=config.positive("mamba_d_state"),
        rank=config.positive("mamba_dt_rank"),
        taps=config.positive("mamba_d_conv"),
        norm="weighted",
        bias=config.flag("mamba_proj_bias"),
        conv_bias=config.flag("mamba_conv_bias", True),
    )
    dense = FeedForward(ffn=config.positive("intermediate_size"))
    experts = MixtureOfExperts(
        experts=config.positive("num_experts"),
        topk=config.positive("num_experts_per_tok"),
        ffn=dense.ffn,
    )
    attention = plain_attention(config, rotary=0.0)

    def at(index: int, kind: str) -> bool:
        period = config.positive(f"{kind}_layer_period")
        return index % period == config.whole(f"{kind}_layer_offset")

    return [
        Layer(
            mixer=attention if at(index, "attn") else mamba,
            channel=experts if at(index, "expert") else dense,
        )
        for index in range(config.layers())
    ]


def _nemotron_h(config: Config) -> list[Layer]:
    """One mixer or channel per layer (NVIDIA 2025)."""
    words = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
    pattern = config.values.get("hybrid_override_pattern")
    key = "hybrid_override_pattern" if pattern else "layers_block_type"
    names = [words.get(name, name) for name in pattern or config.values.get(key) or ()]
    count = config.layers(len(names))
    if count != len(names):
        raise SpecError(
            f"{config.name}: {key!r} has {len(names)} entries, but 'num_hidden_layers' is {count}"
        )
    parts: dict[str, Layer] = {"mamba": Layer(mixer=_state_space(config.called(**_NEMOTRON_H)))}
    if "attention" in names:
        dim = config.positive("head_dim", config.whole("attention_head_dim", _ATTENTION_HEAD_DIM))
        parts["attention"] = Layer(mixer=plain_attention(config, rotary=0.0, dim=dim))
    if "mlp" in names:
        ffn = config.positive("intermediate_size")
        bias = config.flag("mlp_bias")
        parts["mlp"] = Layer(channel=FeedForward(ffn=ffn, gated=False, bias=bias))
    if "moe" in names:
        parts["moe"] = Layer(channel=_nemotron_h_experts(config))
    return named(config, key, parts, names)


def _nemotron_h_experts(config: Config) -> MixtureOfExperts:
    return MixtureOfExperts(
        experts=config.positive("n_routed_experts"),
        topk=config.positive("num_experts_per_tok"),
        ffn=config.positive("moe_intermediate_size"),
        gated=False,
        router_bias=True,
        latent=config.whole("moe_latent_size", 0),
        shared=shared_network(config.whole("moe_shared_expert_intermediate_size", 0), gated=False),
    )


def _granite(config: Config) -> list[Layer]:
    shared = shared_network(config.positive("shared_intermediate_size"))
    channel: Part | None = shared
    if config.whole("num_local_experts", 0):
        channel = MixtureOfExperts(
            experts=config.positive("num_local_experts"),
            topk=config.positive("num_experts_per_tok"),
            ffn=config.positive("intermediate_size"),
            shared=shared,
        )
    rotary = float(config.word("position_embedding_type") != "nope")
    parts = {
        "mamba": Layer(mixer=_state_space(config.called(**_BAMBA)), channel=channel),
        "attention": Layer(mixer=plain_attention(config, rotary), channel=channel),
    }
    names = config.words("layer_types", config.layers())
    return named(config, "layer_types", parts, list(names))


def _bamba(config: Config) -> list[Layer]:
    channel = FeedForward(ffn=config.positive("intermediate_size"), bias=config.flag("mlp_bias"))
    mamba = Layer(mixer=_state_space(config.called(**_BAMBA)), channel=channel)
    attention = Layer(mixer=plain_attention(config), channel=channel)
    at = config.indices("attn_layer_indices")
    count = config.layers()
    return [attention if index in at else mamba for index in range(count)]


def _falcon_h1(config: Config) -> list[Layer]:
    """Attention and a state space side by side in every layer."""
    mamba = _state_space(config.called(**_BAMBA), norm=config.flag("mamba_rms_norm"))
    channel = FeedForward(ffn=config.positive("intermediate_size"), bias=config.flag("mlp_bias"))
    mixer = Together(parts=(mamba, plain_attention(config)))
    return [Layer(mixer=mixer, channel=channel)] * config.layers()


def _zamba2(config: Config) -> list[Layer]:
    count = config.layers()
    kinds = config.words("layers_block_type", count)
    if not kinds or kinds[0] == "hybrid":
        raise SpecError(f"{config.name}: 'layers_block_type' must say of each layer what it is, "
                        "and the first is no hybrid")  # fmt: skip
    inner = config.positive("mamba_expand") * config.positive("hidden_size")
    dim = inner // config.positive("n_mamba_heads")
    mixer = _state_space(config.called(**_ZAMBA2), dim)
    layers: list[Layer] = []
    shared = 0
    for following in (*kinds[1:], ""):
        if following == "hybrid":
            block = _zamba2_block(config, shared % config.positive("num_mem_blocks"))
            layers.append(SharedLayer(mixer=mixer, block=block))
            shared += 1
        else:
            layers.append(Layer(mixer=mixer))
    return layers


def _zamba2_block(config: Config, index: int) -> SharedTransformer:
    if config.flag("use_shared_attention_adapter"):
        raise SpecError(f"{config.name}: adapters of the shared attention "
                        "('use_shared_attention_adapter') are not modelled")  # fmt: skip
    heads = config.positive("num_attention_heads")
    attention = SelfAttention(
        heads=heads,
        kv_heads=config.positive("num_key_value_heads", heads),
        head_dim=2 * config.positive("hidden_size") // heads,
        rotary=config.flag("use_mem_rope"),
    )
    return SharedTransformer(
        index=index,
        attention=attention,
        ffn=config.positive("intermediate_size"),
        rank=config.positive("adapter_rank"),
    )


HYBRID: dict[str, Hybrid] = {
    "mamba": Hybrid(layers=_mamba(""), tied=True),
    "falcon_mamba": Hybrid(layers=_mamba("plain")),
    "mamba2": Hybrid(layers=_mamba2),
    "jamba": Hybrid(layers=_jamba),
    "nemotron_h": Hybrid(layers=_nemotron_h),
    "granitemoehybrid": Hybrid(layers=_granite, tied=True),
    "bamba": Hybrid(layers=_bamba),
    "falcon_h1": Hybrid(layers=_falcon_h1),
    "zamba2": Hybrid(layers=_zamba2, grouped=runs, tied=True),
}
