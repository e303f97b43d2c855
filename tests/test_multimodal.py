"""Vision towers and encoder–decoders: counts, work by hand, and what images change."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

import frontends
from frontends import load_model
from hardware import SpecError, load_platform
from opgraph import Model, Plan, Report, Sizes, Workload, shard, simulate
from opgraph.cost import Machine, Roofline
from opgraph.operator import Attention
from opgraph.timeline import step_time

_MODELS = Path(frontends.__file__).parent / "data" / "models"
_KINDS = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "llava",
    "mllama", "llama4", "gemma3", "gemma4", "minimax_m3_vl", "t5", "whisper",
)  # fmt: skip
_SPECS = {path.stem: tomllib.loads(path.read_text()) for path in sorted(_MODELS.glob("*.toml"))}
_NAMES = [name for name, spec in _SPECS.items() if spec["config"]["model_type"] in _KINDS]
_WITH_IMAGES = (
    "llava-1.5-7b",
    "qwen2.5-vl-7b",
    "qwen3-vl-2b",
    "gemma-3-4b",
    "llama-3.2-11b-vision",
)


def _sizes(model: Model, **step: int) -> Sizes:
    numbers = {"batch": 1, "images": 1, "seq": 1024, "context": 1024, "source": 512, "skew": 0}
    return Plan().bind({**numbers, **model.numbers, **step}, model.prefill.derived)


def _products(model: Model, begin: str, **step: int) -> float:
    """FLOP of the matrix products and attentions whose names begin with *begin*."""
    sizes = _sizes(model, **step)
    return sum(
        operator.flop(sizes) * count
        for operator, count in model.prefill.operators
        if operator.unit == "matrix" and operator.name.startswith(begin)
    )


def _simulate(name: str, plan: Plan | None = None, **workload: object) -> Report:
    given = {"batch": 2, "prompt": 8192, "output": 8, **workload}
    return simulate(load_model(name), load_platform("dgx-h100"), plan, Workload(**given))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", _NAMES)
def test_parameters_are_the_published_ones(name: str) -> None:
    published = _SPECS[name]["published"]
    found = load_model(name).num_parameters
    if published["parameters_exact"]:
        assert found == published["parameters"]
    else:
        assert found == pytest.approx(published["parameters"], rel=5e-3)


def test_kimi_k25_adds_moonvit_to_kimi_k2() -> None:
    """The tower and its projector as transformers makes them: 471,143,920 parameters."""
    text = _SPECS["kimi-k2"]["config"]
    vision = {
        "patch_size": 14,
        "merge_kernel_size": [2, 2],
        "init_pos_emb_height": 64,
        "init_pos_emb_width": 64,
        "vt_hidden_size": 1152,
        "vt_intermediate_size": 4304,
        "vt_num_attention_heads": 16,
        "vt_num_hidden_layers": 27,
    }
    both = load_model({"model_type": "kimi_k25", "text_config": text, "vision_config": vision})
    assert both.num_parameters - load_model("kimi-k2").num_parameters == 471_143_920
    assert both.tokens_per_image == 32 * 32


def test_flop_of_clip() -> None:
    """ViT-L/14 at 336 px: 24 × 24 patches and a class token; torch counts 381,918,216,192."""
    model = load_model("llava-1.5-7b")
    places, width, ffn = 24 * 24 + 1, 1024, 4096
    stem = 2 * 576 * 3 * 14 * 14 * width
    attention = 4 * places**2 * width
    matrices = 2 * places * (4 * width**2 + 2 * width * ffn)
    biases = places * (4 * width + ffn + width)
    projector = 576 * (2 * (width * 4096 + 4096**2) + 2 * 4096)
    assert stem + 24 * (attention + matrices) == 381_918_216_192
    whole = stem + 24 * (attention + matrices + biases) + projector
    assert _products(model, "vision") == whole
    assert _products(model, "vision", images=3, batch=2) == 6 * whole


def test_flop_of_whispers_encoder() -> None:
    """30 s are 3000 frames, then 1500; torch's counter says 2,273,771,520,000 without biases."""
    model = load_model("whisper-large-v3")
    width, ffn, frames = 1280, 5120, 1500
    stem = 2 * 3000 * (3 * 128) * width + 2 * frames * 3 * width * width
    layer = 2 * frames * (4 * width**2 + 2 * width * ffn) + 4 * frames**2 * width
    assert stem + 32 * layer == 2_273_771_520_000
    # the sum with the biases runs over queries, keys and values, though the keys have none
    biases = (3000 + frames) * width + 32 * frames * (3 * width + width + ffn + width)
    assert _products(model, "encoder") == stem + 32 * layer + biases


