"""Number formats: effective bits, what they take and move, what checkpoints declare."""

import pytest

from frontends import Precision, Scheme, load_model
from frontends.config import Config
from frontends.quantization import declared
from hardware import SpecError, load_platform
from opgraph import Format, Plan, Workload, simulate
from opgraph.cost import UNPACK_FLOP, Machine, Roofline
from opgraph.operator import Einsum
from opgraph.sizes import Sizes
from opgraph.tensor import FORMATS, Tensor, as_format

LLAMA = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000,
    "tie_word_embeddings": False,
}  # fmt: skip
# of a layer: q and out 256 × 256, k and v 256 × 128, gate, up and down 256 × 512
MATRICES = 4 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512)
ENDS, NORMS = 2 * 1000 * 256, 9 * 256


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("int4-g128", 4 + (16 + 4) / 128),
        ("int3-g128", 3 + (16 + 3) / 128),
        ("int4-g64", 4 + 20 / 64),
        ("mxfp4", 4 + 8 / 32),
        ("mxfp6", 6 + 8 / 32),
        ("nvfp4", 4 + 8 / 16),
        ("fp8", 8),
        ("bf16", 16),
        ("fp8-block", 8 + 32 / 128**2),
    ],
)
def test_effective_bits_by_hand(text, bits):
    assert as_format(text).effective_bits == pytest.approx(bits, rel=1e-15)
    assert as_format(text).nbytes == pytest.approx(bits / 8, rel=1e-15)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_rate_on_every_chip(name):
    chip = load_platform("h100-sxm:1").chip
    form = as_format(name)
    if name != "int32":  # indices are not multiplied
        assert chip.peak(form.compute or form.name) > 0


@pytest.mark.parametrize("text", ["fp9", "int4-g0", "int0-g128", "", "g128", "int4-128"])
def test_an_unknown_format_is_refused(text):
    with pytest.raises(SpecError, match="number format"):
        Precision(weights=text)


def test_an_unknown_class_is_refused():
    with pytest.raises(SpecError, match="'expert'"):
        Precision(classes={"expert": "fp8"})


def footprint(**options):
    return simulate(load_model(LLAMA, **options), load_platform("h100-sxm:1")).memory.weights


def test_weights_take_what_their_formats_say():
    assert footprint() == 2 * (MATRICES + ENDS + NORMS)
    assert footprint(weights="fp8") == MATRICES + 2 * (ENDS + NORMS)
    assert footprint(weights="int4-g128") == MATRICES * 4.15625 / 8 + 2 * (ENDS + NORMS)
    head = Precision(classes={"head": "fp8"})
    assert footprint(precision=head) == 2 * (MATRICES + ENDS / 2 + NORMS) + ENDS / 2
    ffn = Precision(classes={"ffn": "nvfp4"})
    assert footprint(precision=ffn) == 2 * (MATRICES + ENDS + NORMS) - 4 * 3 * 256 * 512 * 11.5 / 8


def test_the_cache_takes_what_its_format_says():
    plain, small = (load_model(LLAMA, kv_cache=name).kv_bytes_per_token for name in ("bf16", "fp8"))
    assert plain == 4 * 2 * 2 * 64 * 2
    assert small == plain / 2


def kinds(model):
    return [operator.kind for operator, _ in model.decode.operators]


def test_narrow_inputs_are_quantised_once_and_products_run_at_their_rate():
    model = load_model(LLAMA, weights="fp8")
    # before q k v, out, gate up, down
    assert kinds(model).count("quantize") == 4
    by_name = {operator.name: operator for operator, _ in model.decode.operators}
    assert by_name["layer.qkv"].dtype == "fp8"
    assert by_name["layer.qkv"].outputs[0].format.name == "bf16"
    assert by_name["head"].dtype == "bf16"


@pytest.mark.parametrize("weights", ["int4-g128", "mxfp4", "int3-g128", "fp8/bf16"])
def test_weight_only_formats_keep_products_in_16_bit(weights):
    model = load_model(LLAMA, weights=weights)
    assert "quantize" not in kinds(model)
    by_name = {operator.name: operator for operator, _ in model.decode.operators}
    assert by_name["layer.qkv"].dtype == "bf16"


def test_unpacking_weights_takes_the_vector_units():
    x = Tensor.of("x", "m k", "bf16")
    product = Einsum(
        name="p",
        inputs=(x, Tensor.of("w", "n k", "int4-g128", "weight")),
        pattern="m k, n k -> m n",
    )
    sizes = Sizes({"m": 256, "n": 4096, "k": 4096})
    platform = load_platform("h100-sxm:1").with_chip(memory_bandwidth=1e18, peak={"bf16": 1e20})
    cost = Roofline().cost(product, sizes, Machine(platform, Plan()))
    assert cost.time == pytest.approx(UNPACK_FLOP * 4096 * 4096 / platform.chip.vector)


