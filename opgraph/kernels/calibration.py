"""Calibrations as files: a TOML of parameters and provenance, residual tables beside it."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opgraph.kernels.chip import KernelChip
from opgraph.kernels.kernel import LEVELS, Kernel, KernelTime
from opgraph.kernels.residual import Residual
from opgraph.kernels.smooth_roofline import SmoothRoofline, roofline, smooth_roofline

TERM, NAME = "|", "/"  # separators of residual keys: op/dtype/knots/feature, op/dtype/table/a|b


class Band(NamedTuple):
    """Factors on a time between which 80 % of the measurements lie."""

    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """One operator class on one chip in one number format.

    `bands` hold where shapes are like the measured ones, `beyond` where they are larger or
    otherwise unlike; both by level.
    """

    provenance: str  # measured or transferred, with the data set
    calibrated: SmoothRoofline
    tiled: Any  # the kernel's own parameters
    residual: Residual | None
    bands: Mapping[str, Band]
    beyond: Mapping[str, Band]


def price(kernel: Kernel, shape: Any, chip: KernelChip, level: str, fit: Calibration) -> KernelTime:
    """Return the time of one kernel at one level of fidelity, or the best below it that helps."""
    level = kernel.level(level)
    if level == "ideal":
        return roofline(kernel.work(shape), chip)
    if level == "calibrated":
        return smooth_roofline(kernel.work(shape), chip, fit.calibrated)
    time, limiter = kernel.tiled(shape, chip, fit.tiled)
    if level == "corrected" and fit.residual is not None:
        time = time * fit.residual.factor(kernel.features(shape, chip))
    return KernelTime(time, limiter)


def interval(kernel: Kernel, shape: Any, chip: KernelChip, level: str, fit: Calibration) -> Band:
    """Return the factors on a price between which 80 % of measurements lie, shape by shape.

    Within the fitted ranges that is the band of held-out rows, far beyond them the wider one of
    shapes that were held out because they were larger or of another family.
    """
    near, far = fit.bands[level], fit.beyond[level]
    if fit.residual is None:
        return near
    trust = fit.residual.trust(kernel.features(shape, chip))
    return Band(*(a**trust * b ** (1 - trust) for a, b in zip(near, far, strict=True)))


def load_calibration(
    path: Path, kernels: Mapping[str, Kernel]
) -> dict[tuple[str, str], Calibration]:
    """Return the calibrations in a TOML file, by (op, number format)."""
    data = tomllib.loads(path.read_text())
    tables = path.with_suffix(".npz")
    arrays = dict(np.load(tables)) if tables.exists() else {}
    return {
        (op, dtype): _calibration(entry, kernels[op], _residual(arrays, op, dtype))
        for op, formats in data["kernels"].items() if op in kernels
        for dtype, entry in formats.items()
    }  # fmt: skip


def _calibration(
    entry: Mapping[str, Any], kernel: Kernel, residual: Residual | None
) -> Calibration:
    """Return one entry of the file."""
    near = {level: Band(*entry["interval"][kernel.level(level)]) for level in LEVELS}
    wide = entry.get("beyond", entry["interval"])
    far = {level: Band(*wide[kernel.level(level)]) for level in LEVELS}
    return Calibration(
        f"{entry['kind']}: {entry['data']}", SmoothRoofline(**entry["calibrated"]),
        kernel.parameters(**entry["tiled"]), residual, near, far,
    )  # fmt: skip


def _residual(arrays: Mapping[str, np.ndarray], op: str, dtype: str) -> Residual | None:
    """Return the residual tables of one entry."""
    head = f"{op}{NAME}{dtype}{NAME}"
    mine = {key.removeprefix(head): value for key, value in arrays.items() if key.startswith(head)}
    if not mine:
        return None
    knots = {
        key.removeprefix(f"knots{NAME}"): value.astype(float)
        for key, value in mine.items()
        if key.startswith("knots")
    }
    tables = {
        tuple(key.removeprefix(f"table{NAME}").split(TERM)): value.astype(float)
        for key, value in mine.items()
        if key.startswith("table")
    }
    return Residual(knots, tables)


def residual_arrays(op: str, dtype: str, residual: Residual) -> dict[str, np.ndarray]:
    """Return what `_residual` reads: half precision is a thousandth of the correction."""
    head = f"{op}{NAME}{dtype}{NAME}"
    knots = {
        f"{head}knots{NAME}{name}": np.asarray(value, np.float32)
        for name, value in residual.knots.items()
    }
    tables = {
        f"{head}table{NAME}{TERM.join(term)}": np.asarray(value, np.float16)
        for term, value in residual.tables.items()
    }
    return {**knots, **tables}
