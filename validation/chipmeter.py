"""A chip measured where it stands: peak rates, memory bandwidth, launch overhead, as chip TOML."""

from dataclasses import dataclass
from itertools import product
from typing import Any

from hardware.specs import check_name
from validation.machine import Machine, this_machine
from validation.stopwatch import Stopwatch

_SIDES = (1024, 2048, 4096, 8192)
_LARGEST_PRODUCT = {"cpu": 2e10, "cuda": 2e12}  # FLOP; more only takes longer
_STREAMED = 128 * 2**20  # numbers of a copy: four times any cache and more
_TINY = 8  # numbers: what takes no time but the launch
_BURST = 200  # launches in a row


@dataclass(frozen=True)
class MeasuredChip:
    """What micro-benchmarks reach; SI units.

    matrix: FLOP/s of the fastest large product, by dtype. vector: that of an fp32 product, which
    runs on the vector units of processors and, without tf32, of GPUs. bandwidth: of the faster
    of a copy (bytes read and written, McCalpin's STREAM) and a sum. launch: seconds from one
    small operator to the next.
    """

    machine: Machine
    matrix: dict[str, float]
    vector: float
    bandwidth: float
    launch: float

    def toml(self, name: str) -> str:
        """A chip file of that name.

        Raises SpecError for a name that no file may have.
        """
        machine = self.machine
        rates = "\n".join(f'{dtype} = "{rate / 1e9:.4g} GFLOP/s"' for dtype, rate in
                          self.matrix.items())  # fmt: skip
        return _TOML.format(
            name=check_name(name), rates=rates, machine=machine, vector=self.vector / 1e9,
            bandwidth=self.bandwidth / 1e9, launch=self.launch * 1e6,
            clock=machine.clock / 1e9, memory=machine.memory / 2**30, cache=machine.cache / 2**20,
        )  # fmt: skip


_TOML = """\
# reached by `opgraph measure-chip`, not a datasheet; an operator's launch takes {launch:.3g} us
name = "{name}"
source = "measured on {machine.date}: {machine.name}, {machine.cores} cores, {machine.driver}, \
{machine.versions}"
vendor = "{machine.name}"
vector = "{vector:.4g} GFLOP/s"
cores = {machine.cores}
clock = "{clock:.4g} GHz"

[matrix]
{rates}

[[memory]]
name = "main memory"
capacity = "{memory:.4g} GiB"
bandwidth = "{bandwidth:.4g} GB/s"

[cache]
name = "last cache"
capacity = "{cache:.4g} MiB"
"""


def measure_chip(device: str = "cpu", threads: int = 1) -> MeasuredChip:
    """Measure this machine's processor, or its first GPU.

    Raises SpecError where PyTorch or the device is missing.
    """
    machine = this_machine(device, threads)
    watch = Stopwatch(device)
    rates = {dtype: _peak(watch, torch_dtype) for dtype, torch_dtype in
             {"bf16": "bfloat16", "fp16": "float16"}.items()}  # fmt: skip
    if device == "cuda":
        rates["fp8"] = _peak(watch, "float8_e4m3fn")
    return MeasuredChip(
        machine, rates, _peak(watch, "float32"), max(_copy(watch), _sum(watch)), _launch(watch)
    )


def _peak(watch: Stopwatch, dtype: str) -> float:
    """FLOP/s of the fastest product."""
    most = _LARGEST_PRODUCT[watch.device]
    shapes = [s for s in product(_SIDES, repeat=3) if most / 8 <= 2 * s[0] * s[1] * s[2] <= most]
    return max(_rate(watch, dtype, *shape) for shape in shapes[:: max(1, len(shapes) // 6)])


def _rate(watch: Stopwatch, dtype: str, m: int, n: int, k: int) -> float:
    import torch

    one = torch.ones((), device=watch.device)

    def call(turn: int) -> Any:
        x, weight = watch.operands(turn, (m, k), (n, k), dtype=dtype)
        if dtype.startswith("float8"):
            return torch._scaled_mm(x, weight.t(), one, one, out_dtype=torch.bfloat16)
        return torch.nn.functional.linear(x, weight)

    return 2 * m * n * k / watch.seconds(call)


def _copy(watch: Stopwatch) -> float:
    source, target = watch.operands(0, *2 * ((_STREAMED,),))
    target = target.clone()
    moved = 2 * source.nbytes
    return float(moved) / watch.seconds(lambda _: target.copy_(source))


def _sum(watch: Stopwatch) -> float:
    (numbers,) = watch.operands(0, (_STREAMED // 2,), dtype="float32")
    return float(numbers.nbytes / watch.seconds(lambda _: numbers.sum()))


def _launch(watch: Stopwatch) -> float:
    """Seconds of one of many small operators in a row, launched by the host one by one."""
    import torch

    small = torch.zeros(_TINY, device=watch.device)
    host = Stopwatch("cpu")

    def call(_: int) -> None:
        _launches(small)
        if watch.device == "cuda":
            torch.cuda.synchronize()

    return host.seconds(call) / _BURST


def _launches(small: Any) -> None:
    for _ in range(_BURST):
        small.add_(1)
