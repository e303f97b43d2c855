"""Fused mixture-of-experts layer on one chip: routing, two grouped GEMMs, weighted sum.

The grouped GEMM runs as many tiles as its experts' rows need (Gale et al. 2023, "MegaBlocks"), so
time follows the distribution of tokens over experts, and the busiest rank sets the pace.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from opgraph.kernels.chip import KernelChip
from opgraph.kernels.formats import FORMATS, OUTPUT_BYTES
from opgraph.kernels.kernel import (
    Kernel,
    KernelTime,
    Limiter,
    Work,
    largest,
    parameter,
    resident,
    soft_max,
)

ROW_TILES = (8, 16, 32, 64, 128, 256)
COLUMN_TILES = (64, 128, 256)
LARGEST_TILE = 128 * 256  # accumulators that fit the registers or tensor memory of a core
STEP_BYTES = 128.0
REFERENCE_STEP = 2 * 128 * 128 * 64.0  # FLOP of one main-loop step of a 128 × 128 bf16 tile
QUANTILES = 64  # experts of a rank are represented by at most so many
HOTTEST = 0.8  # part of all tokens that the hottest expert may draw (aiconfigurator's collector)
FEW = (0.01, 2.0)  # range of weights when there are fewer choices than experts (same source)
WAVES = 4.0  # waves beyond which tiles are scheduled as they finish


class MoeShape(NamedTuple):
    """What the busiest rank computes; made by `route`."""

    tokens: Any  # of the whole batch
    hidden: Any
    ffn: Any  # on this chip, after tensor parallelism
    topk: Any
    experts: Any  # of the whole layer
    local_experts: Any
    gated: Any  # 1.0 where the first GEMM is twice as wide (SwiGLU), else 0.0
    rows: Any  # token-expert pairs on this rank
    active: Any  # experts with at least one row
    peak_rows: Any  # rows of the busiest expert
    touched: Any  # tokens that choose at least one expert of this rank
    tiles: Any  # (..., len(ROW_TILES)): row tiles of all experts, by tile height
    dtype: str = "bf16"


class Routing(NamedTuple):
    """The router's side: experts and choices in all, ranks, and the skew of the distribution."""

    experts: Any
    topk: Any
    ep: Any = 1.0
    skew: Any = 0.0  # exponent of a power law over experts; 0 is balanced


def route(tokens: Any, hidden: Any, ffn: Any, routing: Routing, *, gated: Any = 1.0,
          dtype: str = "bf16") -> MoeShape:  # fmt: skip
    """Return the load of the busiest rank, experts dealt to ranks in order of their load."""
    tokens, experts, topk, ep, skew = np.broadcast_arrays(
        *(np.asarray(x, float) for x in (tokens, routing.experts, routing.topk, routing.ep,
                                         routing.skew))
    )  # fmt: skip
    local = experts / ep
    loads = np.where(
        (skew > 0)[..., None], _power_law(tokens, experts, topk, ep, skew),
        (tokens * topk / experts)[..., None],
    )  # fmt: skip
    weight = (local / QUANTILES)[..., None]
    low = np.floor(loads)
    part = loads - low  # of experts that get one row more than the others
    tiles = np.stack([
        (weight * ((1 - part) * np.ceil(low / tall) + part * np.ceil((low + 1) / tall))).sum(-1)
        for tall in ROW_TILES
    ], axis=-1)  # fmt: skip
    rows = (weight * loads).sum(-1)
    active = (weight * np.where(low > 0, 1.0, part)).sum(-1)
    touched = tokens * (1 - (1 - np.minimum(rows / (tokens * topk), 1)) ** topk)
    return MoeShape(
        tokens, np.asarray(hidden, float), np.asarray(ffn, float), topk, experts, local,
        np.asarray(gated, float), rows, np.maximum(active, 1), loads.max(-1), touched, tiles, dtype,
    )  # fmt: skip


