"""Fit, score and write: what `opgraph calibrate` does."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hardware import SpecError, load_chip
from opgraph.kernels import KERNELS, LEVELS, TRANSFERS, kernel_chip, kind_of, load_calibration
from validation.accuracy import (
    ANCHOR_SPREAD,
    errors,
    held_out,
    other_chips,
    rows_of,
)
from validation.calibrate import (
    Case,
    Fits,
    Pool,
    cases,
    first_pass,
    fit_calibrated,
    fit_case,
    fit_tiled,
    pooled,
    scatter,
)
from validation.chips import MEASURED
from validation.classes import CLASSES
from validation.conformal import CHIP, Ends, Gaps, bands, coverage, ends, read_ends, write_ends
from validation.datasets import load
from validation.extras import needed
from validation.files import (
    CALIBRATION,
    EVIDENCE,
    SCORES,
    TABLE,
    arrays_of,
    entry,
    evidence,
    transfer_entry,
    write_errors,
    write_parameters,
    write_tables,
)
from validation.fitting import Prior
from validation.splits import splits, subset

LEAST_ROWS = 50  # of a user's table: fewer leave too few to hold out
CHIP_SHARE = 500  # rows of each chip in the intervals of transferred parameters

Track = Callable[[list[Any]], Iterable[Any]]


class Scored(NamedTuple):
    """One fitted case with its errors on rows never fitted."""

    case: Case
    fits: Fits
    gaps: Gaps


def calibrate(
    ops: Iterable[str] = tuple(CLASSES), chips: Iterable[str] = tuple(MEASURED), *,
    out: Path = CALIBRATION, proofs: Path = EVIDENCE, track: Track = iter,
) -> pd.DataFrame:  # fmt: skip
    """Fit classes on chips, write calibrations and evidence to two folders, return the errors.

    Parameters for chips that nobody measured are written when all chips are fitted.
    """
    needed("scipy")
    chosen, rows = list(chips), []
    for op in track(list(ops)):
        members = cases(op)
        first = first_pass(members)
        scored = [score(case, fit_case(case, members, first))
                  for case in members if case.chip_name in chosen]  # fmt: skip
        whole = set(chosen) == set(MEASURED)
        if whole:
            write_ends(proofs / SCORES, op, ends(scored))
        found = read_ends(proofs / SCORES)[op]
        for chip in chosen:
            write([each for each in scored if each.case.chip_name == chip], found, out, proofs)
        rows += [row for each in scored for row in rows_in(each, found)]
        if whole:
            write_transfer(op, scored, found, out)
    table = pd.DataFrame(rows)
    write_errors(proofs / TABLE, table)
    return table


def calibrate_own(
    chip: str, op: str, dtype: str, table: Path, *, out: Path = CALIBRATION
) -> pd.DataFrame:
    """Fit one class on a user's table of one chip, write its calibration, return the errors.

    The parameters start from, and are drawn to, those transferred from other chips. Raises
    SpecError where the table lacks columns or rows.
    """
    needed("scipy")
    machine, kernel = kernel_chip(load_chip(chip)), CLASSES[op].kernel
    sample = load(CLASSES[op].dataset, machine, dtype, source=table)
    if sample is None or len(sample.measured) < LEAST_ROWS:
        found = 0 if sample is None else len(sample.measured)
        raise SpecError(f"{table} has {found} usable rows of {op} in {dtype}; {LEAST_ROWS} suffice")
    case = Case(op, machine.name, dtype, machine, sample, splits(kernel, sample, machine))
    pool = load_calibration(CALIBRATION / TRANSFERS[kind_of(kernel, machine)], KERNELS)
    start = pool.get((op, dtype))
    prior = Prior(start.tiled, ANCHOR_SPREAD) if start else None
    sets = {"all": np.arange(len(sample.measured)),
            **{name: split.train for name, split in case.splits.items()}}  # fmt: skip
    fits = Fits({name: fit_tiled(case, seen, prior) for name, seen in sets.items()},
                {name: fit_calibrated(case, seen) for name, seen in sets.items()},
                None, {})  # fmt: skip
    fits = fits._replace(scatter={name: scatter(case, fits, name) for name in sets})
    scored, quantiles = score(case, fits), read_ends(EVIDENCE / SCORES)[op]
    write([scored], quantiles, out)
    return pd.DataFrame(rows_in(scored, quantiles))


def score(case: Case, fits: Fits) -> Scored:
    """Return the errors of a fitted case."""
    return Scored(case, fits, {**held_out(case, fits), **other_chips(case, fits)})


def rows_in(scored: Scored, found: Ends) -> list[dict[str, Any]]:
    """Return the table's rows of a fitted case."""
    case, fits, gaps = scored
    return rows_of(case, gaps, coverage(case, fits, gaps, found))


