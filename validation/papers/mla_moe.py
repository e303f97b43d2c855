"""Rethinking LLM Inference Bottlenecks: Insights from Latent Attention and Mixture-of-Experts
(Yun et al., arXiv:2507.15465 v3, 2026), figure 6, table II, section V, and a decode step of its
simulator (LLMSimulator, deepseekV3 decode on 8 B100, one byte per number).

DeepSeek-R1's latent attention, absorbed and decompressed, on an ideal B200 in 16 bit; the matrices
of the attention block are priced one by one, as the paper prices them.
"""

from frontends import Decoder, Precision, load_model
from frontends.decoder import Group, Layer
from frontends.latent import LatentAttention
from hardware import load_platform
from opgraph import Work
from opgraph.routing import touched_experts
from opgraph.sizes import Sizes
from validation.papers import Row

KIB, MIB = 2**10, 2**20
_R1 = LatentAttention(
    heads=128, query_rank=1536, kv_rank=512, nope=128, rope=64, value_dim=128, fused=False
)
_BLOCK = ("q_latent", "latent", "k_rope", "q_nope", "q_rope", "k_up", "v_up", "attention", "out")
_BYTE = Precision(weights="fp8", activations="fp8", kv_cache="fp8")
# nanoseconds of 60 layers, batch 4 a chip, the new token is the 1026th
_SIMULATED = {
    "q_latent": 82_836.48, "latent": 27_755.52, "k_rope": 3_657.60, "q_nope": 189_281.28,
    "q_rope": 94_663.68, "k_up": 65_372.16, "v_up": 65_372.16, "attention": 21_907.20,
    "out": 881_510.40,
}  # fmt: skip
_SIMULATED_LAYERS, _SIMULATED_CHIPS = 60, 8
_CHIPS = 32  # of the paper's deployment
# the paper prints shares in whole percent, ratios in three digits
_SHARE, _RATIO, _EXACT = 0.02, 0.005, 0.001


def rows() -> list[Row]:
    """Cache sizes, shares, speed-ups, batch needs, and nine operators of the simulator."""
    return [*_caches(), *_forms(), *_batches(), *_simulator()]


def _caches() -> list[Row]:
    gpt3, r1 = (load_model(name).kv_bytes_per_token for name in ("gpt-3-175b", "deepseek-r1"))
    return [
        Row("GPT-3 KV MiB per token", 4.5, gpt3 / MIB, _EXACT),
        Row("DeepSeek-R1 KV KiB per token", 68.6, r1 / KIB, _EXACT),
        Row("GPT-3 over DeepSeek-R1 KV", 67.0, gpt3 / r1, _SHARE),
    ]


def _forms() -> list[Row]:
    plain = _times("decode", absorb=False, batch=128, context=4096)
    whole = sum(plain.values())
    decompress = plain["k_up"] + plain["v_up"]
    return [
        Row("decode share of decompression, B=128 L=4096", 0.59, decompress / whole, _SHARE),
        Row(
            "decode share of core attention, B=128 L=4096", 0.40, plain["attention"] / whole, _SHARE
        ),
        Row("absorbing speeds decode up, B=64 L=8192", 103.12, _gain(64, 8192), _RATIO),
        Row("absorbing speeds decode up, B=128 L=4096", 98.7, _gain(128, 4096), _RATIO),
        Row(
            "absorbing slows prefill down, causal L=8192", 2.21, 1 / _gain(1, 8192, "prefill"), 0.01
        ),
    ]


def _batches() -> list[Row]:
    """Sequences at which attention and experts reach the ridge of the roofline."""
    chip = load_platform("b200-sxm:1").chip
    model = load_model("deepseek-r1")
    ridge = float(chip.peak("bf16") / chip.memory_bandwidth)
    experts, topk = model.numbers["experts"], model.numbers["topk"]
    on_chip = touched_experts(experts, topk, 0.0, _SIMULATED_CHIPS, _CHIPS)
    return [
        Row("batch for attention at the ridge, 32 chips", 9000, ridge * _CHIPS, _EXACT),
        Row("batch for experts at the ridge", 9000, ridge * experts / topk, _EXACT),
        Row("touched experts of 32 on a chip, 32 tokens", 20.4, float(on_chip), _RATIO),
    ]


def _simulator() -> list[Row]:
    bandwidth = float(load_platform("b100:1").chip.memory_bandwidth)
    work = _work("decode", absorb=True, batch=4, context=1026, precision=_BYTE)
    return [
        Row(
            f"LLMSimulator ns, {name}",
            published,
            float(work[name].moved) / bandwidth * _SIMULATED_LAYERS * 1e9,
            _EXACT,
        )
        for name, published in _SIMULATED.items()
    ]


def _gain(batch: int, context: int, phase: str = "decode") -> float:
    """How many times faster the absorbed form is."""
    plain, absorbed = (
        sum(_times(phase, absorb=form, batch=batch, context=context).values())
        for form in (False, True)
    )
    return plain / absorbed


def _times(phase: str, *, absorb: bool, batch: int, context: int) -> dict[str, float]:
    """Seconds of each operator of the attention block on an ideal B200."""
    chip = load_platform("b200-sxm:1").chip
    work = _work(phase, absorb=absorb, batch=batch, context=context, precision=Precision())
    return {
        name: max(float(one.flop / chip.peak("bf16")), float(one.moved / chip.memory_bandwidth))
        for name, one in work.items()
    }


def _work(
    phase: str, *, absorb: bool, batch: int, context: int, precision: Precision
) -> dict[str, Work]:
    group = Group(name="layer", count=1, layers=(Layer(mixer=_R1),))
    decoder = Decoder(
        name="r1-attention",
        source=__doc__ or "",
        family="",
        model=7168,
        vocab=129280,
        groups=(group,),
    )
    model = decoder.to_model(precision, absorb)
    graph = getattr(model, phase)
    seq = context if phase == "prefill" else 1
    sizes = Sizes({**model.numbers, "batch": batch, "seq": seq, "context": context}, graph.derived)
    work = {op.name.removeprefix("layer."): op.work(sizes) for op, _ in graph.operators}
    return {name: work[name] for name in _BLOCK}
