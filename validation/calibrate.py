"""Fit every operator class on every chip, each split apart.

Two passes. The first fits each chip alone from the declared starts. The second draws each chip
towards what the other chips found (their median, weighted by their spread), which keeps a
parameter that the seen rows do not determine at a value that hardware like it has.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from hardware import load_chip
from opgraph.kernels import Calibration, Kernel, KernelChip, kernel_chip, price
from opgraph.kernels.residual import Residual
from opgraph.kernels.smooth_roofline import SmoothRoofline, smooth_roofline
from validation.chips import MEASURED, alike
from validation.classes import CLASSES
from validation.datasets import CURRENT, Sample, current, load, take
from validation.fitting import SPREAD, Prior, fit_parameters, fit_residual
from validation.splits import Split, splits, subset

FIT_ROWS = 1500
RESIDUAL_ROWS = 20000
SCATTER_ROWS = 4000
POOL_ROWS = 300  # of each chip, for the parameters that travel
FIRST_SPREAD = 1.0  # spread of the prior of the first pass, in ln
ONE_CHIP = 0.2  # least spread of a prior that one other chip gives, in ln
FREE_SPREAD = 3.0  # of the four numbers of the smooth roofline: as good as none


class Case(NamedTuple):
    """One operator class on one chip in one number format, with its rows."""

    op: str
    chip_name: str
    dtype: str
    chip: KernelChip
    sample: Sample
    splits: Mapping[str, Split]

    def rows(self, name: str) -> np.ndarray:
        """Return the rows that a fit of this name sees: those of a split, or "all"."""
        return np.arange(len(self.sample.measured)) if name == "all" else self.splits[name].train


class Pool(NamedTuple):
    """Parameters of several chips at once."""

    tiled: Any
    calibrated: SmoothRoofline
    scatter: Mapping[str, float]


class Fits(NamedTuple):
    """All parameters of one case: by split, and those of every other generation of chips."""

    tiled: Mapping[str, Any]  # "all" and each split
    calibrated: Mapping[str, SmoothRoofline]
    transferred: Pool | None
    scatter: Mapping[str, Mapping[str, float]]  # mean |ln error| of the rows fitted, by level


def cases(op: str, chips: Iterable[str] = tuple(MEASURED)) -> list[Case]:
    """Return every measured case of a class."""
    kernel, dataset = CLASSES[op]
    answer = []
    for name in chips:
        chip = kernel_chip(load_chip(name))
        for dtype in dataset.select:
            sample = load(dataset, chip, dtype, system=MEASURED[name].system)
            if sample is not None:
                answer.append(Case(op, name, dtype, chip, sample, splits(kernel, sample, chip)))
    return answer


def stored(case: Case, data: Mapping[str, Any]) -> Fits:
    """Return the fits that a file of evidence holds for a case."""
    kind = CLASSES[case.op].kernel.parameters
    moved = data.get("transferred")
    return Fits(
        {name: kind(**data[name]["tiled"]) for name in case.splits},
        {name: SmoothRoofline(**data[name]["calibrated"]) for name in case.splits},
        Pool(kind(**moved["tiled"]), SmoothRoofline(**moved["calibrated"]), moved["scatter"])
        if moved else None,
        {name: data[name]["scatter"] for name in case.splits},
    )  # fmt: skip


def fit_tiled(case: Case, rows: np.ndarray, prior: Prior | None = None) -> Any:
    """Return the physical parameters of one case on some rows."""
    kernel = CLASSES[case.op].kernel
    rows = subset(rows, FIT_ROWS)
    shape, measured = take(case.sample.shape, rows), case.sample.measured[rows]
    prior = prior or Prior(kernel.parameters(), FIRST_SPREAD)
    return fit_parameters(
        lambda params: kernel.tiled(shape, case.chip, params).time, measured, kernel.parameters,
        prior=prior,
    )  # fmt: skip


def fit_calibrated(case: Case, rows: np.ndarray) -> SmoothRoofline:
    """Return the four numbers of the smooth roofline."""
    kernel = CLASSES[case.op].kernel
    rows = subset(rows, FIT_ROWS)
    work = kernel.work(take(case.sample.shape, rows))
    found: SmoothRoofline = fit_parameters(
        lambda params: smooth_roofline(work, case.chip, params).time, case.sample.measured[rows],
        SmoothRoofline, prior=Prior(SmoothRoofline(), FREE_SPREAD),
    )  # fmt: skip
    return found


def fit_corrected(case: Case, rows: np.ndarray, tiled: Any) -> Residual | None:
    """Return the residual of the physics on some rows, if the class has one."""
    kernel = CLASSES[case.op].kernel
    if "corrected" not in kernel.levels:
        return None
    rows = subset(rows, RESIDUAL_ROWS)
    shape = take(case.sample.shape, rows)
    features = {
        name: np.broadcast_to(value, rows.shape)
        for name, value in kernel.features(shape, case.chip).items()
    }
    time = kernel.tiled(shape, case.chip, tiled).time
    return fit_residual(features, np.log(case.sample.measured[rows] / time), kernel.terms)


def relatives(case: Case, found: Mapping[tuple[str, str], Any]) -> Prior | None:
    """Return the median and spread of what the other chips found, for the same format.

    Formats with fewer than two other chips lean on the other chips' other formats. Those of one
    chip alone say little of how far apart chips are: their spread is at least ONE_CHIP. Where a
    library chooses kernels by generation, `generations` says whose fits count.
    """
    kernel, dataset = CLASSES[case.op]
    kin = {
        key: fit
        for key, fit in found.items()
        if key[0] != case.chip_name and alike(key[0], case.chip_name)
    }
    if dataset.tuner:
        others = generations(case, kin)
    else:
        same = [fit for (_, dtype), fit in kin.items() if dtype == case.dtype]
        others = same if len(same) > 1 else list(kin.values())
    least = ONE_CHIP if len({chip for chip, _ in kin}) == 1 else SPREAD[0]
    return Prior.of(kernel.parameters, others, least) if len(others) > 1 else None


def generations(case: Case, kin: Mapping[tuple[str, str], Any]) -> list[Any]:
    """Return the fits that speak for a library that tunes itself to each generation of chips.

    They are those of the chip's own generation, in all formats; where there are not two, one of
    each generation, so that four chips of one do not outvote the others. For another version of
    the library than the current one there are none.
    """
    kernel, dataset = CLASSES[case.op]
    mine = MEASURED[case.chip_name]
    if current(mine.system, dataset.tuner) != CURRENT[dataset.tuner]:
        return []
    by_generation: dict[str, list[Any]] = {}
    for (chip, _), fit in kin.items():
        by_generation.setdefault(MEASURED[chip].generation, []).append(fit)
    siblings = by_generation.get(mine.generation, [])
    if len(siblings) > 1:
        return siblings
    return [Prior.of(kernel.parameters, fits).centre for fits in by_generation.values()]


def pooled(op: str, members: list[Case]) -> Pool:
    """Return one parameter set for all rows of several cases."""
    kernel = CLASSES[op].kernel
    parts = []
    for case in members:
        rows = subset(np.arange(len(case.sample.measured)), POOL_ROWS)
        parts.append((take(case.sample.shape, rows), case.chip, case.sample.measured[rows]))
    measured = np.concatenate([part[2] for part in parts])
    tiled = fit_parameters(
        lambda params: np.concatenate([kernel.tiled(s, c, params).time for s, c, _ in parts]),
        measured, kernel.parameters, prior=Prior(kernel.parameters(), FIRST_SPREAD),
    )  # fmt: skip
    works = [(kernel.work(s), c) for s, c, _ in parts]
    calibrated = fit_parameters(
        lambda params: np.concatenate([smooth_roofline(w, c, params).time for w, c in works]),
        measured, SmoothRoofline, prior=Prior(SmoothRoofline(), FREE_SPREAD),
    )  # fmt: skip
    model = Calibration("", calibrated, tiled, None, {})
    times = {
        level: np.concatenate([price(kernel, s, c, level, model).time for s, c, _ in parts])
        for level in travelling(kernel)
    }
    return Pool(tiled, calibrated, {level: float(np.mean(np.abs(np.log(measured / time))))
                                    for level, time in times.items()})  # fmt: skip


def travelling(kernel: Kernel) -> list[str]:
    """Return the levels that other chips' parameters have: a residual does not travel."""
    return [level for level in kernel.levels if level not in ("ideal", "corrected")]