def _power_law(tokens: Any, experts: Any, topk: Any, ep: Any, skew: Any) -> Any:
    """Return rows of each expert quantile of the busiest rank under a power law."""
    many = tokens * topk > experts
    low = np.where(many, 1.0, FEW[0])[..., None]
    high = np.where(many, np.maximum(HOTTEST * tokens, 1.01), FEW[1])[..., None]
    power = (1 - skew)[..., None]
    power = np.where(np.abs(power) < 1e-6, 1e-6, power)

    def weight(u: Any) -> Any:
        return ((high**power - low**power) * u + low**power) ** (1 / power)

    grid = (np.arange(QUANTILES) + 0.5) / QUANTILES
    scale = (tokens * topk / experts)[..., None]
    every = weight(np.broadcast_to(grid, (*tokens.shape, QUANTILES)))
    mean = every.mean(-1, keepdims=True)
    capped = np.minimum(scale * every / mean, tokens[..., None]).mean(-1, keepdims=True)
    place = np.floor(grid * (experts / ep)[..., None])  # rank 0 holds every ep-th expert
    mine = weight(np.clip(1 - (place * ep[..., None] + 0.5) / experts[..., None], 0, 1))
    rows = scale * mine / mean * (scale / capped)
    return np.minimum(rows, tokens[..., None])


@dataclass(frozen=True)
class MoeParameters:
    """Parameters of `moe`."""

    launch: float = parameter("s", 2e-6, 1.5e-5, 2e-4, "launches: routing, permute, GEMMs, sum")
    compute_efficiency: float = parameter("1", 0.1, 0.7, 1.1, "reached part of the matrix peak")
    tile_half: float = parameter("elements", 0.01, 8, 300, "tile side that halves the efficiency")
    memory_efficiency: float = parameter("1", 0.2, 0.8, 1.05, "reached part of memory bandwidth")
    cache_rate: float = parameter("byte/FLOP", 1e-3, 0.015, 1, "L2 bytes per FLOP of bf16 peak")
    prologue: float = parameter("s", 1e-8, 1.5e-6, 6e-5, "fill and drain of a grouped GEMM")
    step_latency: float = parameter(
        "1",
        0.01,
        0.35,
        10,
        "least time of a main-loop step, in times of a 128×128×64 step at bf16 peak",
    )
    store_rate: float = parameter(
        "byte/FLOP", 1e-3, 5e-3, 10, "rate of a core's tile store per FLOP of its bf16 peak"
    )
    sharpness: float = parameter(
        "1", 1, 2, 12, "exponent joining tiles and memory in a short kernel"
    )
    settle: float = parameter(
        "s", 1e-6, 3e-5, 1e-2, "length of a kernel for which it is √2 times that"
    )
    cache_fraction: float = parameter("1", 0.1, 0.6, 2, "part of L2 that keeps operands")
    row_rate: float = parameter(
        "1", 0.02, 0.6, 30, "rate of permuting, activating and summing rows, in memory bandwidths"
    )
    expert: float = parameter("s", 1e-11, 3e-9, 1e-6, "routing work per local expert")
    foreign_products: float = parameter(
        "1",
        1e-3,
        1e-2,
        1,
        "part computed all the same of the choices of other ranks' experts by tokens sent here",
    )
    foreign_rate: float = parameter(
        "1", 0.05, 10, 1e3, "rate of passes over all choices of others, in memory bandwidths"
    )


def moe_work(shape: MoeShape) -> Work:
    """Return FLOP and compulsory bytes of both GEMMs."""
    kind = FORMATS[shape.dtype]
    first = shape.ffn * (1 + shape.gated)
    flop = 2 * shape.rows * shape.hidden * (first + shape.ffn)
    weights = shape.active * shape.hidden * (first + shape.ffn) * kind.weight
    rows = shape.touched * shape.hidden * 2 * OUTPUT_BYTES
    return Work(flop, weights + rows, kind.peak)


def moe(shape: MoeShape, chip: KernelChip, params: MoeParameters) -> KernelTime:
    """Return the time of the layer on the busiest rank."""
    first = shape.ffn * (1 + shape.gated)
    up = _grouped(shape, (first, shape.hidden), chip, params)
    down = _grouped(shape, (shape.hidden, shape.ffn), chip, params)
    passes = shape.rows / params.row_rate + _foreign(shape, shape.tokens) / params.foreign_rate
    moved = passes * (first + shape.ffn + 2 * shape.hidden)
    moved = moved + 2 * shape.touched * shape.hidden / params.row_rate
    moved = OUTPUT_BYTES * moved / chip.memory_bandwidth
    start = params.launch + params.expert * shape.local_experts
    parts = [a + b for a, b in zip(up, down, strict=True)]
    limiter = largest(
        (Limiter.COMPUTE, parts[1]), (Limiter.MEMORY, parts[2] + moved), (Limiter.LAUNCH, start),
    )  # fmt: skip
    return KernelTime(start + parts[0] + moved, limiter)


