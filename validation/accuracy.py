"""The table of errors: operator class × chip × format × level × split, on rows never fitted."""

import tomllib
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from opgraph.kernels import Calibration, price
from validation.calibrate import Case, Fits, cases, gaps, model_of, stored, travelling
from validation.chips import MEASURED
from validation.classes import CLASSES
from validation.conformal import CHIP, Ends, Gaps, coverage, read_ends
from validation.datasets import take
from validation.extras import needed
from validation.files import EVIDENCE, SCORES
from validation.fitting import Prior, fit_parameters
from validation.peers import interpolated, noise
from validation.splits import subset

INTERPOLATED = "interpolated"
UPPER = 0.9  # quantile of the p90 error
ANCHORS = 30  # measured points of a chip that was never fitted
ANCHOR_SPREAD = 0.3  # spread of its parameters around the transferred ones, in ln
CHIP_ROWS = 4000
PLOTTED = 150  # shapes of a case in a plot


def errors(gap: np.ndarray) -> dict[str, float]:
    """Return the error measures in percent of ln(measured / predicted)."""
    part = 100 * np.abs(np.expm1(-gap))
    return {
        "n": len(gap),
        "geomean_error": 100 * float(np.expm1(np.mean(np.abs(gap)))),
        "median_ape": float(np.median(part)),
        "mape": float(np.mean(part)),
        "p90_ape": float(np.quantile(part, UPPER)),
        "bias": 100 * float(np.expm1(np.mean(-gap))),
    }


def held_out(case: Case, fits: Fits) -> Gaps:
    """Return ln(measured / predicted) of held-out rows, by split and level.

    Among the levels of the random split is what peers do, INTERPOLATED.
    """
    answer = {
        name: gaps(case, model_of(case, fits, name), split.test)
        for name, split in case.splits.items()
    }
    between = interpolated(case, case.splits["random"])
    if len(between):
        answer["random"][INTERPOLATED] = between
    return answer


def other_chips(case: Case, fits: Fits) -> Gaps:
    """Return the same with parameters of other generations: as they are, and with few points."""
    if fits.transferred is None:
        return {}
    kernel = CLASSES[case.op].kernel
    everything = np.arange(len(case.sample.measured))
    test = subset(everything, CHIP_ROWS, seed=2)
    anchors = subset(np.setdiff1d(everything, test), ANCHORS, seed=3)
    shape, measured = take(case.sample.shape, test), case.sample.measured[test]

    def found(tiled: Any, *levels: str) -> dict[str, np.ndarray]:
        moved = fits.transferred
        assert moved is not None  # noqa: S101
        model = Calibration("", moved.calibrated, tiled, None, {})
        return {level: np.log(measured / price(kernel, shape, case.chip, level, model).time)
                for level in levels}  # fmt: skip

    answer = {CHIP: found(fits.transferred.tiled, "ideal", *travelling(kernel))}
    if len(anchors) == ANCHORS and "tiled" in kernel.levels:
        few, times = take(case.sample.shape, anchors), case.sample.measured[anchors]
        nearer = fit_parameters(
            lambda params: kernel.tiled(few, case.chip, params).time, times, kernel.parameters,
            prior=Prior(fits.transferred.tiled, ANCHOR_SPREAD),
        )  # fmt: skip
        answer["chip+30"] = found(nearer, "tiled")
    return answer


def rows_of(case: Case, found: Gaps, coverage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the table's rows of one case."""
    head = {"op": case.op, "chip": case.chip_name, "dtype": case.dtype}
    floor = noise(case)
    return [
        {**head, "level": level, "split": split, **errors(gap),
         "coverage": coverage.get(level, {}).get(split), "noise": floor}
        for split, by_level in found.items() for level, gap in by_level.items()
    ]  # fmt: skip


class Checked(NamedTuple):
    """One case computed again: its rows of the table, and a few held-out shapes to plot."""

    op: str
    chip: str
    rows: list[dict[str, Any]]
    measured: np.ndarray  # seconds
    predicted: np.ndarray  # at the best level


def check(case: Case, fits: Fits, ends: Ends) -> Checked:
    """Return the errors of a case with stored parameters and quantiles of scores."""
    found = {**held_out(case, fits), **other_chips(case, fits)}
    rows = rows_of(case, found, coverage(case, fits, found, ends))
    shown = subset(np.arange(len(case.splits["random"].test)), PLOTTED)
    measured = case.sample.measured[case.splits["random"].test][shown]
    best = CLASSES[case.op].kernel.level("corrected")
    predicted = measured * np.exp(-found["random"][best][shown])
    return Checked(case.op, case.chip_name, rows, measured, predicted)


def recompute(
    ops: Iterable[str] = tuple(CLASSES), chips: Iterable[str] = tuple(MEASURED), *,
    dtypes: Iterable[str] | None = None, folder: Path = EVIDENCE,
    track: Callable[[list[Any]], Iterable[Any]] = iter,
) -> list[Checked]:  # fmt: skip
    """Return the errors from stored parameters and measured rows; only residuals are refitted.

    `track` wraps the list of what is to be done, to show how far it is. Raises SpecError where
    an optional package is missing.
    """
    needed("scipy")
    answer = []
    ends = read_ends(folder / SCORES)
    wanted = None if dtypes is None else set(dtypes)
    for op, chip in track(list(product(ops, chips))):
        path = folder / f"{chip}.toml"
        data = tomllib.loads(path.read_text(encoding="utf-8"))["kernels"].get(op, {})
        answer += [check(case, stored(case, data[case.dtype]), ends[op])
                   for case in (cases(op, [chip]) if data else ())
                   if case.dtype in data and (wanted is None or case.dtype in wanted)]  # fmt: skip
    return answer


def table_of(checked: Iterable[Checked]) -> pd.DataFrame:
    """Return the rows of all cases as one table."""
    return pd.DataFrame([row for each in checked for row in each.rows])
