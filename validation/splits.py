"""How rows are divided into fitted and held out."""

from typing import Any, NamedTuple

import numpy as np

from opgraph.kernels.kernel import Kernel
from validation.datasets import Sample

SEED = 1
HELD_PART = 0.2
LARGEST_PART = 0.15
LARGE_MESSAGE = 64e6  # bytes: collectives hold out messages of 64 MB and more
FAMILY_BOUNDS = (0.03, 0.8)  # a family outside these parts of the rows says nothing


class Split(NamedTuple):
    """Row numbers that a fit may see, and those it may not."""

    train: np.ndarray
    test: np.ndarray


def splits(kernel: Kernel, sample: Sample, chip: Any) -> dict[str, Split]:
    """Return the splits that a sample supports: random, family, largest."""
    count = len(sample.measured)
    order = np.random.default_rng(SEED).permutation(count)
    held = int(count * HELD_PART)
    answer = {"random": Split(np.sort(order[held:]), np.sort(order[:held]))}
    masks = {"family": sample.family, "largest": _largest(kernel, sample, chip)}
    for name, mask in masks.items():
        if FAMILY_BOUNDS[0] < mask.mean() < FAMILY_BOUNDS[1]:
            answer[name] = Split(np.flatnonzero(~mask), np.flatnonzero(mask))
    return answer


def _largest(kernel: Kernel, sample: Sample, chip: Any) -> np.ndarray:
    """Return the rows of the most work: by the ideal roofline, or by message size."""
    if "nbytes" in sample.shape._fields:
        return np.asarray(sample.shape.nbytes) >= LARGE_MESSAGE
    work = kernel.work(sample.shape)
    bandwidth = chip.memory_bandwidth if work.bandwidth is None else work.bandwidth
    ideal = np.maximum(work.flop / chip.matrix[work.peak], work.nbytes / bandwidth)
    return np.asarray(ideal > np.quantile(ideal, 1 - LARGEST_PART))


def subset(rows: np.ndarray, most: int, seed: int = SEED) -> np.ndarray:
    """Return at most `most` of the rows, drawn without replacement."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
