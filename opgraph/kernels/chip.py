"""What kernels see of a chip of the catalogue: every peak, and no figure that may be missing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hardware.chip import DTYPES
from hardware.errors import SpecError

if TYPE_CHECKING:
    from hardware.chip import Chip, Memory


_FIGURES = ("vector", "memory_bandwidth", "cores", "clock", "boost", "exponentials", "matrix_rows")


@dataclass(frozen=True)
class KernelChip:
    """A chip as the kernels' formulas read it; numbers or arrays in SI units.

    matrix: dense FLOP/s of every dtype, where a dtype without a rate of its own has that of
    the type it runs as. clock: the highest, Hz; boost: in times of that at which the peaks
    hold. link_bandwidth: bytes/s of one chip's scale-up links in one direction, None where
    it has none; through_host: whether these pass a host that all share. has_gddr: as of `Chip`.
    """

    name: str
    matrix: Mapping[str, Any]
    vector: Any
    memory_bandwidth: Any
    cores: Any
    clock: Any
    boost: Any
    exponentials: Any
    matrix_rows: Any
    cache: "Memory"
    link_bandwidth: Any
    through_host: Any
    has_gddr: bool

    def differs(self, other: "KernelChip") -> Any:
        """Return where a figure of its cores and memories is not the other's."""
        changed: Any = self.cache.capacity != other.cache.capacity
        for name in _FIGURES:
            changed = changed | (getattr(self, name) != getattr(other, name))
        for dtype, rate in self.matrix.items():
            changed = changed | (rate != other.matrix[dtype])
        return changed

    def rate(self, dtype: str) -> Any:
        """Return the matrix FLOP/s at the highest clock, at which a kernel starts."""
        return self.matrix[dtype] * self.boost


def kernel_chip(chip: "Chip") -> KernelChip:
    """Return what the kernels need of a chip.

    Raises SpecError where its cores, clock or cache are unpublished.
    """
    cores, clock, cache = chip.cores, chip.clock, chip.cache
    if cores is None or clock is None or cache is None:
        figures = {"cores": cores, "clock": clock, "cache": cache}
        names = [repr(name) for name, figure in figures.items() if figure is None]
        raise SpecError(
            f"{chip.name} has no {', '.join(names)}, which the kernels' physics needs; "
            "add it to the chip, or use the cost model ideal"
        )
    return KernelChip(
        name=chip.name,
        matrix={dtype: chip.peak(dtype) for dtype in DTYPES},
        vector=chip.vector,
        memory_bandwidth=chip.memory_bandwidth,
        cores=cores,
        clock=clock * chip.boost,
        boost=chip.boost,
        exponentials=chip.exponentials,
        matrix_rows=chip.matrix_rows,
        cache=cache,
        link_bandwidth=None if chip.scale_up is None else chip.scale_up.bandwidth,
        through_host=chip.scale_up is not None and chip.scale_up.through_host,
        has_gddr=chip.has_gddr,
    )
