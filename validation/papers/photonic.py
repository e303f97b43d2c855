"""Photonic Fabric Platform for AI Accelerators (Ding & Diep, arXiv:2507.14000, 2025), section on
inference: Llama-3.1-405B in fp8 on eight H100, and on as many with a pooled photonic memory; and
what a bit takes from chip to chip.

The appliance is one processor there, eight times an H100, with 32 TB and no network. Throughput is
compared at the batch that fits each, latency at batch 1. The paper's simulator used measured curves
of utilisation that it does not print; ours are the fitted kernels (``corrected``) of the H100, and
pooled ones for the appliance. Published gains are "up to", so they are held to within a band.
"""

from functools import cache

from frontends import load_model
from hardware import load_platform
from hardware.technology import technology
from opgraph import Calibrated, CostModel, Efficiency, Plan, Report, Workload, simulate
from validation.papers import Row

TOKENS = [(prompt, output) for prompt in (128, 4096) for output in (128, 4096)]
_SHORT_TO_LONG = (128, 4096)
_DGX_CAPACITY = 80e9  # of a chip, table 5
# of eight chips over NCCL with a message of a few tens of KB; TensorRT-LLM spent half of what
# tensor parallelism cost it in them, the rest around them
_ALL_REDUCE, _SHARE_OF_OVERHEAD = 10e-6, 0.5002
_THROUGHPUT_BAND, _LATENCY_BAND, _EQUAL = 0.23, 1 / 7, 0.005
# pJ/bit: adapters 65, switches 35, NVLink 50; photonic transceivers 5, switches 25, 10 in a tray;
# both ends and, between racks, three switches
_HOPS = {"tray": 50, "rack": 165, "cluster": 235}
_PHOTONIC_HOPS = {"photonic-tray": 10, "photonic-rack": 35, "photonic-cluster": 85}
_BITS, _PICO = 8, 1e12


def rows() -> list[Row]:
    """Gains in throughput and latency, what is reached of the peak, and energy by class of hop."""
    return [*_gains(), *_hops()]


def _hops() -> list[Row]:
    links = technology().links
    return [
        Row(f"pJ/bit, {name}", published, float(links[name].energy) * _PICO / _BITS, 1e-9)
        for name, published in (_HOPS | _PHOTONIC_HOPS).items()
    ]


def _gains() -> list[Row]:
    dgx, appliance = (served(where) for where in ("dgx", "appliance"))
    gain = appliance.throughput / dgx.throughput
    reached = [utilisation(report) for report in (dgx, appliance)]
    steps = [report.point.workload.batch / report.decode.time for report in (dgx, appliance)]
    overhead = _ALL_REDUCE / _SHARE_OF_OVERHEAD
    return [
        Row("throughput gain, 405B, 128 in, 4096 out", 3.66, float(gain), _THROUGHPUT_BAND),
        Row("latency gain, all-reduces of 10 µs", 1.40, latency_gain(_ALL_REDUCE), _LATENCY_BAND),
        Row("the same, half of the overhead in them", 1.40, latency_gain(overhead), _LATENCY_BAND),
        Row("part of the peak reached, eight H100", 0.136, reached[0], _THROUGHPUT_BAND),
        Row("part of the peak reached, appliance", 0.497, reached[1], _THROUGHPUT_BAND),
        Row(
            "gain in that over gain in throughput",
            3.654 / 3.66,
            float(reached[1] / reached[0] / (steps[1] / steps[0])),
            _EQUAL,
        ),
    ]


@cache
def served(where: str, batch: int = 0, cost: str = "corrected") -> Report:
    """405B on the *dgx* or the *appliance*, 128 tokens in and 4096 out, at a *batch*; the one that
    fits beside the weights if not given.
    """
    if not batch:
        memory = _report(where, 1, _SHORT_TO_LONG, "ideal").memory
        batch = int((memory.capacity - memory.weights) // memory.kv_cache)
    return _report(where, batch, _SHORT_TO_LONG, cost)


def latency_gain(all_reduce: float) -> float:
    """The best over `TOKENS` at batch 1, if an all-reduce costs so many seconds."""
    latency = load_platform("dgx-h100").levels[0].link.latency
    beyond = Efficiency(overhead=float(all_reduce - latency))
    cost = Calibrated({"all_reduce": beyond})
    return max(
        float(_report("dgx", 1, tokens, cost).latency / _report("appliance", 1, tokens).latency)
        for tokens in TOKENS
    )


def utilisation(report: Report) -> float:
    """The part of the matrix units' peak that products reach while decoding."""
    flop = sum(event.work.flop * event.count for event in report.decode.events
               if event.kind == "gemm")  # fmt: skip
    return float(flop / report.decode.time / report.point.platform.chip.peak("fp8"))


def _report(
    where: str, batch: int, tokens: tuple[int, int], cost: str | CostModel = "ideal"
) -> Report:
    model = load_model("llama-3.1-405b", weights="fp8")
    platform, plan = {
        "dgx": (load_platform("dgx-h100").with_chip(memory_capacity=_DGX_CAPACITY), Plan(tp=8)),
        "appliance": (load_platform("photonic-appliance:1"), Plan()),
    }[where]
    work = Workload(batch=batch, prompt=tokens[0], output=tokens[1])
    return simulate(model, platform, plan, work, cost=cost)
