"""Models with a state and hybrids: parameters against the makers', memory, steps."""

import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import frontends
from frontends import Precision, load_model
from hardware import SpecError, load_platform
from opgraph import Plan, Workload, simulate
from opgraph.operator import Work


def published(name: str) -> dict[str, Any]:
    path = Path(frontends.__file__).parent / "data" / "models" / f"{name}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")).get("published", {})


# bytes of keys and values per token: attention layers × 2 × KV heads × head size × 2 bytes, of
# latent attention layers × (rank + rotated part) × 2 bytes
KV_BYTES = {
    "mamba-2.8b": 0,
    "falcon-mamba-7b": 0,
    "mamba2-2.7b": 0,
    "rwkv-7-2.9b": 0,
    "jamba-v0.1": 4 * 2 * 8 * 128 * 2,
    "jamba-1.5-large": 9 * 2 * 8 * 128 * 2,
    "nemotron-h-8b": 4 * 2 * 8 * 128 * 2,
    "nemotron-h-56b": 10 * 2 * 8 * 128 * 2,
    "nemotron-nano-9b-v2": 4 * 2 * 8 * 128 * 2,
    "nemotron-3-nano-30b-a3b": 6 * 2 * 2 * 128 * 2,
    "nemotron-3-super-120b-a12b": 8 * 2 * 2 * 128 * 2,
    "nemotron-3-ultra-550b-a55b": 12 * 2 * 2 * 128 * 2,
    "granite-4.0-h-small": 4 * 2 * 8 * 128 * 2,
    "granite-4.0-h-tiny": 4 * 2 * 4 * 128 * 2,
    "zamba2-2.7b": 9 * 2 * 32 * 160 * 2,
    "zamba2-7b": 13 * 2 * 32 * 224 * 2,
    "minimax-text-01": 10 * 2 * 8 * 128 * 2,
    "qwen3-next-80b-a3b": 12 * 2 * 2 * 256 * 2,
    "qwen3.5-27b": 16 * 2 * 4 * 256 * 2,
    "qwen3.5-35b-a3b": 10 * 2 * 2 * 256 * 2,
    "qwen3.5-122b-a10b": 12 * 2 * 2 * 256 * 2,
    "qwen3.5-397b-a17b": 15 * 2 * 2 * 256 * 2,
    "kimi-linear-48b-a3b": 7 * (512 + 64) * 2,
}
# of transformers' own class on the meta device, where the maker gives a rounded number or none
COUNTED = {"zamba2-2.7b": 2_662_214_560, "zamba2-7b": 7_356_749_648}


@pytest.mark.parametrize("name", KV_BYTES)
def test_parameters_are_those_published(name):
    model, given = load_model(name), published(name)
    if name in COUNTED:
        assert model.num_parameters == COUNTED[name]
    elif given["parameters_exact"]:
        assert model.num_parameters == given["parameters"]
    else:
        assert model.num_parameters == pytest.approx(given["parameters"], rel=0.005)
    assert model.kv_bytes_per_token == KV_BYTES[name]


# four bytes for each entry of the states of all layers, two for each input of a convolution and
# for each last token: layers × (state + tail)
STATE_BYTES = {
    "mamba-2.8b": 64 * 5120 * (16 * 4 + 3 * 2),
    "falcon-mamba-7b": 64 * 8192 * (16 * 4 + 3 * 2),
    "mamba2-2.7b": 64 * (80 * 64 * 128 * 4 + (5120 + 2 * 128) * 3 * 2),
    "rwkv-7-2.9b": 32 * (40 * 64 * 64 * 4 + 2 * 2560 * 2),
    "nemotron-h-8b": 24 * (128 * 64 * 128 * 4 + (8192 + 2 * 8 * 128) * 3 * 2),
    "qwen3-next-80b-a3b": 36 * (32 * 128 * 128 * 4 + (2 * 16 + 32) * 128 * 3 * 2),
    "kimi-linear-48b-a3b": 20 * (32 * 128 * 128 * 4 + 3 * 32 * 128 * 3 * 2),
    "minimax-text-01": 70 * 64 * 128 * 128 * 4,
}


@pytest.mark.parametrize("name", STATE_BYTES)
def test_memory_holds_the_states_and_the_keys(name):
    model, platform = load_model(name), load_platform("dgx-h100")
    work = Workload(batch=3, prompt=100, output=28)
    report = simulate(model, platform, Plan(), work)
    assert report.memory.kv_cache == 3 * (STATE_BYTES[name] + 128 * KV_BYTES[name])


def test_active_parameters_lie_between_the_makers_ways_to_count():
    """Makers leave out the embedding, the head, both or neither."""
    for name in KV_BYTES:
        given, model = published(name).get("active_parameters"), load_model(name)
        ends = 2 * model.numbers["vocab"] * model.numbers["model"]
        tower = 0.5e9 if name.startswith("qwen3.5") else 0
        if given:
            least = 0.95 * (model.num_active_parameters - ends - tower)
            assert least <= given <= 1.05 * model.num_active_parameters, name


FAMILIES = [
    "mamba-2.8b", "falcon-mamba-7b", "mamba2-2.7b", "rwkv-7-2.9b", "jamba-v0.1", "nemotron-h-8b",
    "nemotron-3-super-120b-a12b", "granite-4.0-h-small", "zamba2-2.7b", "minimax-text-01",
    "qwen3-next-80b-a3b", "qwen3.5-27b", "kimi-linear-48b-a3b",
]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_runs_and_splitting_it_is_faster(name):
    model, platform = load_model(name), load_platform("dgx-h100")
    work = Workload(batch=16, prompt=2048, output=32)
    reports = [simulate(model, platform, Plan(tp=tp), work) for tp in (1, 2, 8)]
    for report, faster in pairwise(reports):
        assert 0 < faster.ttft < report.ttft
        assert 0 < faster.tpot < report.tpot
        assert faster.memory.weights < report.memory.weights


