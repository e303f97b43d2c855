"""Multi-head latent attention (DeepSeek-V2, sec. 2.1): decode in latent space, prefill expanded.

Decode is multi-query attention over one latent "head" of `latent` + `rope` numbers per token
(weight absorption, DeepSeek-V2 app. B; FlashMLA 2025); prefill is ordinary attention with keys of
`nope` + `rope` numbers and values of `value`, priced by `attention.prefill` at their mean, which
has the FLOP and the bytes of both.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from opgraph.kernels.attention import (
    PREFILL,
    RESIDENT,
    AttentionShape,
    PrefillParameters,
    flushed,
    prefill,
)
from opgraph.kernels.chip import KernelChip
from opgraph.kernels.formats import OUTPUT_BYTES
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

BLOCK = 64.0  # tokens per step (FlashMLA page)
HEAD_TILES = (64.0, 128.0)  # query heads that one tile packs
NARROW = 16.0  # query heads of a narrow tile: heads as columns of the product
OVERLAP = 4.0  # exponent joining the load, the products and the least time of a block
SWITCH = 16.0  # exponent of the soft step from narrow to tall tiles


class MlaShape(NamedTuple):
    """Per chip: sequences, new tokens, tokens attended with them, heads; latent KV bytes.

    The numbers of a latent, of a key's rotated and other part and of a value are DeepSeek-V3's
    (kv_lora_rank, qk_rope_head_dim, qk_nope_head_dim, v_head_dim) where not given. `copies`: KV
    caches that decode cycles through, as of `AttentionShape`.
    """

    batch: Any
    seq: Any
    context: Any
    heads: Any
    dtype: str = "bf16"
    kv_bytes: float = 2.0
    latent: Any = 512.0
    rope: Any = 64.0
    nope: Any = 128.0
    value: Any = 128.0
    copies: Any = np.inf


@dataclass(frozen=True)
class MlaDecodeParameters:
    """Parameters of `mla_decode`."""

    launch: float = parameter("clock", 2e3, 1.7e4, 1e5, "launch and drain, paid once")
    tile: float = parameter("clock", 100, 4e3, 5e4, "start and end of a tile")
    block: float = parameter("clock", 10, 600, 2e4, "least time of a block of tokens")
    core_rate: float = parameter(
        "byte/FLOP", 3e-4, 0.012, 1, "what a core can load per FLOP of its bf16 peak"
    )
    memory_efficiency: float = parameter("1", 0.3, 0.85, 1.05, "reached part of memory bandwidth")
    cache_bandwidth: float = parameter("1", 0.3, 1.8, 50, "L2 bandwidth in memory bandwidths")
    cache_fraction: float = parameter("1", 0.2, 0.9, 1.6, "part of L2 that keeps the KV cache")
    sharpness: float = parameter("1", 1, 3, 12, "exponent joining tiles and memory")
    parts: float = parameter(
        "1", 1, 1024, 1024, "most parts that the kernel splits a context into", starts=(1, 1024)
    )
    merge: float = parameter("clock", 20, 4e3, 5e4, "merging the parts of a split context")
    idle: float = parameter(
        "clock", 100, 2e3, 1e6, "a core's time for the parts without work that a tile starts"
    )
    miss: float = parameter("clock", 20, 6e3, 5e4, "extra latency when the KV cache is not in L2")
    compute_efficiency: float = parameter("1", 0.05, 0.6, 1.2, "reached part of the matrix peak")
    narrow_rows: float = parameter(
        "1", 4, 32, 1e5, "query heads up to which tiles are narrow", starts=(32, 128, 1e4)
    )
    apart: float = parameter(
        "1", 1e-3, 0.1, 1, "part of a further wave's narrow tiles that read from memory again"
    )
    write_rate: float = parameter(
        "1", 0.01, 0.4, 50, "rate of the pass over queries and outputs, in memory bandwidths"
    )


def mla_decode_work(shape: MlaShape) -> Work:
    """Return FLOP and compulsory bytes in latent space."""
    width = 2 * shape.latent + shape.rope
    flop = 2 * shape.batch * shape.seq * shape.heads * shape.context * width
    kv = shape.batch * shape.context * (shape.latent + shape.rope) * shape.kv_bytes
    rows = shape.batch * shape.seq * shape.heads * width * OUTPUT_BYTES
    return Work(flop, kv + rows, shape.dtype)


def mla_decode(shape: MlaShape, chip: KernelChip, params: MlaDecodeParameters) -> KernelTime:
    """Return the time of latent attention of one (or few) new tokens per sequence."""
    rows = shape.heads * shape.seq
    nbytes = shape.batch * shape.context * (shape.latent + shape.rope) * shape.kv_bytes
    cache = params.cache_fraction * chip.cache.capacity
    hit = resident(nbytes, cache, RESIDENT)
    held = resident(shape.copies * nbytes, cache, RESIDENT)
    options = [_decode_tiles(shape, rows, tall, chip, params) for tall in HEAD_TILES]
    tall, narrow = np.minimum(*options), _decode_tiles(shape, rows, NARROW, chip, params)
    padded = 2 ** np.ceil(np.log2(rows))  # by which the kernel is chosen: 1 where tiles are narrow
    few = resident(padded, params.narrow_rows, SWITCH)
    groups = np.ceil(rows / NARROW)  # narrow tiles read the cache again, those of other waves
    waves = np.clip(shape.batch * groups / chip.cores, 1, groups)  # perhaps from memory
    far = (1 - hit) * (1 + few * params.apart * (waves - 1))
    near = hit + few * (groups - 1)
    busy = tall ** (1 - few) * narrow**few
    memory = far / params.memory_efficiency + near / params.cache_bandwidth
    memory = memory + (hit - held) * flushed(params)
    memory = memory * nbytes / chip.memory_bandwidth
    moved = shape.batch * rows * (2 * shape.latent + shape.rope) * OUTPUT_BYTES
    write = moved / (chip.memory_bandwidth * params.write_rate)
    start = (params.launch + params.miss * (1 - hit)) / chip.clock + write
    limiter = largest((Limiter.COMPUTE, busy), (Limiter.MEMORY, memory + write),
                      (Limiter.LAUNCH, start - write))  # fmt: skip
    return KernelTime(start + soft_max(busy, memory, params.sharpness), limiter)


def _decode_tiles(
    shape: MlaShape, rows: Any, tall: float, chip: KernelChip, params: MlaDecodeParameters
) -> Any:
    """Return the time of tiles of `tall` query heads, the context split over idle cores."""
    groups = np.ceil(rows / tall)
    tiles = shape.batch * groups
    blocks = np.ceil(shape.context / BLOCK)
    core = chip.rate("bf16") / chip.cores
    load = BLOCK * (shape.latent + shape.rope) * shape.kv_bytes / (params.core_rate * core)
    flop = 2 * np.clip(rows, NARROW, tall) * BLOCK * (2 * shape.latent + shape.rope)
    speed = chip.rate(shape.dtype) / chip.cores * params.compute_efficiency
    block = soft_max(soft_max(params.block / chip.clock, load, OVERLAP), flop / speed, OVERLAP)
    tile = params.tile / chip.clock
    whole = np.ceil(tiles / chip.cores) * (tile + blocks * block)
    split = np.clip(np.floor(chip.cores / tiles), 1, np.minimum(blocks, params.parts))
    parts = tile + np.ceil(blocks / split) * block + params.merge / chip.clock
    idle = tiles / chip.cores * params.idle / chip.clock
    return np.where(split > 1, np.minimum(whole, parts), whole) + idle


def expanded(shape: MlaShape) -> AttentionShape:
    """Return MLA prefill as ordinary attention with the mean of its two head sizes."""
    size = (shape.nope + shape.rope + shape.value) / 2
    return AttentionShape(shape.batch, shape.seq, shape.context, shape.heads, shape.heads, size,
                          0.0, shape.dtype, OUTPUT_BYTES)  # fmt: skip


def mla_prefill(shape: MlaShape, chip: KernelChip, params: PrefillParameters) -> KernelTime:
    """Return the time of causal attention of many new tokens, keys and values expanded."""
    return prefill(expanded(shape), chip, params, shape.latent + shape.rope)


def mla_features(shape: MlaShape, chip: KernelChip) -> dict[str, Any]:
    """Return where the residual looks."""
    groups = shape.batch * np.ceil(shape.heads * shape.seq / HEAD_TILES[0])
    tiles = shape.batch * shape.heads * np.ceil(shape.seq / 128) / chip.cores
    return {
        "batch": np.log2(shape.batch),
        "heads": np.log2(shape.heads),
        "seq": np.log2(shape.seq),
        "context": np.log2(shape.context),
        "groups": np.log2(groups / chip.cores),
        "group_fill": groups / chip.cores / np.ceil(groups / chip.cores),
        "waves": np.log2(tiles),
        "fill": tiles / np.ceil(tiles),
    }


DECODE_SIZES, PREFILL_SIZES = ("heads", "latent", "rope"), ("heads", "nope", "rope", "value")
MLA_DECODE = Kernel(
    "mla_decode", MlaDecodeParameters, mla_decode_work, mla_decode, mla_features,
    terms=(("batch", "context"), ("heads", "context"), ("groups", "group_fill")),
    sizes=DECODE_SIZES,
)  # fmt: skip
MLA_PREFILL = Kernel(
    "mla_prefill", PrefillParameters, lambda shape: PREFILL.work(expanded(shape)), mla_prefill,
    mla_features, terms=(("batch", "seq"), ("heads", "seq"), ("waves", "fill")),
    sizes=PREFILL_SIZES,
)  # fmt: skip
