"""Rethinking LLM Inference Bottlenecks: Insights from Latent Attention and Mixture-of-Experts
(Yun et al., arXiv:2507.15465 v3, 2026), figure 6, table II, section V, and a decode step of its
simulator (LLMSimulator, deepseekV3 decode on 8 B100, one byte per number).

DeepSeek-R1's latent attention, absorbed and decompressed, on an ideal B200 in 16 bit; the matrices
of the attention block are priced one by one, as the paper prices them. The simulator draws the
experts of each token; ours are what the busiest chip has to expect.
"""

from math import comb
from statistics import NormalDist

import numpy as np

from frontends import Decoder, Precision, load_model
from frontends.decoder import Group, Layer
from frontends.latent import LatentAttention
from hardware import Level, Link, Platform, load_chip, load_platform
from opgraph import Footprint, Plan, Work, Workload, simulate
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
_SIMULATED_DENSE, _SIMULATED_TOKENS = 3, 32
_CHIPS = 32  # of the paper's deployment
_CAPACITY, _CONTEXT = 192e9, 8192  # of a chip, table I; of the batches' capacity
# the chips' links: the paper's bandwidths, its simulator's latencies
NVLINK = Link(900e9, 0.8e-6, "LLMSimulator, preset of B200")
INFINIBAND = Link(100e9, 130e-9, "LLMSimulator, preset of InfiniBand")
_SERVED = {
    "deepseek-r1": (Plan(ep=_CHIPS), 7360),
    "llama-4-maverick": (Plan(tp=8, attention_dp=4, ep=_CHIPS), 3328),
    "gpt-3-175b": (Plan(tp=8, dp=4), 124),
}
# the paper prints shares in whole percent, ratios in three digits
_SHARE, _RATIO, _EXACT = 0.02, 0.005, 0.001
# what its capacities leave for activations is not published. One drawn routing of 32 tokens has a
# standard deviation of 5.6 % in the busiest chip's experts and of 7.2 % in its rows (4,000 draws):
# less than two of either
_RESERVED, _DRAWN = 0.04, 0.1


def rows() -> list[Row]:
    """Cache sizes, shares, speed-ups, batches, all-to-alls, and a decode step of the simulator."""
    return [*_caches(), *_forms(), *_batches(), *_capacities(), *_all_to_alls(), *_simulator()]


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


def _capacities() -> list[Row]:
    """Sequences of 8192 tokens for which there is memory (equation 11), and where ours are."""
    found = []
    for name, (plan, published) in _SERVED.items():
        model = load_model(name, weights="bf16", kv_cache="bf16")
        platform = load_platform(f"b200-sxm:{_CHIPS}").with_chip(memory_capacity=_CAPACITY)
        batch = np.arange(1, 2 * published)
        work = Workload(batch=batch, prompt=_CONTEXT - 1, output=1)
        memory = simulate(model, platform, plan, work).memory
        fits = memory.weights + memory.kv_cache <= memory.capacity
        held = _spread(memory, plan, shared="experts" in model.numbers)
        room = (_CAPACITY * _CHIPS - held) / (model.kv_bytes_per_token * _CONTEXT)
        found += [
            Row(f"batch that fits, {name}", published, room, _RESERVED),
            Row(f"the same, weights as our plan places them, {name}", None, int(batch[fits].max())),
        ]
    return found


def _spread(memory: Footprint, plan: Plan, *, shared: bool) -> float:
    """Bytes of weights on all chips as the paper counts them: embedding and head are left out, and
    of feed-forward layers beside experts (*shared*) there is one copy.
    """
    nbytes = {name: float(np.max(value)) for name, value in memory.by_class.items()}
    ffn = nbytes["ffn"] * float(plan.tp if shared else plan.num_chips)
    return (nbytes["attention"] + nbytes.get("experts", 0.0)) * float(plan.num_chips) + ffn


def _all_to_alls() -> list[Row]:
    published = {"NVLink": (NVLINK, 17.65), "InfiniBand": (INFINIBAND, 151.8)}
    return [
        Row(f"µs of an all-to-all, 128 tokens a chip, {name}", micros, 1e6 * seconds, _SHARE)
        for name, (link, micros) in published.items()
        for seconds in [all_to_all(link, _CHIPS, 128 * _CHIPS, itemsize=2)]
    ]


def all_to_all(link: Link, chips: int, tokens: int, itemsize: int) -> float:
    """Seconds until the busiest of *chips* has the rows of *tokens* that go to its experts."""
    model = load_model("deepseek-r1")
    experts, topk, hidden = (int(model.numbers[dim]) for dim in ("experts", "topk", "model"))
    rows = busiest_rows(experts, topk, chips, tokens)
    chip = load_chip("b200-sxm")
    platform = Platform("chips", chip.source, chip, (Level("domain", chips, link),))
    return float(platform.collective("all_to_all", rows * hidden * itemsize, chips).time)


def busiest_rows(experts: int, topk: int, chips: int, tokens: int) -> float:
    """Rows that the busiest of *chips* gets, expected, if tokens choose experts at random.

    A chip gets a hypergeometric number of each token's *topk* rows; the sum is close to normal.
    """
    own = experts // chips
    share = topk * own / experts
    spread = share * (1 - own / experts) * (experts - topk) / (experts - 1)
    return _most(tokens * share, tokens * spread, chips)


def busiest_touched(experts: int, topk: int, chips: int, tokens: int) -> float:
    """Experts that some row goes to, on the chip that has most of them, expected."""
    own = experts // chips
    mean = float(touched_experts(experts, topk, 0.0, chips, tokens))
    missed, both = ((comb(experts - n, topk) / comb(experts, topk)) ** tokens for n in (1, 2))
    variance = own * missed * (1 - missed) + own * (own - 1) * (both - missed**2)
    return _most(mean, variance, chips)


def _most(mean: float, variance: float, count: int) -> float:
    """The largest of *count* normal numbers, expected (Blom, Statistical Estimates, 1958)."""
    rank = NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) if count > 1 else 0.0
    return float(mean + variance**0.5 * rank)


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
    ] + _simulated_experts(bandwidth)


def _simulated_experts(bandwidth: float) -> list[Row]:
    """Feed-forward layers: a byte per weight; touched experts and a shared one where there are."""
    numbers = load_model("deepseek-v3").numbers
    hidden, dense, inner = (int(numbers[dim]) for dim in ("model", "ffn", "expert_ffn"))
    experts, topk = int(numbers["experts"]), int(numbers["topk"])
    sparse = _SIMULATED_LAYERS - _SIMULATED_DENSE
    touched = busiest_touched(experts, topk, _SIMULATED_CHIPS, _SIMULATED_TOKENS)
    exchange = all_to_all(NVLINK, _SIMULATED_CHIPS, _SIMULATED_TOKENS, itemsize=1)
    nanos = {
        "dense layers": (148_833.79, _SIMULATED_DENSE * 3 * hidden * dense / bandwidth, 0.005),
        "experts": (8_016_976, sparse * (touched + 1) * 3 * hidden * inner / bandwidth, _DRAWN),
        "all-to-alls": (135_068.16, sparse * 2 * exchange, _DRAWN),
    }
    return [
        Row(f"LLMSimulator ns, {name}", published, seconds * 1e9, tolerance)
        for name, (published, seconds, tolerance) in nanos.items()
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
