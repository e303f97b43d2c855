"""Every model of the catalogue against its published counts, which the file itself cites."""

import json
import time

import numpy as np
import pytest

from frontends import list_models, load_model
from frontends.catalogue import _MODELS
from frontends.decoder import Layer, fold
from hardware import SpecError, load_platform
from hardware.specs import read_toml
from opgraph import Plan, Workload, simulate

SPECS = {name: read_toml(_MODELS / f"{name}.toml") for name in list_models()}
# rounded by their makers by more than half a percent, as their files say
ROUNDED = {"grok-1": 314e9, "zamba2-7b": 7.4e9}
KV_BYTES = {
    "deepseek-v3": 576 * 61 * 2,  # latent and rotary key in each of 61 layers, 16 bit
    "kimi-k2": 576 * 61 * 2,
    "deepseek-v3.2": (576 + 128) * 61 * 2,  # and the indexer's key
    "glm-5.2": (576 * 78 + 128 * 21) * 2,  # which 21 of 78 layers have
    "llama-3.1-70b": 2 * 8 * 128 * 80 * 2,
    "gpt-3-175b": 2 * 12288 * 96 * 2,
    "falcon-7b": 2 * 64 * 32 * 2,  # one KV head
    "mimo-v2-flash": (9 * 4 + 39 * 8) * (192 + 128) * 2,  # 39 local layers with 8 KV heads
    # raw keys in the window; a compressed one per 4 tokens with its index key in 21 layers, per
    # 128 in 20
    "deepseek-v4-flash": (43 * 512 + 21 * (512 + 128) / 4 + 20 * 512 / 128) * 2,
}
ATTENTION = {
    "llama-2-7b": "MHA",
    "llama-3-8b": "GQA",
    "falcon-7b": "MQA",
    "gpt-oss-20b": "local GQA + GQA",
    "deepseek-v3": "MLA",
    "deepseek-v3.2": "sparse MLA",
    "minimax-m3": "GQA + sparse GQA",
}
GROUPS = {
    "llama-3.1-70b": [(1, 80)],
    "deepseek-v3": [(1, 3), (1, 58)],
    "gpt-oss-120b": [(2, 18)],
    "gemma-3-27b": [(6, 10), (1, 2)],
    "llama-4-scout": [(4, 12)],
    "llama-4-maverick": [(4, 12)],
    "mimo-v2-flash": [(1, 1), (6, 7), (1, 4), (1, 1)],
}


@pytest.mark.parametrize("name", SPECS)
def test_parameters_are_those_published(name):
    published, model = SPECS[name].get("published", {}), load_model(name)
    if published.get("parameters_exact"):
        assert model.num_parameters == published["parameters"]
    elif name in ROUNDED:
        assert model.num_parameters == pytest.approx(ROUNDED[name], rel=0.006)
    elif "parameters" in published:
        assert model.num_parameters == pytest.approx(published["parameters"], rel=0.005)
    assert 0 < model.num_active_parameters <= model.num_parameters


@pytest.mark.parametrize(
    "name",
    [name for name, spec in SPECS.items() if "active_parameters" in spec.get("published", {})],
)
def test_active_parameters_are_those_published(name):
    """Makers count with or without the two ends and the vision tower; all within 5 %."""
    model = load_model(name)
    decoder = {tensor.name for tensor, _ in model.decode.tensors("weight")}
    vision = sum(
        tensor.numel(model._sizes) * count
        for tensor, count in model.weights
        if tensor.name not in decoder
    )
    ends = 2 * model.numbers["vocab"] * model.numbers["model"]
    most = model.num_active_parameters
    published = SPECS[name]["published"]["active_parameters"]
    assert 0.95 * (most - ends - vision) <= published <= 1.05 * most


def test_at_least_sixty_models_are_counted():
    assert sum("parameters" in spec.get("published", {}) for spec in SPECS.values()) >= 60


@pytest.mark.parametrize("name", KV_BYTES)
def test_kv_bytes_per_token(name):
    sixteen_bit = load_model(name, weights="bf16", kv_cache="bf16")
    assert sixteen_bit.kv_bytes_per_token == KV_BYTES[name]


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_named(name):
    assert load_model(name).attention == ATTENTION[name]


@pytest.mark.parametrize("name", GROUPS)
def test_layers_are_counted_groups(name):
    blocks = [block for block in load_model(name).decode.blocks if block.name.startswith("layer")]
    found = []
    for block in blocks:
        attentions = [op for op in block.operators if op.name.endswith(".attention")]
        found.append((len(attentions), block.count))
    assert found == GROUPS[name]


@pytest.mark.parametrize("name", SPECS)
def test_every_model_runs(name):
    """On 8 chips where its heads allow; prices are finite, and a longer prompt never costs less.

    Within Llama 4's chunk of 8192 tokens: past its end a query sees the few of the next one.
    """
    model, platform = load_model(name), load_platform("dgx-h200")
    prompt = np.array([4096, 8000])
    for tp in (8, 4, 2, 1):
        try:
            report = simulate(model, platform, Plan(tp=tp), Workload(prompt=prompt, output=4))
        except SpecError as error:
            assert "evenly" in str(error)  # noqa: PT017
            continue
        assert np.all(np.isfinite(report.ttft))
        assert report.ttft[1] >= report.ttft[0] > 0
        assert report.tpot[1] >= report.tpot[0] > 0
        return
    pytest.fail(f"{name} runs on no number of chips")