def test_decode_gains_what_the_weights_lose():
    """At batch 1 a step reads the weights: 16 over 4.15625 where they are all there is."""
    tiny = LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "vocab_size": 8}
    tiny |= {"num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 2}
    platform, work = load_platform("h100-sxm:1"), Workload(prompt=1, output=2)
    plain, small = (
        simulate(load_model(tiny, weights=weights), platform, workload=work).tpot
        for weights in ("bf16", "int4-g128")
    )
    assert plain / small == pytest.approx(16 / 4.15625, rel=5e-3)


def quantised(**given):
    return declared(Config(LLAMA | {"quantization_config": given}, "config"))


@pytest.mark.parametrize(
    ("given", "attention"),
    [
        ({"quant_method": "fp8"}, ("fp8", "fp8")),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, ("fp8-block", "fp8-row")),
        ({"quant_method": "mxfp4"}, ("mxfp4", "None")),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, ("int4-g64", "None")),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, ("int3-g128", "None")),
        ({"quant_algo": "NVFP4"}, ("nvfp4", "nvfp4")),
        ({"quant_algo": "W4A16_NVFP4"}, ("nvfp4", "bf16")),
        (
            {"config_groups": {"g": {"weights": {"num_bits": 8, "type": "int"}}}},
            ("int8", "None"),
        ),
    ],
)
def test_declared_formats(given, attention):
    scheme = quantised(**given).scheme("attention")
    assert (str(scheme.weights), str(scheme.inputs)) == attention


def test_the_text_part_alone_may_declare_formats():
    """As in Kimi K2.5, whose tower stays as it is."""
    text = LLAMA | {"quantization_config": {"quant_method": "fp8"}}
    found = declared(Config({"model_type": "kimi_k25", "text_config": text}, "config"))
    assert str(found.of("attention")) == "fp8"
    assert str(found.of("vision")) == "bf16"


BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def test_experts_in_fp4_among_blocks_of_fp8():
    """As in DeepSeek-V4: 4-bit experts with a power of two for each 32, entered by FP8."""
    config = LLAMA | {"expert_dtype": "fp4", "quantization_config": BLOCKS}
    found = declared(Config(config, "config")).scheme("experts")
    assert (str(found.weights), str(found.inputs)) == ("mxfp4", "fp8-row")


def test_what_is_not_listed_is_as_it_was():
    """As in NVIDIA's DeepSeek-V4: experts requantised, the rest still in blocks of FP8."""
    listed = {"layers.0.ffn.experts": {"quant_algo": "NVFP4"}}
    found = quantised(**BLOCKS, quantized_layers=listed)
    assert str(found.of("experts")) == "nvfp4"
    assert str(found.of("attention")) == "fp8-block"
    plain = quantised(quant_method="modelopt", quantized_layers=listed)
    assert str(plain.of("attention")) == "bf16"


def test_what_is_left_out_stays_in_16_bit():
    found = quantised(quant_method="fp8", ignore=["re:.*self_attn.*", "lm_head"])
    assert str(found.of("attention")) == "bf16"
    assert str(found.of("ffn")) == "fp8"
    # a few layers that are left out do not change the class
    ends = quantised(quant_method="fp8", modules_to_not_convert=["model.layers.0.self_attn"])
    assert str(ends.of("attention")) == "fp8"


def test_the_cache_format_is_declared_too():
    scheme = {"num_bits": 8, "type": "float"}
    assert quantised(quant_method="fp8", kv_cache_scheme=scheme).kv_cache == "fp8"
    assert quantised(quant_algo="FP8", kv_cache_quant_algo="FP8").kv_cache == "fp8"
    assert quantised(quant_algo="FP8", kv_cache_quant_algo=None).kv_cache == "bf16"


@pytest.mark.parametrize(
    "given",
    [{"quant_method": "magic"}, {"quant_algo": "FP3"}, {"config_groups": {"g": {}}}, {}],
)
def test_an_unknown_quantisation_is_refused(given):
    with pytest.raises(SpecError):
        quantised(**given)


def test_released_formats_are_the_default():
    r1 = load_model("deepseek-v3")
    sizes = Sizes(r1.numbers, r1.decode.derived)
    nbytes = sum(float(tensor.nbytes(sizes)) * count for tensor, count in r1.weights)
    # one byte a parameter but for embedding, head and router
    assert 1.0 < nbytes / r1.num_parameters < 1.02
    assert load_model("deepseek-v3", weights="bf16").num_parameters == r1.num_parameters


def test_schemes_are_read_from_text():
    assert Scheme.of("fp8/bf16") == Scheme(as_format("fp8"), as_format("bf16"))
    assert Scheme.of("int4-g128").inputs is None
    assert Scheme.of(Format(4, group=128, scale_bits=16)).inputs is None
    assert Scheme.of("nvfp4").inputs == as_format("nvfp4")
