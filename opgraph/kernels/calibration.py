"""Calibrations as files: a TOML of parameters and provenance, residual tables beside it."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opgraph.kernels.chip import KernelChip
from opgraph.kernels.interval import Band, Seen, widened
from opgraph.kernels.kernel import Kernel, KernelTime
from opgraph.kernels.residual import Residual
from opgraph.kernels.smooth_roofline import SmoothRoofline, roofline, smooth_roofline

TERM, NAME = "|", "/"  # separators of residual keys: op/dtype/knots/feature, op/dtype/table/a|b


# files of parameters for chips that nobody measured, by `kind_of`
TRANSFERS = ("transfer.toml", "transfer-gddr.toml")


@dataclass(frozen=True)
class Calibration:
    """One operator class on one chip in one number format.

    `bands` are by level and relation to what the fit has seen (`interval.RELATIONS`); parameters
    that come from other chips have seen nothing.
    """

    provenance: str  # measured or transferred, with the data set
    calibrated: SmoothRoofline
    tiled: Any  # the kernel's own parameters
    residual: Residual | None
    bands: Mapping[str, Mapping[str, Band]]
    seen: Seen | None = None


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


def interval(
    kernel: Kernel, shape: Any, chip: KernelChip, level: str, fit: Calibration, *,
    alien: Any = False,
) -> Band:  # fmt: skip
    """Return the factors on a price between which 80 % of measurements lie, shape by shape.

    `alien` says where the shape or the chip is not of the kind that was fitted (another format,
    other heads, figures that nobody has measured).
    """
    bands = fit.bands[kernel.level(level)]
    moved = bands["transferred"]
    if fit.seen is None or np.all(alien):
        return moved
    band = widened(bands, *fit.seen.relation(kernel, shape, chip))
    if not np.any(alien):
        return band
    return Band(np.where(alien, moved.low, band.low), np.where(alien, moved.high, band.high))


def load_calibration(
    path: Path, kernels: Mapping[str, Kernel]
) -> dict[tuple[str, str], Calibration]:
    """Return the calibrations in a TOML file, by (op, number format)."""
    data = tomllib.loads(path.read_text())
    tables = path.with_suffix(".npz")
    arrays = dict(np.load(tables)) if tables.exists() else {}
    return {
        (op, dtype): _calibration(entry, kernels[op], _arrays(arrays, op, dtype))
        for op, formats in data["kernels"].items() if op in kernels
        for dtype, entry in formats.items()
    }  # fmt: skip


def kind_of(kernel: Kernel, chip: KernelChip, shape: Any = None) -> bool:
    """Return the kind of a chip for a kernel, which tells whose parameters it may take.

    Chips with GDDR run other kernels than those with stacked memory; of what is sent over links
    it matters whether these pass a host, those of *shape* or else of the chip. All measured
    chips with GDDR are behind one, and no other.
    """
    if not kernel.over_links:
        return chip.has_gddr
    return bool(getattr(shape if shape is not None else chip, "through_host", False))


def _calibration(
    entry: Mapping[str, Any], kernel: Kernel, arrays: Mapping[str, np.ndarray]
) -> Calibration:
    """Return one entry of the file."""
    bands = {level: {name: Band(*ends) for name, ends in by_relation.items()}
             for level, by_relation in entry["interval"].items()}  # fmt: skip
    known = Seen(arrays["sizes"], entry["longest"]) if "longest" in entry else None
    return Calibration(
        f"{entry['kind']}: {entry['data']}", SmoothRoofline(**entry["calibrated"]),
        kernel.parameters(**entry["tiled"]), _residual(arrays), bands, known,
    )  # fmt: skip


def _arrays(arrays: Mapping[str, np.ndarray], op: str, dtype: str) -> dict[str, np.ndarray]:
    """Return the arrays of one entry."""
    head = f"{op}{NAME}{dtype}{NAME}"
    return {key.removeprefix(head): value for key, value in arrays.items() if key.startswith(head)}


def _residual(mine: Mapping[str, np.ndarray]) -> Residual | None:
    """Return the residual tables of one entry."""
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
    return Residual(knots, tables) if tables else None


def calibration_arrays(
    op: str, dtype: str, residual: Residual | None, known: Seen
) -> dict[str, np.ndarray]:
    """Return what `_calibration` reads: half precision is a thousandth of the correction."""
    head = f"{op}{NAME}{dtype}{NAME}"
    sizes = {f"{head}sizes": np.asarray(known.sizes, np.float32)}
    if residual is None:
        return sizes
    knots = {
        f"{head}knots{NAME}{name}": np.asarray(value, np.float32)
        for name, value in residual.knots.items()
    }
    tables = {
        f"{head}table{NAME}{TERM.join(term)}": np.asarray(value, np.float16)
        for term, value in residual.tables.items()
    }
    return {**sizes, **knots, **tables}
