"""Mixtures of experts, latent and sparse attention: what each family's config says."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from frontends.architectures.dense import (
    Family,
    Heads,
    Wide,
    every_window,
    gemma4_attention,
    head_dim,
    rotated,
    typed_window,
)
from frontends.channels import Branches, FeedForward, MixtureOfExperts
from frontends.compressed import CompressedAttention
from frontends.config import Config
from frontends.latent import LatentAttention
from frontends.mixers import SelfAttention
from frontends.sparse import Indexer
from frontends.writer import Part
from hardware import SpecError

# every fourth layer of Llama 4 has no positions (Llama4TextConfig)
_LLAMA4_INTERVAL = 4


@dataclass(frozen=True, kw_only=True)
class Experts:
    """What distinguishes a family's experts from Mixtral's.

    *called*: what its configs call a key, where not as Qwen's do. *bias*: of the experts'
    products. *router_bias*: a number per expert in the router. *shared_gate*: of the shared
    expert's result.
    """

    called: Mapping[str, str] = field(default_factory=dict)
    bias: bool = False
    router_bias: bool = False
    shared_gate: bool = False

    def __call__(self, config: Config, index: int) -> Part:
        """The channel of a layer: experts, or a plain network in those that have none."""
        config = config.called(**self.called)
        if not is_sparse(config, index):
            key = "dense_intermediate_size"
            key = key if config.given(key) else "intermediate_size"
            return FeedForward(ffn=config.positive(key))
        return self.experts(config)

    def experts(self, config: Config) -> MixtureOfExperts:
        """The experts that *config* describes."""
        experts, topk = config.positive("num_experts"), config.positive("num_experts_per_tok")
        if topk > experts:
            raise SpecError(
                f"{config.name}: {config.key('num_experts_per_tok')!r} {topk} is more than "
                f"{config.key('num_experts')!r} {experts}"
            )
        ffn = config.positive("moe_intermediate_size")
        return MixtureOfExperts(
            experts=experts,
            topk=topk,
            ffn=ffn,
            bias=self.bias,
            router_bias=self.router_bias,
            shared=shared_expert(config, ffn),
            shared_gate=self.shared_gate,
        )


def is_sparse(config: Config, index: int) -> bool:
    """Whether a layer has experts, by whichever keys *config* says so; without any: it has."""
    kind = config.word("mlp_layer_types")
    if kind:
        return kind == "sparse"
    first = config.whole("first_k_dense_replace", config.whole("moe_layer_start_index", 0))
    last = config.whole("moe_layer_end_index", index)
    if not first <= index <= last or index in config.indices("mlp_only_layers"):
        return False
    every = config.whole("moe_layer_freq", 1)
    steps = (
        config.positive(key, 1)
        for key in ("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval")
    )
    return every > 0 and index % every == 0 and all((index + 1) % step == 0 for step in steps)


def shared_expert(config: Config, ffn: int) -> FeedForward | None:
    """What every token goes to: a network of its own width, or some experts' in one."""
    width = config.whole("shared_expert_intermediate_size", 0)
    width = width or config.whole("n_shared_experts", 0) * ffn
    if not width:
        return None
    return FeedForward(ffn=width, label="shared", name="shared_", weight_class="shared")


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Latent attention as DeepSeek's configs describe it; *indexed*: with an indexer."""

    indexed: bool = False

    def __call__(self, config: Config, index: int) -> LatentAttention:
        """The attention of a layer."""
        del index
        return LatentAttention(
            heads=config.positive("num_attention_heads"),
            query_rank=config.whole("q_lora_rank", 0),
            kv_rank=config.positive("kv_lora_rank"),
            nope=config.positive("qk_nope_head_dim"),
            rope=config.positive("qk_rope_head_dim"),
            value_dim=config.positive("v_head_dim"),
            indexer=self._indexer(config) if self.indexed else None,
        )

    def _indexer(self, config: Config) -> Indexer:
        return Indexer(
            heads=config.positive("index_n_heads"),
            dim=config.positive("index_head_dim"),
            topk=config.positive("index_topk"),
            present=config.word("indexer_types", "full") != "shared",
        )


def _llama4(config: Config, index: int) -> SelfAttention:
    """Rotary layers see their chunk; every few layers one sees all and has no positions."""
    every = config.positive("no_rope_layer_interval", _LLAMA4_INTERVAL)
    rotary = int((index + 1) % every > 0)
    # released configs have an empty list where the interval says it all
    if config.get("no_rope_layers") != []:
        rotary = config.whole("no_rope_layers", rotary)
    attention = Heads()(config, index)
    if not rotary:
        return replace(attention, rotary=0.0)
    return replace(
        attention,
        chunk=config.whole("attention_chunk_size", 0),
        qk_norm="plain" if config.flag("use_qk_norm") else "",
        label="local",
    )


