"""Linear attention, and its hybrids with softmax attention: MiniMax-Text, Qwen3-Next, RWKV."""

from dataclasses import replace

from frontends.architectures.dense import head_dim
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
from frontends.latent import LatentAttention
from frontends.recurrent import GatedDeltaNet, KimiDelta, LightningAttention, Rwkv7, Rwkv7Channel
from frontends.writer import Part
from hardware import SpecError

# of MiniMax-Text-01's own code, where the config does not say
_LIGHTNING_BLOCK = 256
# of Qwen3-Next, where the config does not say
_FULL_EVERY = 4
_ROTARY = 0.25


def _minimax(config: Config) -> list[Layer]:
    count, heads = config.layers(), config.positive("num_attention_heads")
    channel = MixtureOfExperts(
        experts=config.positive("num_local_experts"),
        topk=config.positive("num_experts_per_tok"),
        ffn=config.positive("intermediate_size"),
        shared=shared_network(config.whole("shared_intermediate_size", 0)),
    )
    dim = head_dim(config, heads)
    rotary = config.positive("rotary_dim", dim) / dim
    linear = LightningAttention(
        heads=heads,
        dim=dim,
        chunk=config.positive("block_size", _LIGHTNING_BLOCK),
    )
    parts = {
        "linear_attention": Layer(mixer=linear, channel=channel),
        "full_attention": Layer(mixer=plain_attention(config, rotary), channel=channel),
    }
    names = config.words("layer_types", count) or tuple(
        "full_attention" if full else "linear_attention"
        for full in config.indices("attn_type_list")
    )
    if len(names) != count:
        raise SpecError(
            f"{config.name}: 'attn_type_list' has {len(names)} entries, "
            f"but there are {count} layers"
        )
    return named(config, "layer_types", parts, list(names))


def _qwen3_next(config: Config) -> list[Layer]:
    """Qwen3-Next and Qwen3.5: three layers of gated delta rule, one of gated attention."""
    count = config.layers()
    interval = config.positive("full_attention_interval", _FULL_EVERY)
    names = config.words("layer_types", count) or tuple(
        "linear_attention" if (index + 1) % interval else "full_attention" for index in range(count)
    )
    linear = GatedDeltaNet(
        heads=config.positive("linear_num_value_heads"),
        dim=config.positive("linear_value_head_dim"),
        groups=config.positive("linear_num_key_heads"),
        state=config.positive("linear_key_head_dim"),
        taps=config.positive("linear_conv_kernel_dim"),
        state_dtype=state_dtype(config, "mamba_ssm_dtype"),
    )
    rotary = config.share("partial_rotary_factor", _ROTARY)
    attention = replace(plain_attention(config, rotary), qk_norm="head", gated=True)
    channel = _qwen3_next_channel(config)
    parts = {
        "linear_attention": Layer(mixer=linear, channel=channel),
        "full_attention": Layer(mixer=attention, channel=channel),
    }
    return named(config, "layer_types", parts, list(names))


def _qwen3_next_channel(config: Config) -> Part:
    if not config.whole("num_experts", 0):
        return FeedForward(ffn=config.positive("intermediate_size"))
    return MixtureOfExperts(
        experts=config.positive("num_experts"),
        topk=config.positive("num_experts_per_tok"),
        ffn=config.positive("moe_intermediate_size"),
        shared=shared_network(config.whole("shared_expert_intermediate_size", 0)),
        shared_gate=config.whole("shared_expert_intermediate_size", 0) > 0,
    )


def _kimi_linear(config: Config) -> list[Layer]:
    """Kimi Linear: three layers of Kimi delta attention, one of latent attention.

    Kimi K3's attention over the residuals of earlier layers (``attn_res_block_size``) is left
    out: elementwise work and a few vectors per layer, of which no exact form is published.
    """
    linear = config.section("linear_attn_config")
    delta = KimiDelta(
        heads=linear.positive("num_heads"),
        dim=linear.positive("head_dim"),
        taps=linear.positive("short_conv_kernel_size"),
        full_gate=linear.flag("use_full_rank_gate"),
    )
    attention = LatentAttention(
        heads=config.positive("num_attention_heads"),
        query_rank=config.whole("q_lora_rank", 0),
        kv_rank=config.positive("kv_lora_rank"),
        nope=config.positive("qk_nope_head_dim"),
        rope=config.positive("qk_rope_head_dim"),
        value_dim=config.positive("v_head_dim"),
        rotary=not config.flag("mla_use_nope"),
        gated=config.flag("mla_use_output_gate"),
    )
    dense = FeedForward(ffn=config.positive("intermediate_size"))
    width = config.positive("moe_intermediate_size")
    experts = MixtureOfExperts(
        experts=config.positive("num_experts"),
        topk=config.positive("num_experts_per_token"),
        ffn=width,
        router_bias=True,
        latent=config.whole("routed_expert_hidden_size", 0),
        latent_norm=config.flag("latent_moe_use_norm"),
        shared=shared_network(width * config.whole("num_shared_experts", 0)),
    )
    first = config.whole("first_k_dense_replace", 0)
    full = _kimi_full_layers(config, linear)
    return [
        Layer(
            mixer=attention if index + 1 in full else delta,
            channel=dense if index < first else experts,
        )
        for index in range(config.layers())
    ]


def _kimi_full_layers(config: Config, linear: Config) -> set[int]:
    """The layers of latent attention, counted from 1."""
    full, delta = set(linear.indices("full_attn_layers")), set(linear.indices("kda_layers"))
    count = config.layers()
    if full & delta or full | delta != set(range(1, count + 1)):
        raise SpecError(
            f"{linear.name}: 'full_attn_layers' and 'kda_layers' together must name each of the "
            f"layers 1 … {count} once"
        )
    return full


def _rwkv7(config: Config) -> list[Layer]:
    heads = config.positive("num_heads")
    first = Rwkv7(
        heads=heads,
        dim=config.positive("head_dim"),
        decay_rank=config.positive("decay_low_rank_dim"),
        a_rank=config.positive("a_low_rank_dim"),
        gate_rank=config.positive("gate_low_rank_dim"),
        value_rank=config.positive("v_low_rank_dim"),
    )
    later = replace(first, first_values="layers0.v")
    channel = Rwkv7Channel(ffn=config.positive("intermediate_size"))
    count = config.layers()
    mixers = [first, *[later] * (count - 1)]
    return [Layer(mixer=mixer, channel=channel) for mixer in mixers]


LINEAR: dict[str, Hybrid] = {
    "qwen3_next": Hybrid(layers=_qwen3_next),
    "qwen3_5_text": Hybrid(layers=_qwen3_next),
    "qwen3_5_moe_text": Hybrid(layers=_qwen3_next),
    "kimi_linear": Hybrid(layers=_kimi_linear),
    "minimax": Hybrid(layers=_minimax),
    "minimax_text_01": Hybrid(layers=_minimax),
    "minimax_m1": Hybrid(layers=_minimax),
    "rwkv7": Hybrid(layers=_rwkv7, norm="layer", embedding_norm=True),
}
