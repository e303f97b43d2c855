"""Micro-benchmarks: the kernels of a decoder, each timed alone over a grid of shapes.

One table for each class of kernel, in the columns that `opgraph calibrate --table` reads, so that
a machine is calibrated by its own measurements. Times are medians in milliseconds.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from validation.stopwatch import Stopwatch

Row = dict[str, Any]
MILLI = 1e3

# sides of weights: what attention and feed-forward projections of 0.5 to 30 B models have
SIDES = (512, 1024, 2048, 3072, 4096, 6144, 8192)
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
# query heads, KV heads, size of a head
HEADS = ((16, 8, 128), (32, 8, 64), (32, 8, 128), (14, 2, 64), (16, 16, 64), (8, 4, 256))
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
WIDTHS = (1024, 2048, 4096, 8192)
VOCABULARIES = (32000, 128256, 151936)
EXPERTS = ((64, 8), (128, 8), (256, 8))


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    flop, nbytes: the most that one call may do and touch. rows: the most shapes of a table,
    evenly taken from all.
    """

    flop: float
    nbytes: float
    rows: int


EFFORTS = {"cpu": Effort(4e10, 256 * 2**20, 250), "cuda": Effort(3e13, 480 * 2**20, 2000)}


@dataclass(frozen=True)
class Kernel:
    """One class: its shapes, the columns they are recorded under, and the call to time.

    work: FLOP and bytes of a shape, by which it is left out where it would take too long.
    """

    columns: tuple[str, ...]
    shapes: Callable[[], Iterable[tuple[Any, ...]]]
    work: Callable[..., tuple[float, float]]
    call: Callable[..., Callable[[int], Any]]
    constants: tuple[tuple[str, Any], ...] = ()

    def rows(self, watch: Stopwatch, effort: Effort) -> Iterator[Row]:
        """Each measured shape with its time."""
        fitting = [s for s in self.shapes() if self._fits(s, effort)]
        for shape in fitting[:: -(-len(fitting) // effort.rows)]:
            seconds = watch.seconds(self.call(watch, *shape))
            named = dict(zip(self.columns, shape, strict=True))
            yield {**dict(self.constants), **named, "latency": round(seconds * MILLI, 6)}

    def _fits(self, shape: tuple[Any, ...], effort: Effort) -> bool:
        flop, nbytes = self.work(*shape)
        return flop <= effort.flop and nbytes <= effort.nbytes


def _gemm(watch: Stopwatch, m: int, n: int, k: int) -> Callable[[int], Any]:
    from torch.nn.functional import linear

    return lambda turn: linear(*watch.operands(turn, (m, k), (n, k)))


def _batched(watch: Stopwatch, batch: int, m: int, n: int, k: int) -> Callable[[int], Any]:
    import torch

    return lambda turn: torch.bmm(*watch.operands(turn, (batch, m, k), (batch, k, n)))


def attend(query: Any, key: Any, value: Any, scale: float | None = None) -> Any:
    """Causal attention of grouped heads, as an engine would ask PyTorch for it.

    Tensors are ``batch heads seq head_dim``. A single query is attended to by folding the heads
    of a group into its sequence: a causal mask has nothing to hide from it, and no key is read
    more than once. Without this, PyTorch's CPU kernel reads the keys once for each query head.
    """
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    batch, heads, seq, size = query.shape
    groups = key.shape[1]
    if seq > 1:
        return sdpa(query, key, value, is_causal=True, scale=scale, enable_gqa=groups < heads)
    folded = query.reshape(batch, groups, heads // groups, size)
    return sdpa(folded, key, value, scale=scale).reshape(batch, heads, 1, size)


def _attention(watch: Stopwatch, *sizes: int) -> Callable[[int], Any]:
    batch, seq, step, heads, groups, size = sizes
    context = seq + step
    shapes = ((batch, seq, heads, size), *2 * ((batch, groups, context, size),))

    def call(turn: int) -> Any:
        query, key, value = watch.operands(turn, *shapes)
        return attend(query.transpose(1, 2), key, value)

    return call


def _attention_work(*sizes: int) -> tuple[float, float]:
    """FLOP as if attention reached a tenth of a product's rate, and bytes."""
    batch, seq, step, heads, groups, size = sizes
    context = seq + step
    flop = 4 * batch * heads * seq * (step + seq / 2) * size
    return 10 * flop * (seq > 1), 4 * batch * groups * context * size


def _pass(watch: Stopwatch, kernel: str, rows: int, columns: int, *_: int) -> Callable[[int], Any]:
    """A kernel that passes over rows × columns."""
    make = PASSES[kernel][2]
    return lambda turn: make(watch, turn, rows, columns)


def _norm(watch: Stopwatch, turn: int, rows: int, columns: int) -> Any:
    from torch.nn.functional import rms_norm

    x, weight = watch.operands(turn, (rows, columns), (columns,))
    return rms_norm(x, (columns,), weight, 1e-6)


def _layer_norm(watch: Stopwatch, turn: int, rows: int, columns: int) -> Any:
    from torch.nn.functional import layer_norm

    x, weight, bias = watch.operands(turn, (rows, columns), (columns,), (columns,))
    return layer_norm(x, (columns,), weight, bias)


def _gate(watch: Stopwatch, turn: int, rows: int, columns: int) -> Any:
    from torch.nn.functional import silu

    gate, up = watch.operands(turn, (rows, columns), (rows, columns))
    return silu(gate).mul_(up)


def _add(watch: Stopwatch, turn: int, rows: int, columns: int) -> Any:
    x, y = watch.operands(turn, (rows, columns), (rows, columns))
    return x + y


def _copy(watch: Stopwatch, turn: int, rows: int, columns: int) -> Any:
    return watch.operands(turn, (rows, columns))[0].clone()


def _rotate(watch: Stopwatch, turn: int, rows: int, columns: int) -> Any:
    import torch

    angles = (rows, 1, _HEAD)
    x, cos, sin = watch.operands(turn, (rows, columns // _HEAD, _HEAD), angles, angles)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def _quantise(watch: Stopwatch, turn: int, rows: int, columns: int) -> Any:
    import torch

    x = watch.operands(turn, (rows, columns))[0]
    largest = torch.finfo(torch.float8_e4m3fn).max
    scale = largest / x.abs().amax(-1, keepdim=True).float()
    return (x * scale).to(torch.float8_e4m3fn)


def _gather(watch: Stopwatch, rows: int, columns: int) -> Callable[[int], Any]:
    import torch

    (table,) = watch.operands(0, (VOCABULARIES[0], columns))
    indices = [torch.randint(len(table), (rows,), device=watch.device) for _ in range(_INDICES)]
    return lambda turn: torch.nn.functional.embedding(indices[turn % _INDICES], table)


def _sample(watch: Stopwatch, rows: int, columns: int) -> Callable[[int], Any]:
    import torch

    def call(turn: int) -> Any:
        logits = watch.operands(turn, (rows, columns))[0]
        return torch.multinomial(logits.float().softmax(-1), 1)

    return call


# kernel → bytes that one pass reads and writes for each number of the result, and the call
PASSES: dict[str, tuple[int, int, Callable[..., Any]]] = {
    "norm": (2, 2, _norm),
    "layer_norm": (2, 2, _layer_norm),
    "gated_activation": (4, 2, _gate),
    "add": (4, 2, _add),
    "rotary": (2, 2, _rotate),
    "quantise_rows": (2, 1, _quantise),
    "copy": (2, 2, _copy),
}
_INDICES = 16  # sets of rows that are looked up in turn
_HEAD = 128  # numbers of a head that turns


def _route(watch: Stopwatch, rows: int, experts: int, chosen: int) -> Callable[[int], Any]:
    def call(turn: int) -> Any:
        logits = watch.operands(turn, (rows, experts))[0]
        return logits.float().softmax(-1).topk(chosen, -1)

    return call


_BF16 = (("attn_dtype", "bfloat16"), ("kv_cache_dtype", "bfloat16"))
_HEAD_COLUMNS = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim")
_SAMPLE_BYTES = 10  # of a logit: read in 16 bits, written and read twice in 32

KERNELS = {
    "gemm": Kernel(
        ("m", "n", "k"), lambda: product(TOKENS, SIDES, SIDES),
        lambda m, n, k: (2 * m * n * k, 2 * (m * k + n * k)), _gemm,
        (("gemm_dtype", "bfloat16"),),
    ),
    "batched_gemm": Kernel(
        ("batch", "m", "n", "k"), lambda: product((8, 32, 128), TOKENS[:10], (64, 512), (128, 512)),
        lambda b, m, n, k: (2 * b * m * n * k, 2 * b * (m * k + n * k)), _batched,
    ),
    "attention_prefill": Kernel(
        _HEAD_COLUMNS,
        lambda: ((b, s, 0, *h) for h, b, s in product(HEADS, BATCHES[:5], LENGTHS)),
        _attention_work, _attention, _BF16,
    ),
    "attention_decode": Kernel(
        _HEAD_COLUMNS,
        lambda: ((b, 1, s - 1, *h) for h, b, s in product(HEADS, BATCHES, LENGTHS)),
        _attention_work, _attention, _BF16,
    ),
    "vector": Kernel(
        ("kernel", "m", "k", "read", "write"),
        lambda: ((kernel, m, k, *moved[:2]) for (kernel, moved), m, k in
                 product(PASSES.items(), TOKENS, WIDTHS)),
        lambda kernel, m, k, read, write: (0.0, (read + write) * m * k), _pass,
    ),
    "lookup": Kernel(
        ("rows", "columns"), lambda: product(TOKENS, WIDTHS),
        lambda rows, columns: (0.0, 4 * rows * columns), _gather,
    ),
    "sample": Kernel(
        ("rows", "columns"), lambda: product(BATCHES, VOCABULARIES),
        lambda rows, columns: (0.0, _SAMPLE_BYTES * rows * columns), _sample,
    ),
    "route": Kernel(
        ("rows", "columns", "topk"), lambda: ((t, *e) for t, e in product(TOKENS, EXPERTS)),
        lambda rows, columns, _: (0.0, _SAMPLE_BYTES * rows * columns), _route,
    ),
}  # fmt: skip
