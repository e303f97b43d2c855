"""Latent and sparse attention against formulas by hand, and the papers' figures."""

from dataclasses import replace

import pytest

from frontends import Decoder, Precision, load_model
from frontends.channels import FeedForward
from frontends.decoder import Group, Layer
from frontends.latent import LatentAttention
from hardware import SpecError, load_platform
from opgraph import Plan, Workload, simulate
from opgraph.attention import Choose, CompressedAttention
from opgraph.sizes import Sizes
from opgraph.tensor import Tensor

BYTE = Precision(weights="fp8", activations="fp8", kv_cache="fp8", classes={"head": "fp8"})
HEADS, QUERY, RANK, NOPE, ROPE, VALUE, MODEL = 128, 1536, 512, 128, 64, 128, 7168
LATENT = LatentAttention(
    heads=HEADS, query_rank=QUERY, kv_rank=RANK, nope=NOPE, rope=ROPE, value_dim=VALUE
)


def operators(model, phase, **sizes):
    graph = getattr(model, phase)
    bound = Sizes({**model.numbers, "skew": 0.0, **sizes}, graph.derived)
    return {op.name.removeprefix("layer."): op.work(bound) for op, _ in graph.operators}


def one_layer(mixer, absorb=None):
    layer = Layer(mixer=mixer, channel=FeedForward(ffn=18432))
    group = Group(name="layer", count=61, layers=(layer,))
    decoder = Decoder(name="mla", source="", family="", model=MODEL, vocab=129280, groups=(group,))
    return decoder.to_model(BYTE, absorb)


def gemm(batch, k, n):
    return batch * k + k * n + batch * n


# LLMSimulator's deepseekV3 decode step: batch 4 per chip, 1025 tokens before the new one, one
# byte per number (arXiv 2507.15465, artefact); its times are bytes over 8 TB/s, per 60 layers.
GOLDEN_NS = {
    "q_latent": 82_836.48,
    "latent": 27_755.52,
    "k_rope": 3_657.60,
    "q_nope": 189_281.28,
    "q_rope": 94_663.68,
    "k_up": 65_372.16,
    "v_up": 65_372.16,
    "attention": 21_907.20,
    "out": 881_510.40,
}


@pytest.mark.parametrize("name", GOLDEN_NS)
def test_decode_step_is_that_of_llmsimulator(name):
    work = operators(
        one_layer(replace(LATENT, fused=False)), "decode", batch=4, seq=1, context=1026
    )
    assert work[name].moved / 8e12 * 60 * 1e9 == pytest.approx(GOLDEN_NS[name], rel=1e-3)


def test_absorbed_attention_by_hand():
    """A latent is read once for all heads; the new one is written."""
    work = operators(one_layer(LATENT), "decode", batch=4, seq=1, context=1026)["attention"]
    assert work.flop == 2 * 4 * HEADS * 1026 * (RANK + ROPE + RANK)
    assert work.read == 4 * 1026 * (RANK + ROPE) + 4 * HEADS * (RANK + ROPE)
    assert work.written == 4 * HEADS * RANK + 4 * (RANK + ROPE)


def test_fused_projections_read_their_input_once():
    fused = operators(one_layer(LATENT), "decode", batch=4, seq=1, context=9)
    apart = operators(one_layer(replace(LATENT, fused=False)), "decode", batch=4, seq=1, context=9)
    assert fused["qkv_down"].moved == gemm(4, MODEL, QUERY + RANK + ROPE)
    for one, several in (
        ("qkv_down", ("q_latent", "latent", "k_rope")),
        ("q_up", ("q_nope", "q_rope")),
    ):
        assert fused[one].flop == sum(apart[name].flop for name in several)
        assert fused[one].moved < sum(apart[name].moved for name in several)


def test_decompressed_attention_by_hand():
    """Keys and values for every token of the context, also those of earlier chunks."""
    work = operators(one_layer(LATENT), "prefill", batch=2, seq=256, context=1024)
    pairs = 256 * 1024 - 256 * 255 // 2
    each = NOPE + ROPE + VALUE
    assert work["attention"].flop == 2 * 2 * HEADS * pairs * each
    assert work["attention"].read == 2 * HEADS * (256 * (NOPE + ROPE) + 1024 * each)
    assert work["k_up"].flop == 2 * 2 * 1024 * HEADS * NOPE * RANK
    assert work["v_up"].flop == 2 * 2 * 1024 * HEADS * VALUE * RANK
    assert work["append"].written == 2 * 256 * (RANK + ROPE)


