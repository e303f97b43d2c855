"""GEMM: the best of a few tile shapes, spread in waves over the cores, beside the memory traffic.

out[m, n] = activation[m, k] · weight[n, k]ᵀ, `batch` independent ones. The physics is that of
tiled GEMM on GPUs (NVIDIA, "Matrix Multiplication Background", 2023: tile and wave quantisation;
Osama et al., "Stream-K", 2023: splitting k to fill the last wave).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from opgraph.kernels.chip import KernelChip
from opgraph.kernels.formats import FORMATS, OUTPUT_BYTES, Format
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

# rows × columns of an output tile that vendor libraries ship (cuBLAS, CUTLASS profiler)
TILES = (
    (16, 64), (16, 128), (32, 64), (32, 128), (64, 64), (64, 128), (64, 256),
    (128, 64), (128, 128), (128, 192), (192, 128), (128, 256), (256, 128), (256, 256),
)  # fmt: skip
STEP_BYTES = 128.0  # bytes of k per main-loop step: one shared-memory swizzle row
SPLIT_STEPS = 2.0  # steps that a split of k keeps at least
REFERENCE_STEP = 2 * 128 * 128 * 64.0  # FLOP of one main-loop step of a 128 × 128 bf16 tile
TABLE_ROWS = np.array([16.0, 32.0, 64.0, 128.0])  # of a table: the least that hold all rows
TABLE_COLUMNS = 128
FEATURE_TILES = ((64, 128), (128, 256), (256, 128), (256, 256))
PARTIAL_BYTES = 8.0  # fp32 partial sums of split-K: written once, read once


@dataclass(frozen=True)
class GemmParameters:
    """Parameters of `gemm`, dimensionless where they travel from chip to chip."""

    launch: float = parameter("s", 1e-8, 1.5e-6, 2e-5, "launch and drain, paid once")
    compute_efficiency: float = parameter(
        "1",
        0.2,
        0.9,
        1.15,
        "reached part of the matrix peak at the highest clock, before what tiles and load lose",
    )
    tile_half: float = parameter("elements", 0.01, 3, 300, "tile side that halves the efficiency")
    memory_efficiency: float = parameter("1", 0.3, 0.81, 1.0, "reached part of memory bandwidth")
    cache_rate: float = parameter("byte/FLOP", 1e-3, 0.02, 1, "L2 bytes per FLOP of bf16 peak")
    prologue: float = parameter("s", 1e-9, 9e-7, 2e-5, "pipeline fill and drain of a tile")
    wave: float = parameter("s", 1e-10, 2e-7, 5e-6, "extra per further wave")
    split: float = parameter(
        "s",
        1e-8,
        2.7e-6,
        1e-3,
        "fixed cost of splitting k; what never pays, of a kernel that does not",
    )
    step_latency: float = parameter(
        "1",
        0.01,
        0.35,
        10,
        "least time of a main-loop step, in times of a 128×128×64 step at bf16 peak",
    )
    store_rate: float = parameter(
        "byte/FLOP",
        1e-4,
        5e-3,
        10,
        "rate of a core's tile store per FLOP of its bf16 peak; not overlapped",
    )
    sharpness: float = parameter(
        "1", 1, 1.7, 12, "exponent joining tiles and memory in a short kernel"
    )
    settle: float = parameter(
        "s", 1e-6, 3e-5, 1e-2, "length of a kernel for which it is √2 times that"
    )
    cache_fraction: float = parameter("1", 0.1, 0.6, 1.2, "part of L2 that keeps operands")
    throttle: float = parameter("1", 1e-4, 0.2, 0.3, "rate lost under sustained load (power)")
    throttle_time: float = parameter("s", 2e-5, 1e-4, 1e-1, "load at which half of it is lost")
    raster: float = parameter(
        "elements",
        128,
        1.5e3,
        1e6,
        "rows that one pass over the weight "
        "serves; further passes read it again unless L2 holds it",
    )
    table: float = parameter(
        "1",
        1e-3,
        0.1,
        1,
        "part of the choice of a tile that a table by rows makes, whatever else there is to do",
    )
    quantise: float = parameter("s", 1e-8, 1.5e-6, 3e-5, "launch of the activation quantiser")
    quantise_row: float = parameter(
        "elements", 1, 100, 2e4, "what it could do in the time that the start of a row takes"
    )
    quantise_rate: float = parameter("1", 0.01, 0.5, 30, "its reached part of memory bandwidth")


class GemmShape(NamedTuple):
    """Sizes, and how many weight matrices a caller cycles through (a model: too many to hit L2)."""

    m: Any
    n: Any
    k: Any
    dtype: str = "bf16"
    batch: Any = 1.0
    copies: Any = np.inf


class _Machine(NamedTuple):
    """What a tiling runs on: `core` is a core's FLOP/s under the load, before what tiles lose."""

    chip: KernelChip
    params: GemmParameters
    core: Any


