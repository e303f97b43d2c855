"""80 % intervals: how far measurements lie from a price, by what its fit has seen.

Conformal prediction by group (Vovk, Gammerman & Shafer 2005, sec. 4.6, "Mondrian"), with errors
divided by their expected size (Papadopoulos, Gammerman & Vovk 2008): a shape is *fitted* where the
sizes that a model fixes were measured, *new* where they were not, *larger* where it is more work
than any that was; and the further outside, the wider.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from opgraph.kernels.chip import KernelChip
from opgraph.kernels.kernel import Kernel
from opgraph.kernels.smooth_roofline import roofline

# the last: parameters of other chips, or of another number format
RELATIONS = ("fitted", "new", "larger", "transferred")
COVERED = (0.1, 0.9)  # quantiles that 80 % of the measurements lie between


class Band(NamedTuple):
    """Factors on a time between which 80 % of the measurements lie."""

    low: Any
    high: Any


@dataclass(frozen=True)
class Seen:
    """What a fit has seen: distinct sizes, a row of `Kernel.sizes` each, and the longest roofline.

    `longest` is in seconds.
    """

    sizes: np.ndarray
    longest: float

    @cached_property
    def _values(self) -> list[np.ndarray]:
        return [np.unique(column) for column in self.sizes.T]

    @cached_property
    def _codes(self) -> np.ndarray:
        return np.unique(self._code(list(self.sizes.T))[0])

    def _code(self, columns: list[Any]) -> tuple[Any, Any]:
        """Return a number per combination of sizes, and whether each of these is known at all."""
        code: Any = 0
        known: Any = True
        for column, values in zip(columns, self._values, strict=True):
            index = np.minimum(np.searchsorted(values, column), len(values) - 1)
            code, known = code * len(values) + index, known & (values[index] == column)
        return code, known

    def relation(self, kernel: Kernel, shape: Any, chip: KernelChip) -> tuple[Any, Any]:
        """Return the index of each shape's relation, and its octaves outside what was seen."""
        columns = sizes_of(kernel, shape)
        code, known = self._code(columns)
        known = known & np.isin(code, self._codes)
        work = np.log2(roofline(kernel.work(shape), chip).time / self.longest)
        octaves: Any = np.maximum(work, 0)
        for column, values in zip(columns, self._values, strict=True):
            low, high = _octave(values[[0, -1]])
            size = _octave(column)
            octaves = octaves + np.maximum(np.maximum(low - size, size - high), 0)
        return np.where(work > 0, 2, np.where(known, 0, 1)), octaves


def _octave(size: Any) -> Any:
    """Return log2 of a size; nothing is as small as one."""
    return np.log2(np.maximum(size, 1))


def sizes_of(kernel: Kernel, shape: Any) -> list[Any]:
    """Return the sizes that a model fixes, as the tables of what was seen keep them."""
    return [np.asarray(getattr(shape, name), np.float32) for name in kernel.sizes]


def seen(kernel: Kernel, shape: Any, chip: KernelChip) -> Seen:
    """Return what a fit on these shapes has seen."""
    time = roofline(kernel.work(shape), chip).time
    columns = [np.broadcast_to(column, np.shape(time)) for column in sizes_of(kernel, shape)]
    return Seen(np.unique(np.stack(columns, axis=-1), axis=0), float(np.max(time)))


def widened(bands: Mapping[str, Band], relation: Any, octaves: Any) -> Band:
    """Return each shape's band, in ln twice as wide an octave outside, three times at two."""
    ends = np.array([bands[name] for name in RELATIONS[:3]])
    low, high = np.moveaxis(ends[relation], -1, 0)
    return Band(low ** (1 + octaves), high ** (1 + octaves))