def test_flop_of_windowed_attention() -> None:
    """Qwen2.5-VL at 896 px: 64 × 64 patches, in 4 layers all of them, in 28 windows of 64."""
    model = load_model("qwen2.5-vl-7b")
    sizes = _sizes(model)
    flop = sum(
        operator.flop(sizes) * count
        for operator, count in model.prefill.operators
        if isinstance(operator, Attention) and operator.name.startswith("vision")
    )
    assert flop == 4 * 1280 * (4 * 4096**2 + 28 * 64 * 64**2)
    assert model.tokens_per_image == 64 * 64 // 4


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("llava-1.5-7b", 576),
        ("gemma-3-4b", 256),
        ("qwen2-vl-7b", 1024),
        ("qwen3-vl-2b", 784),
        ("llama-3.2-11b-vision", 0),
        ("llama-3.1-8b", 0),
    ],
)
def test_tokens_per_image(name: str, tokens: int) -> None:
    assert load_model(name).tokens_per_image == tokens


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("cost", ["ideal", "calibrated"])
@pytest.mark.parametrize("tp", [1, 4])
@pytest.mark.parametrize("name", _WITH_IMAGES)
def test_images_one_by_one_and_as_an_array(name: str, tp: int, cost: str) -> None:
    model, platform, plan = load_model(name), load_platform("dgx-h100"), Plan(tp=tp)
    counts = (0, 1, 4)

    def run(images: object) -> Report:
        workload = Workload(batch=2, prompt=8192, output=8, images=images)  # type: ignore[arg-type]
        return simulate(model, platform, plan, workload, cost=cost)

    every, each = run(np.array(counts)), [run(count) for count in counts]
    for key in ("ttft", "tpot"):
        assert getattr(every, key) == pytest.approx([getattr(r, key) for r in each], rel=1e-12)
    assert every.memory.total == pytest.approx([r.memory.total for r in each], rel=1e-12)
    assert each[0].ttft < each[1].ttft < each[2].ttft
    assert sum(every.prefill.limiter_shares.values()) == pytest.approx(1)
    assert each[0].to_dict()["ttft_ms"] > 0


def test_without_images_it_is_the_text_model() -> None:
    config = _SPECS["llava-1.5-7b"]["config"]
    text, platform = load_model(config["text_config"]), load_platform("dgx-h100")
    alone = simulate(text, platform, Plan(tp=2), Workload(batch=2, prompt=1024, output=8))
    both = _simulate("llava-1.5-7b", Plan(tp=2), prompt=1024)
    assert (both.ttft, both.tpot) == (alone.ttft, alone.tpot)
    assert both.memory.weights > alone.memory.weights
    assert both.memory.kv_cache == alone.memory.kv_cache


def test_images_differ_only_by_the_encoder() -> None:
    without, with_one = (_simulate("qwen2.5-vl-7b", images=images) for images in (0, 1))
    names = [{event.name for event in r.prefill.events} for r in (without, with_one)]
    assert names[0] < names[1]
    assert all(name.startswith("vision") for name in names[1] - names[0])
    added = sum(
        event.time * event.count
        for event in with_one.prefill.events
        if event.name.startswith("vision")
    )
    assert with_one.ttft - without.ttft == pytest.approx(added)
    assert with_one.tpot == without.tpot
    assert not any(event.name.startswith("vision") for event in with_one.decode.events)


def test_the_image_cache_of_cross_attention_does_not_grow() -> None:
    name = "llama-3.2-11b-vision"
    model = load_model(name)
    position = 2 * 8 * 128 * 2
    assert model.kv_bytes_per_token == 32 * position
    none, one, long = (
        _simulate(name, images=images, output=output).memory.kv_cache
        for images, output in ((0, 8), (1, 8), (1, 1032))
    )
    # four tiles of 40 × 40 patches and a class token, in 8 layers, for both sequences
    assert one - none == 2 * 8 * 4 * 1601 * position
    assert long - one == 2 * 1024 * 32 * position


def test_cross_attention_is_skipped_without_images() -> None:
    report = _simulate("llama-3.2-11b-vision", Plan(tp=2), images=0)
    for timeline in (report.prefill, report.decode):
        assert not any("cross" in event.name for event in timeline.events)
    seen = _simulate("llama-3.2-11b-vision", Plan(tp=2), images=1)
    assert any("cross_q" in event.name for event in seen.decode.events)
    assert not any("cross_kv" in event.name for event in seen.decode.events)


