"""Attention over a KV cache: prefill (many query rows) and decode (few), tiled as flash attention.

Dao et al. 2022/2023/2024 (FlashAttention 1–3): one tile of query rows walks over blocks of keys;
matrix products and the exponentials of softmax run on different units. Decode splits the keys of
one sequence over idle cores (Flash-Decoding, 2023) and packs the query heads that share a KV head.
"""

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
)

TILE_ROWS = 128.0  # query rows that the time of a tile's ends is stated for
GROUP_ROWS = 64.0  # rows of a matrix instruction that a group of four warps issues together
SHORT_ROW = 64.0  # bytes of a query's row, up to which twice as many warps share a tile
HEAD_SIZES = (64.0, 128.0, 192.0, 256.0)  # that prefill kernels are compiled for
MOST = 1.1  # of the matrix peak that a kernel may seem to reach
PREFILL_BLOCK = 128.0  # keys per step of the prefill kernel
CACHE_STEP = 3.0  # how sharply prefill's traffic leaves L2: a pass between two others, no cycle
TENSOR_BYTES = 2.0  # queries, new keys and values, and outputs are 16 bits wide
DECODE_BLOCK = 128.0  # keys per step of the decode kernel
DECODE_ROWS = 64.0  # query rows (heads that share a KV head) that one decode tile packs
MATRIX_GROUP = 4.0  # fewer heads per KV head: FlashInfer decodes them without matrix instructions
LEAST_ROWS = 16.0  # rows of the smallest matrix instruction
RESIDENT = 12.0  # exponent of the fall from all to nothing in L2
NO_WINDOW = 1e18


class AttentionShape(NamedTuple):
    """Per chip: new tokens `seq`, tokens attended `context` (with the new ones), heads, formats.

    `window` 0 means none. `dtype` is that of the products ("bf16" or "fp8"). `copies`: KV caches
    that decode cycles through (a model's layers: too many to hit L2; a benchmark has one).
    """

    batch: Any
    seq: Any
    context: Any
    heads: Any
    kv_heads: Any
    head_dim: Any
    window: Any = 0.0
    dtype: str = "bf16"
    kv_bytes: float = 2.0
    copies: Any = np.inf


@dataclass(frozen=True)
class PrefillParameters:
    """Parameters of `prefill`."""

    launch: float = parameter("s", 5e-7, 1e-5, 8e-5, "launch and drain, paid once")
    tile: float = parameter("s", 1e-8, 1.5e-6, 2e-5, "start and end of 128 rows of a tile")
    padding: float = parameter("1", 0.01, 0.1, 1, "least part of a block that is computed")
    compute_efficiency: float = parameter("1", 0.1, 0.75, MOST, "reached part of the matrix peak")
    exponential_rate: float = parameter("1", 0.02, 0.7, 5, "exponentials per special-function slot")
    overlap: float = parameter("1", 1, 3, 12, "exponent joining products and exponentials")
    memory_efficiency: float = parameter("1", 0.3, 0.8, 1.05, "reached part of memory bandwidth")
    pass_rate: float = parameter(
        "1", 0.3, 2, 50, "rate at which passes move what L2 holds, in memory bandwidths"
    )
    cache_fraction: float = parameter("1", 0.2, 0.85, 1.6, "part of L2 that keeps the tensors")
    sharpness: float = parameter("1", 1, 3, 12, "exponent joining tiles and memory")
    written: float = parameter(
        "1", 0.01, 1, 3, "times that queries and what is cached are moved to be rotated and cached"
    )
    throttle: float = parameter("1", 1e-4, 0.1, 0.4, "rate lost under sustained load (power)")
    throttle_time: float = parameter("s", 2e-5, 5e-4, 1e-1, "load at which half of it is lost")
    window_waste: float = parameter(
        "1", 0.2, 1, 6, "keys visited beyond the window, per row of a tile"
    )
    masked: float = parameter(
        "1", 0.7, 1, 4, "time of a block at an edge of a window, in times of another"
    )
    tail: float = parameter("1", 1e-3, 0.3, 1.5, "part of the longest tile left over at the end")


@dataclass(frozen=True)
class SizedParameters(PrefillParameters):
    """Parameters of `attention_prefill`: each head size has a kernel, all else is that of 128."""

    compute_64: float = parameter("1", 0.1, 1, 4, "compute_efficiency of head size 64 over 128's")
    compute_192: float = parameter("1", 0.1, 1, 4, "the same of 192")
    compute_256: float = parameter("1", 0.1, 1, 4, "the same of 256")
    tile_64: float = parameter("1", 0.02, 1, 50, "tile of head size 64 over 128's")
    tile_192: float = parameter("1", 0.02, 1, 50, "the same of 192")
    tile_256: float = parameter("1", 0.02, 1, 50, "the same of 256")