class _Tile(NamedTuple):
    """Times of the best tile shape so far."""

    total: Any
    compute: Any
    cache: Any


def gemm_work(shape: GemmShape) -> Work:
    """Return FLOP and compulsory bytes."""
    kind = FORMATS[shape.dtype]
    m, n, k = shape.m, shape.n, shape.k
    nbytes = m * k * kind.activation + n * k * kind.weight + m * n * OUTPUT_BYTES
    return Work(2 * shape.batch * m * n * k, shape.batch * nbytes, kind.peak)


def gemm(shape: GemmShape, chip: KernelChip, params: GemmParameters) -> KernelTime:
    """Return the time of the best tiling, as a library's heuristic would find it."""
    kind = FORMATS[shape.dtype]
    memory = _memory(shape, kind, chip, params)
    best = _tilings(shape, kind, chip, params)
    start = params.launch + params.prologue + _quantise(shape, kind, chip, params)
    limiter = largest(
        (Limiter.COMPUTE, best.compute), (Limiter.MEMORY, memory), (Limiter.CACHE, best.cache),
        (Limiter.LAUNCH, start + best.total - np.maximum(best.compute, best.cache)),
    )  # fmt: skip
    time = start + soft_max(best.total, memory, params.sharpness, params.settle)
    return KernelTime(time, limiter)


def _quantise(shape: GemmShape, kind: Format, chip: KernelChip, params: GemmParameters) -> Any:
    """Return the time to quantise a 16-bit activation before the product."""
    if not kind.quantises:
        return 0.0
    moved = shape.m * (shape.k + params.quantise_row) * (OUTPUT_BYTES + kind.activation)
    return params.quantise + moved / (chip.memory_bandwidth * params.quantise_rate)


def _memory(shape: GemmShape, kind: Format, chip: KernelChip, params: GemmParameters) -> Any:
    """Return the time of the bytes that miss the cache."""
    cache = chip.cache.capacity * params.cache_fraction
    weight = shape.batch * shape.n * shape.k * kind.weight
    rest = shape.batch * shape.m * (shape.k * kind.activation + shape.n * OUTPUT_BYTES)
    missed = weight * (1 - resident(shape.copies * weight + rest, cache))
    missed = missed + rest * (1 - resident(rest, cache))
    band = weight + shape.batch * np.minimum(params.raster, shape.m) * shape.k * kind.activation
    missed = missed + weight * np.maximum(shape.m / params.raster - 1, 0) * (
        1 - resident(band, cache)
    )
    return missed / (chip.memory_bandwidth * params.memory_efficiency)


def _tilings(shape: GemmShape, kind: Format, chip: KernelChip, params: GemmParameters) -> _Tile:
    """Return the fastest tile shape, k whole or split to fill one wave.

    Where a library takes its tile from a table by rows, such as vLLM's CUTLASS kernels, the
    answer lies between that tile's and the fastest one's (geometric mean with weight `table`).
    """
    peak = chip.rate(kind.peak)
    load = 2 * shape.batch * shape.m * shape.n * shape.k / peak
    core = peak / chip.cores * params.compute_efficiency
    core = core * (1 - params.throttle * load / (load + params.throttle_time))
    machine = _Machine(chip, params, core)
    best = reduce(_faster, _candidates(shape, kind, machine))
    rows = TABLE_ROWS[np.searchsorted(TABLE_ROWS[:-1], shape.m)]
    tiles = _tiles(shape, rows, TABLE_COLUMNS)
    fixed = _waves(shape, kind, machine, (rows, TABLE_COLUMNS, tiles, 1.0))
    part = params.table
    return _Tile(*(x ** (1 - part) * y**part for x, y in zip(best, fixed, strict=True)))


def _tiles(shape: GemmShape, rows: Any, columns: Any) -> Any:
    """Return the output tiles of all products."""
    return shape.batch * np.ceil(shape.m / rows) * np.ceil(shape.n / columns)