def _minimax_m2(config: Config, index: int) -> SelfAttention:
    whole = config.word("qk_norm_type") == "per_layer"
    return Heads(qk_norm="whole" if whole else "head", asks=True)(config, index)


def _minimax_m3(config: Config, index: int) -> SelfAttention:
    """Layers with ``sparse_attention_freq`` 1 attend to the best blocks of tokens."""
    attention = Heads(qk_norm="head", asks=True)(config, index)
    if not config.given("sparse_attention_config"):
        return attention
    sparse = config.section("sparse_attention_config")
    if not sparse.flag("use_sparse_attention") or not sparse.whole("sparse_attention_freq"):
        return attention
    indexer = Indexer(
        heads=sparse.positive("sparse_num_index_heads"),
        dim=sparse.positive("sparse_index_dim"),
        topk=sparse.positive("sparse_topk_blocks") * sparse.positive("sparse_block_size"),
        weighted=False,
        norm="rms",
        query_norm=True,
    )
    return replace(attention, indexer=indexer)


def _mimo_v2(config: Config, index: int) -> SelfAttention:
    """Local layers have heads of their own."""
    if not config.whole("hybrid_layer_pattern"):
        attention = Heads(sinks=config.flag("add_full_attention_sink_bias"))(config, index)
        return replace(attention, value_dim=config.positive("v_head_dim"))
    local = config.called(
        num_attention_heads="swa_num_attention_heads",
        num_key_value_heads="swa_num_key_value_heads",
        head_dim="swa_head_dim",
        v_head_dim="swa_v_head_dim",
    )
    sinks = config.flag("add_swa_attention_sink_bias")
    attention = Heads(window=every_window, sinks=sinks)(local, index)
    return replace(attention, value_dim=local.positive("v_head_dim"))


def _step3(config: Config, index: int) -> SelfAttention:
    """Every head has a gate; local layers may have more heads than the others."""
    heads = Heads(qk_norm="head", window=typed_window())
    local = config.word("layer_types") == "sliding_attention"
    if local and config.given("num_sliding_attention_heads"):
        config = config.called(num_attention_heads="num_sliding_attention_heads")
    return replace(heads(config, index), gated="head")


def _gemma4_channel(config: Config, index: int) -> Part:
    """A plain network, and experts beside it where ``enable_moe_block`` says so."""
    dense = Wide(bias=False)(config, index)
    if not config.flag("enable_moe_block"):
        return dense
    experts = Experts().experts(config.called(num_experts_per_tok="top_k_experts"))
    # a factor per expert is stored where others have a bias
    experts = replace(experts, router_bias=True, router_norm=True)
    return Branches(parts=(dense, experts))


def _deepseek_v4(config: Config, index: int) -> CompressedAttention:
    heads = config.positive("num_attention_heads")
    size = head_dim(config, heads)
    groups = config.positive("o_groups")
    if heads % groups:
        raise SpecError(
            f"{config.name}: 'num_attention_heads' {heads} is not a multiple of 'o_groups' {groups}"
        )
    return CompressedAttention(
        heads=heads,
        head_dim=size,
        query_rank=config.positive("q_lora_rank"),
        rotary=rotated(config.called(rotary_dim="qk_rope_head_dim"), size),
        window=config.positive("sliding_window"),
        groups=groups,
        out_rank=config.positive("o_lora_rank"),
        ratio=_ratio(config, index),
        index_heads=config.positive("index_n_heads"),
        index_dim=config.positive("index_head_dim"),
        topk=config.positive("index_topk"),
    )


def _ratio(config: Config, index: int) -> int:
    """A layer's ratio; the list may have the multi-token prediction module's at its end."""
    if not isinstance(config.get("compress_ratios"), list):
        return config.whole("compress_ratios")
    ratios, layers = config.indices("compress_ratios"), config.layers()
    if len(ratios) != layers + 1:
        raise SpecError(
            f"{config.name}: 'compress_ratios' has {len(ratios)} entries, but "
            f"'num_hidden_layers' is {layers}"
        )
    return ratios[index]


def _deepseek_v4_channel(config: Config, index: int) -> Part:
    """The first layers choose experts by a table over the vocabulary."""
    experts = Experts(called=_ROUTED).experts(config.called(**_ROUTED))
    if index < config.whole("num_hash_layers", 0):
        return replace(experts, table=config.positive("vocab_size"))
    return replace(experts, router_bias=True)