@pytest.mark.parametrize("name", ["falcon-40b", "command-r-plus"])
def test_parallel_branches_share_one_all_reduce(name):
    report = simulate(load_model(name), load_platform("dgx-h200"), Plan(tp=8), Workload(output=2))
    (layer,) = (block for block in report.decode.graph.blocks if block.name == "layer")
    sums = [op.name for op in layer.operators if op.stream == "communication"]
    assert sums == ["layer.branches.all_reduce"]


def layers(text):
    return [Layer(scalar=letter == "g", post_norm=letter == "d") for letter in text]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("ll", [("layer", 1, 2)]),
        ("dddlll", [("layers0-2", 1, 3), ("layers3-5", 1, 3)]),
        ("lglglg", [("layer", 2, 3)]),
        ("lllglllgll", [("layers0-7", 4, 2), ("layers8-9", 1, 2)]),
        ("dlglglg", [("layers0", 1, 1), ("layers1-6", 2, 3)]),
        ("ldg", [("layer", 3, 1)]),
    ],
)
def test_fold(text, groups):
    found = fold(layers(text))
    assert [(g.name, len(g.layers), g.count) for g in found] == groups
    assert [layer for g in found for _ in range(g.count) for layer in g.layers] == layers(text)


def test_folding_as_searched_one_by_one():
    """Every split into repeated groups is tried that does not part a run of equal layers."""

    def cheapest(kinds):
        if not kinds:
            return 0, 0
        costs = []
        run = len(kinds) - len(kinds.lstrip(kinds[0]))
        for period in range(1, len(kinds) + 1):
            for count in range(1 if period > 1 else run, len(kinds) // period + 1):
                if kinds[: period * count] == kinds[:period] * count:
                    written, groups = cheapest(kinds[period * count :])
                    costs.append((written + period, groups + 1))
        return min(costs)

    for text in ("lldd", "lgllgl", "dlglglgd", "lgdlgdll", "lldlldd", "lldld", "ldgdldgd"):
        groups = fold(layers(text))
        assert (sum(len(g.layers) for g in groups), len(groups)) == cheapest(text)


def test_a_thousand_unlike_layers_fold_at_once():
    several = [Layer(channel=number) for number in range(1000)]
    start = time.process_time()
    groups = fold(several)
    assert time.process_time() - start < 1
    assert [(g.name, g.count, len(g.layers)) for g in groups] == [("layer", 1, 1000)]


LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "vocab_size": 100,
         "intermediate_size": 128, "num_hidden_layers": 2}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"torch_dtype": "bfloat61"}, "'torch_dtype' is 'bfloat61'; did you mean 'bfloat16'"),
        ({"dtype": 16}, "'dtype' is 16, but must be a word"),
        ({"model_type": 5}, "'model_type' is 5, but must be a word"),
        ({"model_type": None}, "'model_type' is missing"),
        (
            {"model_type": "mistral", "use_sliding_window": False, "sliding_window": -1},
            "'sliding_window' is -1",
        ),
    ],
)
def test_a_config_that_makes_no_sense(changes, message):
    with pytest.raises(SpecError, match=message):
        load_model({**LLAMA, **changes})


def test_a_dtype_may_be_called_as_pytorch_prints_it():
    assert load_model({**LLAMA, "torch_dtype": "torch.float16"}).num_parameters > 0


def test_json_with_a_byte_order_mark_or_a_key_twice(tmp_path):
    path = tmp_path / "config.json"
    text = json.dumps(LLAMA)
    path.write_text("\ufeff" + text, encoding="utf-8")
    assert load_model(path).num_parameters == load_model(LLAMA).num_parameters
    path.write_text(text[:-1] + ', "hidden_size": 128}')
    with pytest.raises(SpecError, match="the key 'hidden_size' stands twice"):
        load_model(path)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (3, "3 is neither a model's name, nor a path, nor a config"),
        ("", "no model ''"),
        ("x" * 5000, "cannot be read: File name too long"),
    ],
)
def test_what_names_no_model(which, message):
    with pytest.raises(SpecError, match=message) as error:
        load_model(which)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("text", ["", "int4-g99999999", "int4-g0"])
def test_a_format_that_is_none(text):
    with pytest.raises(SpecError, match=f"no number format '{text}'"):
        load_model("llama-3.1-8b", weights=text)


def test_a_model_prints_as_a_line():
    assert str(load_model("llama-3.1-8b")) == "llama-3.1-8b: GQA, 8.03 billion parameters"
    assert str(load_model("deepseek-v3")).endswith("671 billion parameters, 37.55 of them active")


def test_ratios_may_leave_out_multi_token_prediction():
    """DeepSeek-V4's list has an entry more than there are layers, or as many."""
    config = SPECS["deepseek-v4-flash"]["config"]
    ratios = config["compress_ratios"][: config["num_hidden_layers"]]
    shorter = load_model({**config, "compress_ratios": ratios})
    assert shorter.num_parameters == load_model("deepseek-v4-flash").num_parameters
    with pytest.raises(SpecError, match="'compress_ratios' has 3 entries"):
        load_model({**config, "compress_ratios": ratios[:3]})
