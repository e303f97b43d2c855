"""A stopwatch: median seconds of a call on a device, with inputs that do not stay in its cache."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hardware import SpecError
from validation.machine import check_device

WARM_UP = 2  # calls before the clock starts: code is compiled, memory is mapped
POOL_BYTES = 512 * 2**20  # random numbers that operands are cut from: several times any cache
MOST_SETS = 256  # of operands that are rotated through
REPLAYS = 7  # of a captured graph


@dataclass
class Stopwatch:
    """Times calls on one device.

    Operands are cut from one pool of random numbers much larger than any cache, another place
    for each call, so that what is timed reads memory and not what the call before left behind.
    On a GPU the calls are captured as one graph and its replays are timed by events, which
    leaves the host out.

    device: ``cpu`` or ``cuda``. budget: seconds that one time may take. least: calls at least.
    Raises SpecError where PyTorch is not installed or has no such device.
    """

    device: str = "cpu"
    budget: float = 0.15
    least: int = 5
    _pool: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_device(self.device)

    def operands(self, turn: int, *shapes: tuple[int, ...], dtype: str = "bfloat16") -> list[Any]:
        """Tensors of random numbers, side by side in the pool; another *turn*, another place.

        Raises SpecError where they are larger than the pool.
        """
        pool, counts = self._numbers(dtype), [math.prod(shape) for shape in shapes]
        total = sum(counts)
        if total > len(pool):
            raise SpecError(f"operands of {total} numbers do not fit {POOL_BYTES >> 20} MiB")
        start, cut = turn % (len(pool) // total) * total, []
        for shape, count in zip(shapes, counts, strict=True):
            cut.append(pool[start : start + count].view(shape))
            start += count
        return cut

    def _numbers(self, dtype: str) -> Any:
        if dtype not in self._pool:
            import torch

            kind = getattr(torch, dtype)
            seed = torch.Generator(self.device).manual_seed(0)
            count = POOL_BYTES // kind.itemsize
            wide = torch.bfloat16 if kind.itemsize == 1 else kind
            numbers = torch.randn(count, dtype=wide, device=self.device, generator=seed)
            self._pool[dtype] = numbers.to(kind)
        return self._pool[dtype]

    def seconds(self, call: Callable[[int], Any]) -> float:
        """Median seconds of ``call(turn)``, turn after turn."""
        for turn in range(WARM_UP):
            call(turn)
        return self._replayed(call) if self.device == "cuda" else self._called(call)

    def _called(self, call: Callable[[int], Any]) -> float:
        times: list[float] = []
        turn, spent = WARM_UP, 0.0
        while spent < self.budget or len(times) < self.least:
            start = time.perf_counter()
            call(turn)
            times.append(time.perf_counter() - start)
            turn, spent = turn + 1, spent + times[-1]
        return statistics.median(times)

    def _replayed(self, call: Callable[[int], Any]) -> float:
        """Seconds of one call in a graph of several, so that launches follow without a gap."""
        import torch

        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call(WARM_UP)
        end.record()
        torch.cuda.synchronize()
        once = max(start.elapsed_time(end) / _MILLI, _SHORTEST)
        turns = max(1, min(MOST_SETS, int(self.budget / REPLAYS / once)))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for turn in range(turns):
                call(turn)
        times = []
        for _ in range(REPLAYS + 1):
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(float(start.elapsed_time(end)) / _MILLI / turns)
        return statistics.median(times[1:])


_MILLI = 1e3
_SHORTEST = 1e-6  # seconds: no launch takes less