@dataclass(frozen=True)
class DecodeParameters:
    """Parameters of `decode`."""

    launch: float = parameter("clock", 1e3, 1.3e4, 1e5, "launch and drain, paid once")
    tile: float = parameter("clock", 100, 4e3, 4e4, "start and end of a tile")
    head_size: float = parameter("1", 1e-3, 0.3, 2, "growth of that with head size over 128")
    few: float = parameter(
        "1", 0.05, 1, 3, "that of a group too small for matrix instructions, in times of another"
    )
    block: float = parameter("clock", 10, 400, 1e4, "least time of a block of keys")
    core_rate: float = parameter(
        "byte/FLOP", 3e-4, 6e-3, 1, "what a core can load per FLOP of its bf16 peak"
    )
    memory_efficiency: float = parameter("1", 0.3, 0.9, 1.05, "reached part of memory bandwidth")
    cache_bandwidth: float = parameter("1", 0.3, 2, 50, "L2 bandwidth in memory bandwidths")
    cache_fraction: float = parameter("1", 0.2, 0.85, 1.6, "part of L2 that keeps the KV cache")
    sharpness: float = parameter("1", 1, 3, 12, "exponent joining tiles and memory")
    merge: float = parameter("clock", 20, 4e3, 4e4, "merging the parts of a split context")
    miss: float = parameter("clock", 20, 6e3, 4e4, "extra latency when the KV cache is not in L2")
    compute_efficiency: float = parameter("1", 0.02, 0.5, 1.2, "reached part of the matrix peak")
    write_rate: float = parameter(
        "1",
        0.01,
        0.5,
        50,
        "rate of the pass over queries, new keys and outputs, in memory bandwidths",
    )


def _window(shape: AttentionShape) -> Any:
    """Return the keys that a query may look back, more than there are without a window."""
    return np.where(np.asarray(shape.window) > 0, shape.window, NO_WINDOW)


def attended(shape: AttentionShape) -> Any:
    """Return the keys that one query attends, on average under the causal mask."""
    window = _window(shape)
    first = shape.context - shape.seq + 1.0
    ramp = np.clip(window - first, 0, shape.seq)  # queries that see fewer keys than the window
    low = np.minimum(first, window)
    return (
        ramp * (first + (ramp - 1) / 2)
        + (shape.seq - ramp) * np.minimum(np.where(ramp > 0, window, low), shape.context)
    ) / shape.seq


def attention_work(shape: AttentionShape) -> Work:
    """Return FLOP and compulsory bytes: queries and outputs once, each kept key and value once."""
    flop = 4 * shape.batch * shape.seq * shape.heads * shape.head_dim * attended(shape)
    window = _window(shape)
    keys = np.minimum(shape.context, window + shape.seq - 1)
    kv = 2 * shape.batch * keys * shape.kv_heads * shape.head_dim * shape.kv_bytes
    rows = 2 * shape.batch * shape.seq * shape.heads * shape.head_dim * TENSOR_BYTES
    return Work(flop, kv + rows, shape.dtype)


def _tile_rows(shape: AttentionShape, chip: KernelChip) -> Any:
    """Return query rows of a tile.

    Two groups of 64 (FlashAttention-3), or four warps of 16 (FlashAttention-2), eight where
    rows are short.
    """
    row = np.asarray(shape.head_dim) * (1 if shape.dtype == "fp8" else TENSOR_BYTES)
    warps = np.where(row <= SHORT_ROW, 8, 4)
    return np.where(chip.matrix_rows < GROUP_ROWS, warps, 2) * chip.matrix_rows


def _blocks(shape: AttentionShape, rows: Any, keys: Any, waste: Any) -> tuple[Any, Any]:
    """Return key blocks per query tile under the causal mask: on average, and of the last tile."""
    tiles = np.ceil(shape.seq / rows)
    window = np.where(np.asarray(shape.window) > 0, shape.window + waste * rows, NO_WINDOW) / keys
    before = (shape.context - shape.seq) / keys
    step = rows / keys
    ramp = np.clip((window - before) / step, 0, tiles)  # tiles that do not fill the window
    total = ramp * (before + step * (ramp + 1) / 2) + (tiles - ramp) * np.minimum(window, NO_WINDOW)
    longest = np.minimum(np.ceil(shape.context / keys), np.maximum(window, 1))
    mean = np.where(tiles > ramp, total, ramp * (before + step * (ramp + 1) / 2)) / tiles
    return np.where(tiles <= 1, longest, np.minimum(mean, longest)), longest