@pytest.mark.parametrize("name", ["mamba2-2.7b", "nemotron-h-8b", "qwen3-next-80b-a3b"])
def test_arrays_are_the_scalars_side_by_side(name):
    model, platform = load_model(name), load_platform("dgx-h100")
    prompts, tps = np.array([1, 64, 1000]), np.array([[1], [2]])
    both = simulate(model, platform, Plan(tp=tps), Workload(batch=4, prompt=prompts, output=8))
    for i, tp in enumerate((1, 2)):
        for j, prompt in enumerate((1, 64, 1000)):
            work = Workload(batch=4, prompt=prompt, output=8)
            one = simulate(model, platform, Plan(tp=tp), work)
            assert both.ttft[i, j] == pytest.approx(one.ttft, rel=1e-12)
            assert both.tpot[i, j] == pytest.approx(one.tpot, rel=1e-12)


@pytest.mark.parametrize("name", ["mamba-2.8b", "mamba2-2.7b", "rwkv-7-2.9b"])
def test_without_attention_a_token_costs_the_same_after_any_prompt(name):
    model, platform = load_model(name), load_platform("dgx-h100")
    steps = [
        simulate(model, platform, Plan(), Workload(batch=2, prompt=prompt, output=4)).tpot
        for prompt in (16, 1_000_000)
    ]
    assert steps[0] == pytest.approx(steps[1], rel=1e-12)


@pytest.mark.parametrize("name", ["mamba2-2.7b", "zamba2-2.7b", "rwkv-7-2.9b", "nemotron-h-8b"])
def test_unrolled_is_the_same_work(name):
    model = load_model(name)
    numbers = {**model.numbers, "batch": 2, "seq": 64, "context": 64}
    sizes = Plan().bind(numbers, model.prefill.derived)
    rolled, unrolled = (
        sum((op.work(sizes) * count for op, count in graph.operators), Work())
        for graph in (model.prefill, model.prefill.unroll())
    )
    assert unrolled.flop == pytest.approx(rolled.flop, rel=1e-12)
    assert unrolled.moved == pytest.approx(rolled.moved, rel=1e-12)
    cache = model.prefill.nbytes("cache", sizes)
    assert model.prefill.unroll().nbytes("cache", sizes) == cache


def test_quantised_weights_leave_the_state_as_it_is():
    plain = load_model("nemotron-h-8b")
    narrow = load_model("nemotron-h-8b", precision=Precision(weights="fp8", kv_cache="fp8"))
    assert narrow.num_parameters == plain.num_parameters
    states = [t for t, _ in narrow.decode.tensors("cache") if t.name.endswith(".state")]
    assert states
    assert {str(t.format) for t in states} == {"fp32"}


BAMBA = {
    "model_type": "bamba", "hidden_size": 512, "intermediate_size": 1000, "vocab_size": 128000,
    "num_hidden_layers": 6, "attn_layer_indices": [2, 5], "num_attention_heads": 8,
    "num_key_value_heads": 2, "mamba_n_heads": 16, "mamba_d_head": 64, "mamba_d_state": 256,
    "mamba_n_groups": 1, "mamba_d_conv": 4, "mamba_chunk_size": 256, "mamba_conv_bias": True,
    "tie_word_embeddings": False,
}  # fmt: skip
FALCON_H1 = {
    "model_type": "falcon_h1", "hidden_size": 512, "intermediate_size": 1000,
    "vocab_size": 128000, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 64, "mamba_n_heads": 16, "mamba_d_head": 64,
    "mamba_d_state": 256, "mamba_n_groups": 1, "mamba_d_conv": 4, "mamba_chunk_size": 256,
    "mamba_conv_bias": True, "mamba_rms_norm": False, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "expected"), [(BAMBA, 149_013_184), (FALCON_H1, 143_202_448)], ids=["bamba", "h1"]
)
def test_parameters_are_those_of_transformers(config, expected):
    """Counted on the meta device by transformers 5.23."""
    assert load_model(config).num_parameters == expected


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("nemotron-h-8b", {"num_hidden_layers": 51}, "has 52 entries, but 'num_hidden_layers'"),
        ("nemotron-h-8b", {"hybrid_override_pattern": "MX"}, "no layer 'X'"),
        ("nemotron-h-8b", {"mamba_ssm_cache_dtype": "float8"}, "'mamba_ssm_cache_dtype' is"),
        ("mamba2-2.7b", {"num_heads": 81}, "'expand' × 'hidden_size' is 5120"),
        ("zamba2-2.7b", {"use_shared_attention_adapter": True}, "adapters"),
        ("zamba2-2.7b", {"layers_block_type": None}, "'layers_block_type' must say"),
        ("kimi-linear-48b-a3b", {"num_hidden_layers": 28}, "each of the layers 1 … 28 once"),
        ("mamba-2.8b", {"state_size": None}, "'state_size' is missing"),
    ],
)
def test_what_a_config_contradicts_is_named(name, changes, message):
    path = Path(frontends.__file__).parent / "data" / "models" / f"{name}.toml"
    config = tomllib.loads(path.read_text(encoding="utf-8"))["config"] | changes
    if "hybrid_override_pattern" in changes:
        config["num_hidden_layers"] = len(changes["hybrid_override_pattern"])
    with pytest.raises(SpecError, match=re.escape(message)):
        load_model(config)