def _minimax_experts(config: Config, index: int) -> Part:
    bias = config.flag("use_routing_bias")
    return Experts(called=_MINIMAX, router_bias=bias)(config, index)


_LOCAL = {"num_experts": "num_local_experts", "moe_intermediate_size": "intermediate_size"}
_ROUTED = {"num_experts": "n_routed_experts"}
_MINIMAX = {**_LOCAL, "shared_expert_intermediate_size": "shared_intermediate_size"}
_DBRX = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "attn_config.kv_n_heads",
    "num_experts": "ffn_config.moe_num_experts",
    "num_experts_per_tok": "ffn_config.moe_top_k",
    "moe_intermediate_size": "ffn_config.ffn_hidden_size",
}
_ERNIE = {
    "num_experts": "moe_num_experts",
    "num_experts_per_tok": "moe_k",
    "n_shared_experts": "moe_num_shared_experts",
    "attention_bias": "use_bias",
}
_HUNYUAN = {"num_experts_per_tok": "moe_topk", "n_shared_experts": "num_shared_expert"}
_STEP3 = {"shared_expert_intermediate_size": "share_expert_dim"}
_LLAMA4 = {
    **_LOCAL,
    "shared_expert_intermediate_size": "intermediate_size",
    "dense_intermediate_size": "intermediate_size_mlp",
}
_OWN_WIDTH = {"moe_intermediate_size": "intermediate_size"}

_DEEPSEEK_V3 = Family(mixer=Latent(), channel=Experts(called=_ROUTED, router_bias=True))
_DEEPSEEK_V32 = replace(_DEEPSEEK_V3, mixer=Latent(indexed=True))
_DEEPSEEK_V4 = Family(mixer=_deepseek_v4, channel=_deepseek_v4_channel, streams="hc_mult")
_QWEN3_MOE = Family(mixer=Heads(qk_norm="head"), channel=Experts())

MOE: dict[str, Family] = {
    "mixtral": Family(mixer=Heads(window=every_window), channel=Experts(called=_LOCAL)),
    "dbrx": Family(channel=Experts(), called=_DBRX, norm="unbiased"),
    "grok-1": Family(channel=Experts(called=_OWN_WIDTH), post_norm=True, scaled=True, tied=True),
    "qwen2_moe": Family(mixer=Heads(bias=True, out_bias=False), channel=Experts(shared_gate=True)),
    "qwen3_moe": _QWEN3_MOE,
    "qwen3_vl_moe_text": _QWEN3_MOE,
    "phimoe": Family(
        mixer=Heads(window=every_window), channel=Experts(called=_LOCAL), norm="layer"
    ),
    "olmoe": Family(mixer=Heads(qk_norm="whole"), channel=Experts(called=_OWN_WIDTH)),
    "deepseek": Family(channel=Experts(called=_ROUTED)),
    "deepseek_v2": Family(mixer=Latent(), channel=Experts(called=_ROUTED)),
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "deepseek_v32": _DEEPSEEK_V32,
    "glm_moe_dsa": _DEEPSEEK_V32,
    "gpt_oss": Family(
        mixer=Heads(window=typed_window(), sinks=True),
        channel=Experts(called=_LOCAL, bias=True, router_bias=True),
    ),
    "glm4_moe": Family(
        mixer=Heads(out_bias=False, qk_norm="head", asks=True),
        channel=Experts(called=_ROUTED, router_bias=True),
    ),
    "minimax_m2": Family(mixer=_minimax_m2, channel=_minimax_experts),
    "minimax_m3": Family(mixer=_minimax_m3, channel=_minimax_experts),
    "ernie4_5_moe": Family(channel=Experts(router_bias=True), called=_ERNIE),
    "hunyuan_v1_moe": Family(
        mixer=Heads(qk_norm="head", asks=True), channel=Experts(called=_HUNYUAN), tied=True
    ),
    "llama4_text": Family(mixer=_llama4, channel=Experts(called=_LLAMA4)),
    "mimo_v2_flash": Family(mixer=_mimo_v2, channel=Experts(called=_ROUTED, router_bias=True)),
    "gemma4_text": Family(
        mixer=gemma4_attention,
        channel=_gemma4_channel,
        post_norm=True,
        scalar=True,
        scaled=True,
        tied=True,
    ),
    "step3p7": Family(mixer=_step3, channel=Experts(called=_STEP3, router_bias=True)),
    "deepseek_v4": _DEEPSEEK_V4,
    "deepseek_ref": _DEEPSEEK_V4,
}
