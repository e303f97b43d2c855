"""The machine that measures: what it is, how it is set, what runs on it."""

import ctypes
import ctypes.util
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hardware import SpecError
from validation.extras import needed

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CPU_FACTS = Path("/proc/cpuinfo")
_MEGA = 1e6
_UNITS = {"K": 2**10, "M": 2**20}
# parameters of glibc's mallopt(3)
_TRIM_THRESHOLD, _MMAP_MAX, _NEVER = -1, -4, 2**31 - 1


@dataclass(frozen=True)
class Machine:
    """What a measurement was made on.

    Attributes
    ----------
    device : ``cpu`` or ``cuda``.
    name : of the processor or GPU, as it calls itself.
    cores : threads that compute, or streaming multiprocessors.
    clock : Hz; of a processor the nominal one, of a GPU the highest.
    memory, cache : bytes of the main memory and of the last cache.
    driver, versions, date : of what ran and when.
    """

    device: str
    name: str
    cores: int
    clock: float
    memory: int
    cache: int
    driver: str
    versions: str
    date: str

    def facts(self) -> dict[str, str]:
        """Every attribute as text."""
        return {name: str(value) for name, value in asdict(self).items()}


def this_machine(device: str = "cpu", threads: int = 1) -> Machine:
    """Set this machine up for measuring, and say what it is.

    PyTorch computes with so many *threads*, and memory that was freed stays with the process,
    as an inference engine's allocator keeps it: else every large result is mapped anew and what
    is timed is the kernel clearing pages.

    Raises SpecError where PyTorch is not installed, or has no such device.
    """
    check_device(device)
    import torch

    torch.set_num_threads(threads)
    _keep_memory()
    date = datetime.now(UTC).date().isoformat()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return _gpu(versions, date) if device == "cuda" else _cpu(threads, versions, date)


def check_device(device: str) -> None:
    """Raise SpecError where PyTorch is not installed, or *device* is not there."""
    needed("torch", extra="torch")
    import torch

    if device not in ("cpu", "cuda"):
        raise SpecError(f"no device {device!r}: cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise SpecError("there is no NVIDIA GPU here, or PyTorch was built without CUDA")


def _cpu(threads: int, versions: str, date: str) -> Machine:
    facts = _cpu_facts()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        device="cpu",
        name=facts.get("model name", platform.processor() or platform.machine()),
        cores=threads,
        clock=float(facts.get("cpu MHz", 0)) * _MEGA,
        memory=pages,
        cache=_last_cache(),
        driver=f"{platform.system()} {platform.release()}",
        versions=versions,
        date=date,
    )


def _gpu(versions: str, date: str) -> Machine:
    import torch

    found: Any = torch.cuda.get_device_properties(0)
    return Machine(
        device="cuda",
        name=found.name,
        cores=found.multi_processor_count,
        clock=float(_nvidia("clocks.max.sm")) * _MEGA,
        memory=found.total_memory,
        cache=found.L2_cache_size,
        driver=_nvidia("driver_version"),
        versions=f"{versions}, CUDA {torch.version.cuda}",
        date=date,
    )


def _nvidia(what: str) -> str:
    """One fact that the GPU's driver tells; it is asked only, never set."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", "--id=0"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return answer.stdout.strip()


def _cpu_facts() -> dict[str, str]:
    if not _CPU_FACTS.exists():
        return {}
    lines = _CPU_FACTS.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _last_cache() -> int:
    """Bytes of the highest level; 0 where the system does not say."""
    levels = sorted(_CACHES.glob("index*"))
    if not levels:
        return 0
    text = (levels[-1] / "size").read_text(encoding="utf-8").strip()
    return int(text[:-1]) * _UNITS[text[-1]]


def _keep_memory() -> None:
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    if hasattr(library, "mallopt"):  # of glibc
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, _NEVER)
