"""The table of errors: operator class × chip × format × level × split, on rows never fitted."""

import tomllib
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from opgraph.kernels import Calibration, price
from validation.calibrate import Case, Fits, cases, predictions, stored
from validation.chips import MEASURED
from validation.classes import CLASSES
from validation.datasets import take
from validation.extras import needed
from validation.files import EVIDENCE
from validation.fitting import Prior, fit_parameters
from validation.splits import subset

Gaps = dict[str, dict[str, np.ndarray]]  # ln(measured / predicted) by split and level
Bands = dict[str, list[float]]  # factors on a time between which 80 % of rows lie, by level

INTERVAL = (0.1, 0.9)
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
        "p90_ape": float(np.quantile(part, INTERVAL[1])),
        "bias": 100 * float(np.expm1(np.mean(-gap))),
    }


def held_out(case: Case, fits: Fits) -> Gaps:
    """Return ln(measured / predicted) of held-out rows."""
    return {
        name: {level: np.log(case.sample.measured[split.test] / time)
               for level, time in predictions(case, fits, name).items()}
        for name, split in case.splits.items()
    }  # fmt: skip


def other_chips(case: Case, fits: Fits) -> Gaps:
    """Return the same with parameters of other generations: as they are, and with few points."""
    if fits.transferred is None:
        return {}
    kernel = CLASSES[case.op].kernel
    everything = np.arange(len(case.sample.measured))
    test = subset(everything, CHIP_ROWS, seed=2)
    anchors = subset(np.setdiff1d(everything, test), ANCHORS, seed=3)
    shape, measured = take(case.sample.shape, test), case.sample.measured[test]

    def gaps(tiled: Any, *levels: str) -> dict[str, np.ndarray]:
        moved = fits.transferred
        assert moved is not None  # noqa: S101
        model = Calibration("", moved.calibrated, tiled, None, {}, {})
        return {level: np.log(measured / price(kernel, shape, case.chip, level, model).time)
                for level in levels if level in kernel.levels}  # fmt: skip

    answer = {"chip": gaps(fits.transferred.tiled, "ideal", "calibrated", "tiled")}
    if len(anchors) == ANCHORS and "tiled" in kernel.levels:
        few, times = take(case.sample.shape, anchors), case.sample.measured[anchors]
        found = fit_parameters(
            lambda params: kernel.tiled(few, case.chip, params).time, times, kernel.parameters,
            prior=Prior(fits.transferred.tiled, ANCHOR_SPREAD),
        )  # fmt: skip
        answer["chip+30"] = gaps(found, "tiled")
    return answer


def intervals(gaps: Gaps) -> tuple[Bands, dict[str, dict[str, float]]]:
    """Return 80 % factors by level from every other held-out row, and their coverage of the rest.

    Rows come from the random and the family split, in equal parts.
    """
    found: Bands = {}
    coverage: dict[str, dict[str, float]] = {}
    near: list[str] = [name for name in ("random", "family") if name in gaps]
    for level in gaps[near[0]]:
        parts = {name: gaps[name][level] for name in near}
        least = min(len(part) for part in parts.values())
        drawn = {name: subset(np.arange(len(part)), 2 * least)[::2]
                 for name, part in parts.items()}  # fmt: skip
        learn = np.concatenate([part[drawn[name]] for name, part in parts.items()])
        low, high = np.quantile(learn, INTERVAL)
        found[level] = [float(np.exp(low)), float(np.exp(high))]
        coverage[level] = {}
        for name, by_level in gaps.items():
            rest = np.delete(by_level[level], drawn.get(name, np.array([], int)))
            coverage[level][name] = 100 * float(np.mean((rest >= low) & (rest <= high)))
    return found, coverage


def beyond(gaps: Gaps, near: Bands) -> Bands:
    """Return the factors for shapes unlike the fitted ones: as wide as any split needs."""
    answer = {}
    for level, band in near.items():
        ends = [np.exp(np.quantile(by_level[level], INTERVAL)) for by_level in gaps.values()]
        low, high = zip(band, *ends, strict=True)
        answer[level] = [float(min(low)), float(max(high))]
    return answer


def rows_of(case: Case, gaps: Gaps, coverage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the table's rows of one case."""
    head = {"op": case.op, "chip": case.chip_name, "dtype": case.dtype}
    return [
        {**head, "level": level, "split": split, **errors(gap),
         "coverage": coverage.get(level, {}).get(split)}
        for split, by_level in gaps.items() for level, gap in by_level.items()
    ]  # fmt: skip


class Checked(NamedTuple):
    """One case computed again: its rows of the table, and a few held-out shapes to plot."""

    op: str
    chip: str
    rows: list[dict[str, Any]]
    measured: np.ndarray  # seconds
    predicted: np.ndarray  # at the best level


def check(case: Case, fits: Fits) -> Checked:
    """Return the errors of a case with stored parameters."""
    gaps = held_out(case, fits)
    rows = rows_of(case, {**gaps, **other_chips(case, fits)}, intervals(gaps)[1])
    shown = subset(np.arange(len(case.splits["random"].test)), PLOTTED)
    measured = case.sample.measured[case.splits["random"].test][shown]
    best = CLASSES[case.op].kernel.level("corrected")
    predicted = measured * np.exp(-gaps["random"][best][shown])
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
    wanted = None if dtypes is None else set(dtypes)
    for op, chip in track(list(product(ops, chips))):
        path = folder / f"{chip}.toml"
        data = tomllib.loads(path.read_text(encoding="utf-8"))["kernels"].get(op, {})
        answer += [check(case, stored(case, data[case.dtype]))
                   for case in (cases(op, [chip]) if data else ())
                   if case.dtype in data and (wanted is None or case.dtype in wanted)]  # fmt: skip
    return answer


def table_of(checked: Iterable[Checked]) -> pd.DataFrame:
    """Return the rows of all cases as one table."""
    return pd.DataFrame([row for each in checked for row in each.rows])