@pytest.mark.parametrize("absorb", [None, True, False, {"prefill": True}, {"decode": False}])
def test_forms_have_the_same_parameters_and_cache(absorb):
    plain, model = load_model("deepseek-v2-lite"), load_model("deepseek-v2-lite", absorb=absorb)
    assert model.num_parameters == plain.num_parameters == 15_706_484_224
    assert model.kv_bytes_per_token == 27 * 576 * 2


def kinds(model, phase):
    graph = getattr(model, phase)
    return {type(op).__name__ for op, _ in graph.operators if op.kind == "attention"}


@pytest.mark.parametrize(
    ("absorb", "prefill", "decode"),
    [
        (None, "Decompressed", "Absorbed"),
        (True, "Absorbed", "Absorbed"),
        (False, "Decompressed", "Decompressed"),
        ({"prefill": True, "decode": False}, "Absorbed", "Decompressed"),
        ({"prefill": True}, "Absorbed", "Absorbed"),
    ],
)
def test_the_form_is_chosen_per_phase(absorb, prefill, decode):
    model = load_model("deepseek-v3", absorb=absorb)
    assert kinds(model, "prefill") == {f"{prefill}Attention"}
    assert kinds(model, "decode") == {f"{decode}Attention"}
    assert (model.prefill is model.decode) == (prefill == decode)


def test_sparse_attention_is_absorbed_in_both_phases():
    model = load_model("deepseek-v3.2")
    assert model.prefill is model.decode
    assert kinds(model, "prefill") == {"AbsorbedAttention"}


def test_an_unknown_phase_is_refused():
    with pytest.raises(SpecError, match=r"'prefil' is no phase; did you mean 'prefill'"):
        load_model("deepseek-v3", absorb={"prefil": True})
    assert load_model("llama-3.1-8b", absorb=False)
    for form in (True, {"decode": True}):
        with pytest.raises(SpecError, match=r"llama-3\.1-8b has no latent attention"):
            load_model("llama-3.1-8b", absorb=form)


def test_the_latent_cache_is_on_every_chip():
    model, platform = load_model("deepseek-v3"), load_platform("dgx-h200")
    caches = [simulate(model, platform, Plan(tp=tp)).memory.kv_cache for tp in (1, 8)]
    assert caches[0] == caches[1]


def test_absorbing_pays_in_decode_and_costs_in_prefill():
    platform = load_platform("dgx-h200")
    work = Workload(batch=64, prompt=4096, output=2)
    absorbed, plain = (
        simulate(load_model("deepseek-v3", absorb=form), platform, Plan(tp=8), work)
        for form in (True, False)
    )
    assert absorbed.tpot < plain.tpot
    assert absorbed.ttft > plain.ttft


@pytest.mark.parametrize("context", [1024, 2048, 65536])
def test_sparse_attention_reads_what_was_chosen(context):
    model = load_model("deepseek-v3.2", precision=BYTE)
    bound = {"batch": 4, "seq": 1, "context": context}
    work = operators(model, "decode", **bound)
    keys = min(context, 2048)
    attention = work["layers3-60.attention"]
    assert attention.flop == 2 * 4 * 128 * keys * (512 + 64 + 512)
    assert attention.read == 4 * (keys * 576 + 128 * 576 + 2048 * 4)
    choose = work["layers3-60.choose"]
    assert choose.flop == 4 * context * 64 * (2 * 128 + Choose.FLOP_PER_SCORE)
    scores = 4 * 4 * context
    assert choose.read == 4 * (context * 128 + 64 * 128 + 64) + scores
    assert choose.written == 4 * (128 + 2048 * 4) + scores


def test_layers_that_share_a_choice_have_no_indexer():
    graph = load_model("glm-5.2").decode
    count = sum(n for op, n in graph.operators if op.kind == "index")
    assert count == 21
    limited = sum(n for op, n in graph.operators if op.kind == "attention" and op.chosen)
    assert limited == 78