def _pace(footprint: Any, chip: KernelChip, params: PrefillParameters) -> Any:
    """Return the time per byte of tensors of which so many bytes are in use at once."""
    far = 1 - resident(footprint, params.cache_fraction * chip.cache.capacity, CACHE_STEP)
    return np.maximum(far / params.memory_efficiency, 1 / params.pass_rate) / chip.memory_bandwidth


def prefill(
    shape: AttentionShape, chip: KernelChip, params: PrefillParameters, kept: Any
) -> KernelTime:
    """Return the time of causal attention of many new tokens.

    `kept`: numbers per token that the pass before writes to the cache. All passes move their
    tensors at a rate of their own, or at that of memory where it is less and they do not fit L2.
    """
    peak = chip.rate(shape.dtype)
    tall, keys = _tile_rows(shape, chip), PREFILL_BLOCK
    blocks, longest = _blocks(shape, tall, keys, params.window_waste)
    tiles = shape.batch * shape.heads * np.ceil(shape.seq / tall)
    used = np.clip(shape.seq, chip.matrix_rows, tall)
    used = used * np.clip(shape.context, LEAST_ROWS, keys)  # query × key pairs of a block
    used = np.maximum(used, params.padding * tall * keys)
    flop = 4 * used * shape.head_dim
    load = tiles * blocks * flop / peak
    speed = peak / chip.cores * params.compute_efficiency
    speed = speed * (1 - params.throttle * load / (load + params.throttle_time))
    product = flop / speed
    exponential = used / (params.exponential_rate * chip.exponentials * chip.clock)
    block = soft_max(product, exponential, params.overlap)
    edge = 2 * tall / keys * (params.masked - 1)  # diagonal and far edge, as high as the tile
    edge = np.where(_window(shape) < shape.context, edge, 0.0)
    ends = params.tile * tall / TILE_ROWS
    even = tiles * (ends + (blocks + edge) * block) / chip.cores
    critical = ends + (longest + edge) * block
    busy = np.where(tiles > chip.cores, np.maximum(even + params.tail * critical, critical),
                    critical)  # fmt: skip
    work = attention_work(shape)
    fresh = TENSOR_BYTES * shape.batch * shape.seq * kept
    pace = _pace(work.nbytes + fresh, chip, params)
    queries = TENSOR_BYTES * shape.batch * shape.seq * shape.heads * shape.head_dim
    moved, write = work.nbytes * pace, 2 * (queries + fresh) * params.written * pace
    limiter = largest((Limiter.COMPUTE, busy), (Limiter.MEMORY, moved + write),
                      (Limiter.LAUNCH, params.launch))  # fmt: skip
    time = params.launch + write + soft_max(busy, moved, params.sharpness)
    return KernelTime(time, limiter)


def attention_prefill(
    shape: AttentionShape, chip: KernelChip, params: SizedParameters
) -> KernelTime:
    """Return the time of causal attention by the kernel compiled for its head size."""
    speeds = params.compute_64, 1.0, params.compute_192, params.compute_256
    tiles = params.tile_64, 1.0, params.tile_192, params.tile_256
    speed = params.compute_efficiency * np.interp(shape.head_dim, HEAD_SIZES, speeds)
    tile = params.tile * np.interp(shape.head_dim, HEAD_SIZES, tiles)
    own = replace(params, compute_efficiency=np.minimum(speed, MOST), tile=tile)
    return prefill(shape, chip, own, 2 * shape.kv_heads * shape.head_dim)