def _foreign(shape: MoeShape, tokens: Any) -> Any:
    """Return the token-expert pairs of some tokens that belong to other ranks."""
    return np.maximum(tokens * shape.topk - shape.rows, 0)


def _grouped(
    shape: MoeShape, sizes: tuple[Any, Any], chip: KernelChip, params: MoeParameters
) -> tuple[Any, Any, Any]:
    """Return time, compute time and memory time of one grouped GEMM with the best tile."""
    wide, deep = sizes
    kind = FORMATS[shape.dtype]
    weights = shape.active * wide * deep * kind.weight
    rows = shape.rows * (deep * kind.activation + wide * OUTPUT_BYTES)
    hit = resident(weights + rows, params.cache_fraction * chip.cache.capacity)
    memory = (weights + rows) * (1 - hit) / (chip.memory_bandwidth * params.memory_efficiency)
    foreign = params.foreign_products * _foreign(shape, shape.touched)
    best = None
    for index, tall in enumerate(ROW_TILES):
        for broad in COLUMN_TILES:
            if tall * broad <= LARGEST_TILE:
                tiles = shape.tiles[..., index] + foreign / tall
                time = _tiled(tiles, (tall, broad), sizes, kind, (chip, params))
                best = time if best is None else np.minimum(best, time)
    total = soft_max(best, memory, params.sharpness, params.settle) + params.prologue
    return total, best, memory


def _tiled(row_tiles: Any, tile: tuple[int, int], sizes: tuple[Any, Any], kind: Any,
           machine: tuple[KernelChip, MoeParameters]) -> Any:  # fmt: skip
    """Return the time of all waves of one tile shape."""
    (tall, broad), (wide, deep), (chip, params) = tile, sizes, machine
    tiles = row_tiles * np.ceil(wide / broad)
    depth = STEP_BYTES / max(kind.activation, kind.weight)
    steps = np.ceil(deep / depth)
    speed = chip.rate(kind.peak) / chip.cores * params.compute_efficiency
    speed = speed / (1 + params.tile_half * (1 / tall + 1 / broad))
    base = chip.rate("bf16")
    floor = params.step_latency * REFERENCE_STEP * chip.cores / base
    compute = steps * np.maximum(2 * tall * broad * depth / speed, floor)
    loaded = (tall * kind.activation + broad * kind.weight) * steps * depth
    cache = np.minimum(tiles, chip.cores) * loaded / (base * params.cache_rate)
    store = tall * broad * OUTPUT_BYTES * chip.cores / (base * params.store_rate)
    waves = tiles / chip.cores
    waves = np.where(waves < WAVES, np.ceil(waves), waves + 0.5)
    return waves * (np.sqrt(np.sqrt(compute**4 + cache**4)) + store)


def moe_features(shape: MoeShape, chip: KernelChip) -> dict[str, Any]:
    """Return where the residual looks."""
    work = moe_work(shape)
    return {
        "tokens": np.log2(shape.tokens),
        "rows": np.log2(shape.rows + 1),
        "hidden": np.log2(shape.hidden),
        "ffn": np.log2(shape.ffn),
        "local_experts": np.log2(shape.local_experts),
        "rows_per_expert": np.log2(shape.rows / shape.active),
        "peak": np.log2(1 + shape.peak_rows * shape.active / np.maximum(shape.rows, 1)),
        "topk": np.log2(shape.topk),
        "footprint": np.log2(work.nbytes / chip.cache.capacity),
        "gated": shape.gated,
    }


MOE = Kernel(
    "moe", MoeParameters, moe_work, moe, moe_features,
    terms=(("rows_per_expert", "ffn"), ("rows_per_expert", "local_experts"), ("tokens", "topk"),
           ("rows_per_expert", "peak"), ("footprint", "rows_per_expert"), ("hidden", "ffn"),
           ("tokens", "gated")),
    sizes=("hidden", "ffn", "topk", "experts", "local_experts"),
)  # fmt: skip