def test_block_sparse_attention_of_minimax_m3():
    graph = load_model("minimax-m3").decode
    chosen = [op.chosen for op, n in graph.operators if op.kind == "attention" for _ in range(n)]
    assert chosen == [None] * 3 + ["chosen"] * 57
    assert load_model("minimax-m3").numbers["chosen"] == 16 * 128


def compressed(ratio, best=None):
    query = Tensor.of("q", "batch seq heads head_dim", "fp8")
    key = Tensor.of("k", "batch seq head_dim", "fp8")
    caches = (Tensor.of("near", "batch context.window head_dim", "fp8", "cache"),)
    inputs = (query, key)
    if ratio:
        inputs += (Tensor.of("new", "batch groups head_dim", "fp8"),)
        caches += (Tensor.of("far", "batch context.far head_dim", "fp8", "cache"),)
    return CompressedAttention(
        name="attention", inputs=inputs + caches, window="window", ratio=ratio, best=best
    )


@pytest.mark.parametrize("ratio", [0, 4, 16])
@pytest.mark.parametrize("best", [None, "best"])
@pytest.mark.parametrize("seq", [1, 7, 40])
def test_compressed_attention_by_counting(ratio, best, seq):
    """Each query sees the last 8 tokens, and the full groups before it, at most 3 of them."""
    context, window, most = 40, 8, 3
    numbers = {"batch": 1, "seq": seq, "context": context, "heads": 2, "head_dim": 16}
    sizes = Sizes(numbers | {"window": window, "groups": 1, "best": most})
    pairs = 0
    for position in range(context - seq + 1, context + 1):
        pairs += min(position, window)
        if ratio:
            pairs += min(position // ratio, most if best else context)
    operator = compressed(ratio, best if ratio else None)
    assert operator.flop(sizes) == 2 * 2 * 2 * pairs * 16


def test_compressed_attention_reads_its_keys_once():
    """Decode: 7 old tokens of the window and the new one, 10 groups, queries of 2 × 16."""
    numbers = {"batch": 1, "seq": 1, "context": 40, "heads": 2, "head_dim": 16, "window": 8}
    work = compressed(4).work(Sizes(numbers | {"groups": 1}))
    assert work.read == (2 + 1 + 1 + 7 + 10) * 16
    assert work.written == (2 + 1 + 1) * 16


PROJECTIONS = ("q_latent", "latent", "k_rope", "q_nope", "q_rope", "out")


def block_times(absorb, phase, **sizes):
    """Seconds of a layer's attention on an ideal B200: 2250 TFLOP/s and 8 TB/s, 16 bit."""
    group = Group(name="layer", count=1, layers=(Layer(mixer=replace(LATENT, fused=False)),))
    decoder = Decoder(name="mla", source="", family="", model=MODEL, vocab=129280, groups=(group,))
    work = operators(decoder.to_model(absorb=absorb), phase, **sizes)
    names = (*PROJECTIONS, "k_up", "v_up", "attention")
    return {name: max(work[name].flop / 2250e12, work[name].moved / 8e12) for name in names}


def test_most_of_an_unabsorbed_decode_step_is_decompression():
    """arXiv 2507.15465, figure 6: 59 % and 40 %, at 128 sequences of 4096 tokens on a chip."""
    times = block_times(False, "decode", batch=128, seq=1, context=4096)
    total = sum(times.values())
    assert (times["k_up"] + times["v_up"]) / total == pytest.approx(0.591, abs=0.002)
    assert times["attention"] / total == pytest.approx(0.406, abs=0.002)


@pytest.mark.parametrize(("batch", "context", "gain"), [(64, 8192, 103.2), (128, 4096, 98.7)])
def test_absorbing_speeds_decode_up_a_hundredfold(batch, context, gain):
    """arXiv 2507.15465: up to 103.12 times, of the points that fit the chip."""
    plain, absorbed = (
        sum(block_times(form, "decode", batch=batch, seq=1, context=context).values())
        for form in (False, True)
    )
    assert plain / absorbed == pytest.approx(gain, rel=5e-3)


def test_absorbing_slows_prefill_down():
    """arXiv 2507.15465: 2.21 times; causal, 8192 tokens."""
    plain, absorbed = (
        sum(block_times(form, "prefill", batch=1, seq=8192, context=8192).values())
        for form in (False, True)
    )
    assert absorbed / plain == pytest.approx(2.22, abs=0.01)