def decode(shape: AttentionShape, chip: KernelChip, params: DecodeParameters) -> KernelTime:
    """Return the time of attention of one (or few) new tokens per sequence."""
    window = _window(shape)
    context = np.minimum(shape.context, window)
    token = shape.head_dim * shape.kv_bytes
    kept = 2 * shape.batch * shape.kv_heads * context * token
    moved = TENSOR_BYTES * shape.batch * shape.seq * shape.head_dim
    moved = moved * 2 * (shape.heads + shape.kv_heads)
    cache = params.cache_fraction * chip.cache.capacity
    hit = resident(kept + moved, cache, RESIDENT)
    held = resident(shape.copies * kept + moved, cache, RESIDENT)  # of the KV cache
    memory = (kept + moved) * ((1 - hit) / params.memory_efficiency + hit / params.cache_bandwidth)
    memory = memory + kept * (hit - held) * flushed(params)
    memory = memory / chip.memory_bandwidth
    packed = shape.seq * shape.heads / shape.kv_heads
    tiles = shape.batch * shape.kv_heads * np.ceil(packed / DECODE_ROWS)
    blocks = np.ceil(context / DECODE_BLOCK)
    core = chip.rate("bf16") / chip.cores
    load = 2 * np.minimum(DECODE_BLOCK, context) * token / (params.core_rate * core)
    flop = 4 * np.clip(packed, LEAST_ROWS, DECODE_ROWS) * DECODE_BLOCK * shape.head_dim
    speed = chip.rate(shape.dtype) / chip.cores * params.compute_efficiency
    block = np.maximum(np.maximum(params.block / chip.clock, load), flop / speed)
    tile = params.tile / chip.clock * np.where(packed < MATRIX_GROUP, params.few, 1.0)
    tile = tile * np.maximum(1 + params.head_size * (shape.head_dim / 128 - 1), 0.1)
    whole = np.ceil(tiles / chip.cores) * (tile + blocks * block)
    split = np.clip(np.floor(chip.cores / tiles), 1, blocks)
    parts = tile + np.ceil(blocks / split) * block + params.merge / chip.clock
    busy = np.where(split > 1, np.minimum(whole, parts), whole)
    write = moved / (chip.memory_bandwidth * params.write_rate)
    start = (params.launch + params.miss * (1 - hit)) / chip.clock + write
    limiter = largest(
        (Limiter.MEMORY, memory + write), (Limiter.LAUNCH, start - write + tile),
        (Limiter.COMPUTE, np.where(flop / speed >= block, busy, 0)),
        (Limiter.CACHE, np.where(flop / speed < block, busy - tile, 0)),
    )  # fmt: skip
    return KernelTime(start + soft_max(busy, memory, params.sharpness), limiter)


def flushed(params: Any) -> Any:
    """Return what a byte costs that other layers have flushed from L2, beside one that is there."""
    return max(1 / params.memory_efficiency - 1 / params.cache_bandwidth, 0)


def attention_features(shape: AttentionShape, chip: KernelChip) -> dict[str, Any]:
    """Return where the residual looks."""
    group = shape.heads / shape.kv_heads
    window = _window(shape)
    context = np.minimum(shape.context, window)
    tiles = shape.batch * shape.heads * np.ceil(shape.seq / _tile_rows(shape, chip))
    kv_tiles = shape.batch * shape.kv_heads
    work = attention_work(shape)
    return {
        "batch": np.log2(shape.batch),
        "heads": np.log2(shape.heads),
        "seq": np.log2(shape.seq),
        "context": np.log2(context),
        "group": np.log2(group),
        "head_dim": np.log2(shape.head_dim),
        "window": np.where(window < shape.context, np.log2(1 + shape.context / window), 0.0),
        "waves": np.log2(tiles / chip.cores),
        "wave_fill": tiles / chip.cores / np.ceil(tiles / chip.cores),
        "kv_waves": np.log2(kv_tiles / chip.cores),
        "kv_fill": kv_tiles / chip.cores / np.ceil(kv_tiles / chip.cores),
        "split_fill": _split_fill(kv_tiles, chip),
        "footprint": np.log2(work.nbytes / chip.cache.capacity),
    }


def _split_fill(tiles: Any, chip: KernelChip) -> Any:
    """Return the part of the cores that a whole number of splits of each tile keeps busy."""
    return (
        np.maximum(np.floor(chip.cores / tiles), 1)
        * tiles
        / chip.cores
        / np.ceil(tiles / chip.cores)
    )


SIZES = ("heads", "kv_heads", "head_dim", "window")
PREFILL = Kernel(
    "attention_prefill", SizedParameters, attention_work, attention_prefill, attention_features,
    terms=(("batch", "heads", "seq"), ("seq", "group", "head_dim"), ("waves", "wave_fill", "seq"),
           ("window", "seq"), ("window", "head_dim"), ("group", "batch", "seq")),
    sizes=SIZES,
)  # fmt: skip
DECODE = Kernel(
    "attention_decode", DecodeParameters, attention_work, decode, attention_features,
    terms=(("kv_waves", "context", "group"), ("kv_waves", "context", "head_dim"),
           ("kv_waves", "kv_fill", "context"), ("kv_waves", "split_fill", "context"),
           ("heads", "batch", "context"), ("window", "head_dim"), ("footprint", "group")),
    sizes=SIZES,
)  # fmt: skip