def _candidates(shape: GemmShape, kind: Format, machine: _Machine) -> Iterator[_Tile]:
    """Yield the times of each tile shape, so that only two are in memory at a time."""
    cores = machine.chip.cores
    most = shape.k * max(kind.activation, kind.weight) / (STEP_BYTES * SPLIT_STEPS)
    for rows, columns in TILES:
        tiles = _tiles(shape, rows, columns)
        fill = np.maximum(np.minimum(np.floor(cores / tiles), np.floor(most)), 1)
        for split in (1.0, fill):
            yield _waves(shape, kind, machine, (rows, columns, tiles, split))


def _faster(a: _Tile, b: _Tile) -> _Tile:
    """Return the faster of two tilings, element by element."""
    first = a.total <= b.total
    return _Tile(*(np.where(first, x, y) for x, y in zip(a, b, strict=True)))


def _waves(shape: GemmShape, kind: Format, machine: _Machine, tiling: Any) -> _Tile:
    """Return the time of one tiling: whole waves of one tile per core, then the rest."""
    (chip, params, core), (rows, columns, tiles, split) = machine, tiling
    speed = core / (1 + params.tile_half * (1 / rows + 1 / columns))
    depth = STEP_BYTES / max(kind.activation, kind.weight)
    steps = np.ceil(shape.k / split / depth)
    base = chip.rate("bf16")
    floor = params.step_latency * REFERENCE_STEP * chip.cores / base
    compute = steps * np.maximum(2 * rows * columns * depth / speed, floor)
    high, wide = np.minimum(rows, shape.m), np.minimum(columns, shape.n)
    loaded = (high * kind.activation + wide * kind.weight) * steps * depth
    cache = loaded / (base * params.cache_rate)  # of one tile, at the bandwidth of the whole L2
    stored = high * wide * np.where(split > 1, 2 * OUTPUT_BYTES, OUTPUT_BYTES)
    store = stored * chip.cores / (base * params.store_rate)
    total = tiles * split
    full = np.floor(total / chip.cores)
    rest = total - full * chip.cores
    wave = full * (_knee(compute, chip.cores * cache) + store)
    wave = wave + (rest > 0) * (_knee(compute, rest * cache) + store)
    count = full + (rest > 0)
    extra = params.wave * (count - 1)
    merge = params.split + PARTIAL_BYTES * split * shape.m * shape.n / (base * params.cache_rate)
    total_time = wave + extra + (split > 1) * merge
    return _Tile(total_time, count * compute, total * cache)


def _knee(a: Any, b: Any) -> Any:
    """Return the 4-norm of compute and cache time of a wave: nearly a maximum, and smooth."""
    return np.sqrt(np.sqrt(a**4 + b**4))


def gemm_features(shape: GemmShape, chip: KernelChip) -> dict[str, Any]:
    """Return where the residual looks: sizes, and waves and last-wave fill of several tiles."""
    kind = FORMATS[shape.dtype]
    m = np.asarray(shape.m, float)
    work = gemm_work(shape)
    features = {
        "rows": np.log2(m),
        "columns": np.log2(shape.n),
        "depth": np.log2(shape.k),
        "row_fill": m / (128 * np.ceil(m / 128)),
        "row_fill_64": m / (64 * np.ceil(m / 64)),
        "weight_cache": np.log2(shape.n * shape.k * kind.weight / chip.cache.capacity),
        "intensity": np.log2(
            work.flop / work.nbytes * chip.memory_bandwidth / chip.rate(kind.peak)
        ),
    }
    for rows, columns in FEATURE_TILES:
        tiles = _tiles(shape, rows, columns)
        waves = tiles / chip.cores
        features[f"waves_{rows}x{columns}"] = np.log2(waves)
        features[f"fill_{rows}x{columns}"] = waves / np.ceil(waves)
    return features


GEMM = Kernel(
    "gemm", GemmParameters, gemm_work, gemm, gemm_features,
    terms=(
        ("rows", "columns", "depth"), ("rows", "row_fill", "columns"), ("rows", "row_fill_64"),
        ("waves_128x256", "fill_128x256", "depth"), ("waves_256x128", "fill_256x128", "depth"),
        ("waves_256x256", "fill_256x256"), ("waves_64x128", "fill_64x128"),
        ("intensity", "weight_cache"),
    ),
    sizes=("n", "k"),
)  # fmt: skip