def write(scored: list[Scored], found: Ends, out: Path, proofs: Path | None = None) -> None:
    """Write the calibration of one chip, and its evidence."""
    if not scored:
        return
    entries: dict[str, Any] = {}
    proof: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for case, fits, gaps in scored:
        moved = fits.transferred.scatter if fits.transferred else None
        extra = {"interval": bands(fits.scatter["all"], moved, found), "errors": _summary(gaps)}
        entries.setdefault(case.op, {})[case.dtype] = entry(case, fits, extra)
        proof.setdefault(case.op, {})[case.dtype] = evidence(case, fits)
        arrays.update(arrays_of(case, fits))
    chip = scored[0].case.chip_name
    write_parameters(out / f"{chip}.toml", entries)
    write_tables(out / f"{chip}.npz", [(s.case.op, s.case.dtype) for s in scored], arrays)
    if proofs is not None:
        write_parameters(proofs / f"{chip}.toml", proof)


def _summary(gaps: Gaps) -> dict[str, float]:
    """Return the geomean errors in percent, by split and level."""
    return {f"{split}.{level}": errors(gap)["geomean_error"]
            for split, by_level in gaps.items() for level, gap in by_level.items()
            if level in LEVELS}  # fmt: skip


def write_transfer(op: str, scored: list[Scored], found: Ends, out: Path) -> None:
    """Write the parameters for chips that nobody measured, with the errors of unseen chips.

    Each kind of chip has its own (`kind_of`).
    """
    kernel = CLASSES[op].kernel
    for index, name in enumerate(TRANSFERS):
        kind = [each for each in scored if kind_of(kernel, each.case.chip) == index]
        entries = {}
        for dtype in dict.fromkeys(each.case.dtype for each in kind):
            same = [each for each in kind if each.case.dtype == dtype and CHIP in each.gaps]
            if same:
                pool = pooled(op, [each.case for each in same])
                entries[dtype] = transfer_entry(
                    [each.case for each in same], pool, _unseen(same, pool, found)
                )
        write_parameters(out / name, {op: entries})


def _unseen(same: list[Scored], pool: Pool, found: Ends) -> dict[str, Any]:
    """Return intervals and errors of a pool.

    A kind of one generation was foretold by the other kind: those errors are not the pool's, but
    say how little its own scatter does.
    """
    if len({MEASURED[each.case.chip_name].generation for each in same}) == 1:
        pools = [pool, *(each.fits.transferred for each in same if each.fits.transferred)]
        scatter = {level: max(each.scatter[level] for each in pools) for level in pool.scatter}
        return {"interval": bands({}, scatter, found)}
    extra = {"interval": bands({}, pool.scatter, found)}
    unseen = _joined([each.gaps[CHIP] for each in same])
    means = {CHIP: "every row of one generation at a time"}
    return {"held_out": means, **extra, "errors": _summary({CHIP: unseen})}


def _joined(parts: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the rows of several chips, in equal parts, by level."""
    least = min(CHIP_SHARE, *(len(next(iter(part.values()))) for part in parts))
    return {level: np.concatenate([part[level][subset(np.arange(len(part[level])), least)]
                                   for part in parts])
            for level in parts[0]}  # fmt: skip