def transferred(members: list[Case], case: Case) -> Pool | None:
    """Return the parameters of every other generation for this case, or None without any."""
    mine = MEASURED[case.chip_name].generation
    others = [
        other
        for other in members
        if other.dtype == case.dtype and MEASURED[other.chip_name].generation != mine
    ]
    kin = [other for other in others if alike(other.chip_name, case.chip_name)]
    return pooled(case.op, kin or others) if others else None


def first_pass(members: list[Case]) -> dict[tuple[str, str], Any]:
    """Return the physical parameters of each case fitted alone, by chip and format."""
    return {
        (case.chip_name, case.dtype): fit_tiled(case, np.arange(len(case.sample.measured)))
        for case in members
    }


def fit_case(case: Case, members: list[Case], first: Mapping[tuple[str, str], Any]) -> Fits:
    """Return all parameters of one case."""
    prior = relatives(case, first)
    everything = np.arange(len(case.sample.measured))
    sets = {"all": everything, **{name: split.train for name, split in case.splits.items()}}
    tiled = {name: fit_tiled(case, rows, prior) for name, rows in sets.items()}
    calibrated = {name: fit_calibrated(case, rows) for name, rows in sets.items()}
    fits = Fits(tiled, calibrated, transferred(members, case), {})
    return fits._replace(scatter={name: scatter(case, fits, name) for name in sets})


def model_of(case: Case, fits: Fits, name: str) -> Calibration:
    """Return the model of a split (or "all"): stored parameters, its residual fitted again."""
    residual = fit_corrected(case, case.rows(name), fits.tiled[name])
    return Calibration("", fits.calibrated[name], fits.tiled[name], residual, {})


def gaps(case: Case, model: Calibration, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return ln(measured / predicted) of some rows, by level."""
    kernel, shape = CLASSES[case.op].kernel, take(case.sample.shape, rows)
    return {
        level: np.log(
            case.sample.measured[rows] / price(kernel, shape, case.chip, level, model).time
        )
        for level in kernel.levels
    }


def scatter(case: Case, fits: Fits, name: str) -> dict[str, float]:
    """Return the mean |ln error| of the rows that a fit has seen, by level."""
    found = gaps(case, model_of(case, fits, name), subset(case.rows(name), SCATTER_ROWS))
    return {level: float(np.mean(np.abs(gap))) for level, gap in found.items() if level != "ideal"}
