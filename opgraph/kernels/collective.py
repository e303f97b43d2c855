"""Collectives on equal links: NCCL's two protocols, custom all-reduce, expert dispatch and combine.

Cost of each algorithm as latency steps plus volume (Thakur et al. 2005, sec. 4); the two protocols
and their switch as in NCCL (Hu et al. 2025, "Demystifying NCCL": LL, LL128 and Simple).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from opgraph.kernels.chip import KernelChip
from opgraph.kernels.kernel import (
    Kernel,
    KernelTime,
    Limiter,
    Work,
    largest,
    parameter,
    resident,
    soft_max,
    soft_min,
)

BRIDGES = 1.5  # exponent joining a chip's own path and the bridges that it shares
# of what the low-latency protocol sends, half is flags (Hu et al. 2025); of its plateau behind
# a crowded host 0.6 of the bulk protocol's is left
QUICK_PAYLOAD = 0.6
SWITCH = 6.0  # exponent of the soft minimum: how close a library's switch comes to the best
# Thakur et al. 2005: ring algorithms. All peers of an all-to-all are sent to at once; what setting
# that up takes grows slowly with them, like the log2 n steps of Bruck et al. 1997
STEPS: dict[str, Callable[[Any], Any]] = {
    "all_gather": lambda n: n - 1.0,
    "reduce_scatter": lambda n: n - 1.0,
    "all_reduce": lambda n: 2.0 * (n - 1),
    "all_to_all": np.log2,
}


class CollectiveShape(NamedTuple):
    """Bytes of the whole buffer, chips, and the link of one chip (bytes/s, one direction)."""

    nbytes: Any
    chips: Any
    link_bandwidth: Any
    operation: str = "all_reduce"
    through_host: bool = False  # whether the links pass a host, whose bridges all chips share


@dataclass(frozen=True)
class CollectiveParameters:
    """Parameters of `collective`."""

    launch: float = parameter("s", 2e-7, 5e-6, 8e-5, "launch and drain, paid once")
    quick_step: float = parameter("s", 1e-8, 1e-6, 3e-5, "a step of the low-latency protocol")
    quick_efficiency: float = parameter("1", 5e-3, 0.25, 1.3, "its reached part of the link")
    bulk_start: float = parameter("s", 1e-8, 5e-6, 3e-4, "start of the bulk protocol")
    bulk_step: float = parameter("s", 1e-8, 1.5e-6, 8e-5, "a step of the bulk protocol")
    bulk_efficiency: float = parameter("1", 0.1, 0.8, 1.3, "its reached part of the link")
    pipeline: float = parameter(
        "1",
        0.01,
        1,
        5,
        "fill of the bulk pipeline: weight of sqrt(latency × transfer), the optimum of chunking",
    )
    pair_efficiency: float = parameter(
        "1", 0.3, 0.9, 1.6, "link efficiency of two chips, relative to four"
    )
    growth: float = parameter(
        "1",
        1e-3,
        0.05,
        0.5,
        "exponent by which it grows beyond four (more channels, reduction in the switch); "
        "behind a host, by which the bridges lose",
    )
    shared: float = parameter(
        "1", 0.05, 8, 1e3, "links' worth of a host's bridges, which all chips but a pair share"
    )


@dataclass(frozen=True)
class CustomAllReduceParameters(CollectiveParameters):
    """Parameters of `custom_all_reduce`: those of the library, and of the kernels beside it."""

    bulk_step: float = parameter("s", 1e-8, 2e-6, 6e-5, "a step of the library's ring")
    bulk_efficiency: float = parameter("1", 0.05, 0.7, 1.5, "its reached part of the link")
    growth: float = parameter("1", 1e-3, 0.1, 0.5, "exponent by which that grows with the chips")
    one_shot: float = parameter("s", 1e-8, 5e-7, 2e-5, "extra start of one-shot")
    one_shot_efficiency: float = parameter("1", 5e-3, 0.6, 1.5, "its reached part of the link")
    two_shot: float = parameter(
        "s", 1e-8, 1e-6, 6e-5, "extra start of two-shot per pair of chips: a second barrier"
    )
    two_shot_efficiency: float = parameter("1", 5e-3, 0.7, 1.5, "its reached part of the link")
    limit: float = parameter("byte", 1e5, 4e6, 1e8, "largest message of the custom kernels")
    barrier: float = parameter("s", 1e-9, 1e-7, 1e-5, "growth of the barrier per further chip")


class DispatchShape(NamedTuple):
    """Tokens of one chip sent to the chips of their top-k experts (dispatch), or back (combine)."""

    tokens: Any
    hidden: Any
    topk: Any
    chips: Any
    link_bandwidth: Any
    element_bytes: Any = 2.0


@dataclass(frozen=True)
class DispatchParameters:
    """Parameters of `dispatch`."""

    launch: float = parameter("s", 2e-7, 1e-5, 4e-4, "launch, notification and barriers")
    efficiency: float = parameter("1", 0.01, 0.5, 1.0, "reached part of the link")
    least: float = parameter("s", 1e-8, 3e-6, 3e-4, "least time of a transfer")
    row: float = parameter(
        "s/byte", 1e-13, 2e-10, 1e-7, "growth of that with the bytes of a token, which a warp walks"
    )
    sharpness: float = parameter("1", 1, 2, 12, "exponent joining that and the transfer")
    token: float = parameter("s", 1e-12, 1e-9, 1e-6, "work per token and expert choice")
    local: float = parameter("1", 0.01, 1, 30, "rate of packing in memory, in memory bandwidths")


def volume(operation: str, chips: Any) -> Any:
    """Return the bytes that each chip sends per byte of the buffer (Thakur et al. 2005)."""
    return np.where(operation == "all_reduce", 2.0, 1.0) * (chips - 1) / chips


def collective_work(shape: CollectiveShape) -> Work:
    """Return the bytes that each chip must send."""
    sent = volume(shape.operation, shape.chips) * shape.nbytes
    return Work(0.0, sent, bandwidth=shape.link_bandwidth)


def collective(
    shape: CollectiveShape, chip: KernelChip, params: CollectiveParameters
) -> KernelTime:
    """Return the better of a low-latency and a bulk protocol, as NCCL's tuner would switch.

    Where links pass a host, a pair has a switch of its own and all others share the bridges,
    which a message passes while the next one leaves the chip.
    """
    many = np.maximum(shape.chips / 4, 1) ** params.growth
    link = shape.link_bandwidth * _alone(shape, many, params)
    crowd = shape.through_host * (shape.chips - 2) * many / params.shared
    bridges = crowd * collective_work(shape).nbytes / shape.link_bandwidth
    quick, bulk, stream = _protocols(shape, link, bridges, params)
    time = params.launch + soft_min([quick, bulk], SWITCH)
    return KernelTime(time, _network_limiter(time, np.minimum(stream, time)))


def _alone(shape: CollectiveShape, many: Any, params: CollectiveParameters) -> Any:
    """Return the efficiency of a link that shares no bridges, relative to four chips.

    The ring of two chips behind a host is one switch; their all-to-all is like any other.
    """
    if shape.through_host:
        ring = shape.operation != "all_to_all"
        return np.where((shape.chips == 2) & ring, params.pair_efficiency, 1.0)
    if shape.operation != "all_reduce":  # which a switch may reduce on the way
        many = np.minimum(many, np.maximum(1 / params.bulk_efficiency, 1))
    return np.where(shape.chips == 2, params.pair_efficiency, many)


def _protocols(
    shape: CollectiveShape, link: Any, bridges: Any, params: CollectiveParameters
) -> tuple[Any, Any, Any]:
    """Return the times of the low-latency and of the bulk protocol, and the latter's transfer.

    The steps of a bulk transfer hide behind it once the parts of the message outlast them.
    """
    steps = STEPS[shape.operation](shape.chips)
    transfer = collective_work(shape).nbytes / link
    quick = params.quick_step * steps + transfer / params.quick_efficiency
    start = params.bulk_start + params.bulk_step * steps
    stream = transfer / params.bulk_efficiency
    filled = stream + params.pipeline * np.sqrt(start * stream)
    quick = soft_max(quick, bridges / QUICK_PAYLOAD, BRIDGES)
    return quick, np.hypot(start, soft_max(filled, bridges, BRIDGES)), stream + bridges


def custom_all_reduce(
    shape: CollectiveShape, chip: KernelChip, params: CustomAllReduceParameters
) -> KernelTime:
    """Return the better of one-shot (all read all) and two-shot (reduce-scatter, gather).

    Of large messages, and wherever chips do not see each other's memory, that of the library:
    its measured times over PCIe are NCCL's, as they are beyond its buffers.
    """
    if shape.through_host:
        return collective(shape, chip, params)
    others = shape.chips - 1.0
    whole = others * shape.nbytes / shape.link_bandwidth
    halves = 2 * whole / shape.chips
    one = params.one_shot + whole / params.one_shot_efficiency
    two = params.two_shot * shape.chips / 2 + halves / params.two_shot_efficiency
    barrier = params.launch + params.barrier * others
    custom = barrier + soft_min([one, two], SWITCH)
    link = shape.link_bandwidth * (shape.chips / 2) ** params.growth
    library = barrier + _protocols(shape, link, 0.0, params)[1]
    own = resident(shape.nbytes, params.limit)  # 1 below the limit, 0 above: a soft step
    time = custom**own * library ** (1 - own)
    return KernelTime(time, _network_limiter(time, np.minimum(halves, time)))


def dispatch_work(shape: DispatchShape) -> Work:
    """Return the bytes that leave the chip: each token once to each other chip that it needs."""
    reached = shape.chips * (1 - (1 - 1 / shape.chips) ** shape.topk)  # chips holding an expert
    sent = reached * (shape.chips - 1) / shape.chips
    nbytes = shape.tokens * sent * shape.hidden * shape.element_bytes
    return Work(0.0, nbytes, bandwidth=shape.link_bandwidth)


def dispatch(shape: DispatchShape, chip: KernelChip, params: DispatchParameters) -> KernelTime:
    """Return the time of an expert all-to-all (DeepEP; DeepSeek-AI 2025): dispatch or combine."""
    transfer = dispatch_work(shape).nbytes / (shape.link_bandwidth * params.efficiency)
    packed = shape.tokens * (1.0 + shape.topk) * shape.hidden * shape.element_bytes
    local = packed / (chip.memory_bandwidth * params.local)
    token = params.token * shape.tokens * shape.topk
    least = params.least + params.row * shape.hidden * shape.element_bytes
    moved = soft_max(transfer + local + token, least, params.sharpness)
    time = params.launch + moved
    return KernelTime(time, _network_limiter(time, transfer))


def _network_limiter(time: Any, transfer: Any) -> Any:
    """Return bandwidth where the transfer is more than half of the time, else latency."""
    return largest(
        (Limiter.NETWORK_BANDWIDTH, transfer), (Limiter.NETWORK_LATENCY, time - transfer)
    )


def collective_features(shape: CollectiveShape, chip: KernelChip) -> dict[str, Any]:
    """Return size and chips."""
    return {"size": np.log2(shape.nbytes), "chips": np.log2(shape.chips)}


def dispatch_features(shape: DispatchShape, chip: KernelChip) -> dict[str, Any]:
    """Return tokens, their size and their fan-out."""
    return {
        "tokens": np.log2(shape.tokens),
        "hidden": np.log2(shape.hidden),
        "topk": np.log2(shape.topk),
    }


SIZE_TERMS = (("size", "chips"),)
# a residual lowers the error between measured sizes, but adds nothing for a number of chips that
# was not measured and loses on larger messages
LIBRARY_LEVELS = ("ideal", "calibrated", "tiled")
COLLECTIVES = {
    operation: Kernel(operation, CollectiveParameters, collective_work, collective,
                      collective_features, terms=SIZE_TERMS, sizes=("chips",),
                      levels=LIBRARY_LEVELS, over_links=True)
    for operation in STEPS
}  # fmt: skip
CUSTOM_ALL_REDUCE = Kernel(
    "custom_all_reduce", CustomAllReduceParameters, collective_work, custom_all_reduce,
    collective_features, terms=SIZE_TERMS, sizes=("chips",), levels=LIBRARY_LEVELS,
    over_links=True,
)  # fmt: skip
DISPATCH = Kernel(
    "dispatch", DispatchParameters, dispatch_work, dispatch, dispatch_features,
    terms=(("tokens", "hidden"), ("tokens", "topk")),
    sizes=("hidden", "topk", "chips"), over_links=True,
)  # fmt: skip
COMBINE = replace(DISPATCH, name="combine")