def test_collectives_of_an_encoder_wait_for_images_too() -> None:
    model = load_model("qwen2.5-vl-7b")
    sharded = shard(model.prefill, Plan(tp=2))
    talking = [
        operator
        for operator, _ in sharded.operators
        if operator.stream == "communication" and operator.name.startswith("vision")
    ]
    assert talking
    assert {operator.given for operator in talking} == {"images"}


@pytest.mark.parametrize("name", ["t5-large", "whisper-large-v3", "qwen3-vl-2b"])
def test_unrolled_and_collapsed_agree(name: str) -> None:
    model, plan = load_model(name), Plan(tp=2)
    machine = Machine(load_platform("dgx-h100"), plan)
    step = {"batch": 2, "images": 1, "seq": 1024, "context": 1024, "source": 512}
    for graph in (model.prefill, model.decode):
        sizes = plan.bind({**step, **model.numbers}, graph.derived)
        sharded = shard(graph, plan)
        folded, unrolled = (
            step_time(g, sizes, machine, Roofline()) for g in (sharded, sharded.unroll())
        )
        assert folded == pytest.approx(unrolled, rel=1e-12)


def test_the_prompt_of_t5_goes_to_its_encoder() -> None:
    short, long = (_simulate("t5-large", prompt=prompt) for prompt in (128, 4096))
    layers, position = 24, 2 * 16 * 64 * 2
    assert load_model("t5-large").kv_bytes_per_token == layers * position
    # the start token and 8 more in the decoder, in blocks of 16; the prompt in the cross cache
    assert short.memory.kv_cache == 2 * layers * position * (16 + 128)
    assert long.memory.kv_cache == 2 * layers * position * (16 + 4096)
    assert long.ttft > short.ttft
    sizes = long.point.sizes("decode", 4096 + 1)
    assert (sizes["seq"], sizes["context"], sizes["source"]) == (1, 2, 4096)


def test_whisper_hears_thirty_seconds_whatever_the_prompt() -> None:
    short, long = (_simulate("whisper-large-v3", prompt=prompt) for prompt in (4, 200))
    position = 2 * 20 * 64 * 2
    assert short.memory.kv_cache == 2 * 32 * position * (1500 + 16)
    assert long.memory.kv_cache == 2 * 32 * position * (1500 + 208)


def test_a_tower_stays_in_16_bit_unless_asked() -> None:
    fp8 = frontends.Precision(weights="fp8")
    both = frontends.Precision(weights="fp8", classes={"vision": "fp8"})
    formats = [
        {
            str(t.format)
            for t, _ in load_model("llava-1.5-7b", precision=precision).weights
            if t.name.startswith("vision.") and len(t.dims) > 1
        }
        for precision in (fp8, both)
    ]
    assert formats == [{"bf16"}, {"fp8"}]


@pytest.mark.parametrize(
    ("name", "workload", "message"),
    [
        ("llama-3.1-8b", {"images": 1}, "llama-3.1-8b reads no images"),
        ("llava-1.5-7b", {"images": 2, "prompt": 1024}, "images=2: each is 576 tokens"),
        ("llava-1.5-7b", {"images": -1}, "images=-1: must be a whole number from 0"),
        ("llava-1.5-7b", {"images": np.array([0.0, 0.5])}, "images=0.5: must be a whole"),
    ],
)
def test_images_that_cannot_be(name: str, workload: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        _simulate(name, **workload)


@pytest.mark.parametrize(
    ("name", "table", "changes", "message"),
    [
        ("llava-1.5-7b", "vision_config", {"num_attention_heads": 7}, "not a multiple of 7 heads"),
        ("llava-1.5-7b", "vision_config", {"image_size": 7}, "too few"),
        ("gemma-3-4b", "vision_config", {"image_size": 140}, "cannot be averaged to 256 tokens"),
        ("llama-3.2-11b-vision", "vision_config", {"vision_output_dim": 1280}, "5|6 layers"),
        ("t5-large", "", {"feed_forward_proj": "swish"}, "'swish' is not known"),
        ("whisper-large-v3", "", {"encoder_attention_heads": 7}, "not a multiple"),
        ("llava-1.5-7b", "", {"vision_config": [1]}, "must be a table"),
    ],
)
def test_contradictions_are_named(
    name: str, table: str, changes: dict[str, object], message: str
) -> None:
    config = dict(_SPECS[name]["config"])
    if table:
        config[table] = {**config[table], **changes}
    else:
        config |= changes
    with pytest.raises(SpecError, match=message):
        load_model(config)


def test_a_config_without_a_tower_is_its_text() -> None:
    config = {k: v for k, v in _SPECS["gemma-3-4b"]["config"].items() if k != "vision_config"}
    model = load_model(config)
    assert model.prefill is model.decode
    assert model.num_parameters < load_model("gemma-3-4b").num_parameters
