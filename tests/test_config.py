"""Configs that lack something or contradict themselves: the message names what and where."""

import pytest

from frontends import load_model
from frontends.config import Config
from hardware import SpecError

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 100,
}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
DEEPSEEK = {
    **LLAMA,
    "model_type": "deepseek_v3",
    "num_key_value_heads": 8,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 8,
    "n_positions": 32,
    "vocab_size": 100,
}
OPT = {**LLAMA, "model_type": "opt", "ffn_dim": 128, "max_position_embeddings": 32}
DBRX = {
    "model_type": "dbrx",
    "d_model": 64,
    "n_heads": 8,
    "n_layers": 2,
    "vocab_size": 100,
    "attn_config": {"kv_n_heads": 4},
    "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
}
WINDOWS = ["sliding_attention", "full_attention"] * 2

WRONG = [
    (LLAMA, {"model_type": "lama"}, r"'lama' is not known; did you mean 'llama'"),
    (LLAMA, {"model_type": None}, "'model_type' is missing"),
    (LLAMA, {"hidden_size": None}, "'hidden_size' is missing"),
    (LLAMA, {"hidden_size": None, "hiden_size": 64}, "did you mean 'hiden_size'"),
    (LLAMA, {"num_key_value_heads": 3}, "'num_attention_heads' 8 .* 'num_key_value_heads' 3"),
    (LLAMA, {"hidden_size": 60}, "'hidden_size' 60 is not a multiple of 'num_attention_heads' 8"),
    (LLAMA, {"num_hidden_layers": 0}, "'num_hidden_layers' is 0, but must be at least 1"),
    (LLAMA, {"vocab_size": 1.5}, "'vocab_size' is 1.5, but must be a whole number"),
    (LLAMA, {"vocab_size": 2**40}, "'vocab_size' is 1099511627776"),
    (LLAMA, {"attention_bias": "yes"}, "'attention_bias' is 'yes', but must be true or false"),
    (LLAMA, {"partial_rotary_factor": 2}, "'partial_rotary_factor' is 2, but must be a number"),
    (LLAMA, {"rotary_dim": 9}, "'rotary_dim' 9 is more than a head of 8"),
    (
        {**LLAMA, "model_type": "gemma2"},
        {"layer_types": WINDOWS[:3]},
        "'layer_types' has 3 entries, but 'num_hidden_layers' is 4",
    ),
    (MIXTRAL, {"num_experts_per_tok": 9}, "'num_experts_per_tok' 9 .* 'num_local_experts' 8"),
    (MIXTRAL, {"num_local_experts": None}, "'num_local_experts' is missing"),
    (DEEPSEEK, {"kv_lora_rank": None}, "'kv_lora_rank' is missing"),
    (DEEPSEEK, {"num_experts_per_tok": 5}, "'num_experts_per_tok' 5 .* 'n_routed_experts' 4"),
    (
        DEEPSEEK,
        {"moe_layer_freq": [0, 1, 1]},
        "'moe_layer_freq' has 3 entries, but 'num_hidden_layers' is 4",
    ),
    (GPT2, {"n_head": 7}, "'n_embd' 64 is not a multiple of 'n_head' 7"),
    (GPT2, {"head_dim": 9}, "'n_head' 8 × 'head_dim' 9 is not 'n_embd' 64"),
    (GPT2, {"n_layer": None}, "'n_layer' is missing"),
    (OPT, {"word_embed_proj_dim": 32}, "'word_embed_proj_dim' 32 is not 'hidden_size' 64"),
    (OPT, {"do_layer_norm_before": False}, "'do_layer_norm_before' false is not known"),
    (DBRX, {"attn_config": {"kv_n_heads": 3}}, "'n_heads' 8 .* 'attn_config.kv_n_heads' 3"),
    (DBRX, {"ffn_config": None}, "'ffn_config.moe_num_experts' is missing"),
]


@pytest.mark.parametrize(("config", "change", "message"), WRONG)
def test_what_is_wrong_is_named(config, change, message):
    assert load_model(config).num_parameters > 0
    broken = {key: value for key, value in {**config, **change}.items() if value is not None}
    with pytest.raises(SpecError, match=message):
        load_model(broken)


@pytest.mark.parametrize("config", [LLAMA, MIXTRAL, DEEPSEEK, GPT2, OPT, DBRX])
def test_every_required_key_is_named_when_it_is_missing(config):
    """What can be left out changes no error; what cannot is named, and nothing else is raised."""
    for key in config:
        rest = {name: value for name, value in config.items() if name != key}
        try:
            load_model(rest)
        except SpecError as error:
            assert repr(key)[1:-1] in str(error)  # noqa: PT017


def test_an_absent_key_is_a_feature_that_is_off():
    """No query rank: a full projection; no shared expert; no window."""
    full = load_model(DEEPSEEK).num_parameters
    narrow = load_model({**DEEPSEEK, "q_lora_rank": 24}).num_parameters
    # 64 × (8·12) against 64 × 24, a norm of 24, and 24 × (8·12), in each of 4 layers
    assert narrow - full == 4 * (64 * 24 + 24 + 24 * 96 - 64 * 96)
    shared = load_model({**DEEPSEEK, "n_shared_experts": 2}).num_parameters
    assert shared - full == 3 * 3 * 64 * 64


def test_null_is_absent():
    assert load_model({**LLAMA, "head_dim": None}).num_parameters == (
        load_model(LLAMA).num_parameters
    )


def test_windows_may_be_switched_off():
    windowed = {**LLAMA, "model_type": "qwen2", "sliding_window": 16}
    assert load_model(windowed).attention == "local GQA"
    assert load_model({**windowed, "use_sliding_window": False}).attention == "GQA"


def test_lists_with_an_entry_for_each_layer_are_read_layer_by_layer():
    config = Config({"a": [1, 2, 3], "b": [1, 2], "c": {"d": [4, 5, 6]}, "e": 7}, "config")
    layer = config.layer(1, 3)
    assert (layer.get("a"), layer.get("b"), layer.get("e")) == (2, [1, 2], 7)
    assert layer.section("c").whole("d") == 5


def test_parameters_of_a_small_llama_by_hand():
    attention = 64 * (64 + 2 * 32) + 64 * 64
    layer = attention + 3 * 64 * 128 + 2 * 64
    assert load_model(LLAMA).num_parameters == 4 * layer + 2 * 100 * 64 + 64
