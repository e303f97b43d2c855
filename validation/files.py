"""Calibration files: parameters with their provenance, residual tables, and the evidence.

`hardware/data/calibration` holds what predictions use, `validation/fits` the parameters that
never saw some rows, by which every error is computed again.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import hardware
from opgraph.kernels.calibration import calibration_arrays
from opgraph.kernels.interval import Seen, seen
from validation.calibrate import Case, Fits, Pool, fit_corrected
from validation.classes import CLASSES
from validation.toml import dump

CALIBRATION = Path(hardware.__file__).parent / "data" / "calibration"
EVIDENCE = Path(__file__).parent / "fits"
TABLE = "accuracy.csv"
SCORES = "scores.toml"


def entry(case: Case, fits: Fits, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the TOML says of one case; `found` are its intervals and errors."""
    return {
        "kind": "measured",
        "data": case.sample.provenance,
        "rows": len(case.sample.measured),
        "longest": _seen(case).longest,
        "held_out": {name: f"{len(split.test)} rows: {_meaning(case, name)}"
                     for name, split in case.splits.items()},
        "calibrated": asdict(fits.calibrated["all"]),
        "tiled": asdict(fits.tiled["all"]),
        **found,
    }  # fmt: skip


def transfer_entry(members: list[Case], pool: Pool, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the TOML says of parameters that no chip has to itself."""
    chips = ", ".join(case.chip_name for case in members)
    return {
        "kind": "transferred",
        "data": f"{members[0].sample.provenance.split('/')[0]} and others, of {chips}",
        "rows": sum(len(case.sample.measured) for case in members),
        "calibrated": asdict(pool.calibrated),
        "tiled": asdict(pool.tiled),
        **found,
    }


def _meaning(case: Case, split: str) -> str:
    """Say which rows a split holds out."""
    large = "messages of 64 MB and more" if "nbytes" in case.sample.shape._fields else (
        "the 15 % of most work")  # fmt: skip
    return {"random": "one in five at random", "largest": large}.get(
        split, CLASSES[case.op].dataset.family_means)  # fmt: skip


def evidence(case: Case, fits: Fits) -> dict[str, Any]:
    """Return the parameters that never saw some rows, by which the errors are recomputed."""
    parts = {
        name: {"tiled": asdict(fits.tiled[name]), "calibrated": asdict(fits.calibrated[name]),
               "scatter": fits.scatter[name]}
        for name in case.splits
    }  # fmt: skip
    if fits.transferred is None:
        return parts
    moved = {"tiled": asdict(fits.transferred.tiled),
             "calibrated": asdict(fits.transferred.calibrated),
             "scatter": fits.transferred.scatter}  # fmt: skip
    return {**parts, "transferred": moved}


def arrays_of(case: Case, fits: Fits) -> dict[str, np.ndarray]:
    """Return the residual tables of the final fit of one case, and the sizes that it has seen."""
    residual = fit_corrected(case, case.rows("all"), fits.tiled["all"])
    return calibration_arrays(case.op, case.dtype, residual, _seen(case))


def _seen(case: Case) -> Seen:
    """Return what the final fit has seen."""
    return seen(CLASSES[case.op].kernel, case.sample.shape, case.chip)


def write_parameters(path: Path, entries: Mapping[str, Any]) -> None:
    """Write a TOML of one chip; classes and formats that were not fitted now stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kernels = tomllib.loads(path.read_text(encoding="utf-8"))["kernels"] if path.exists() else {}
    for op, formats in entries.items():
        kernels[op] = {**kernels.get(op, {}), **formats}
    head = "# kernel fits, written by `opgraph calibrate`: do not edit\n"
    text = head + dump({"chip": path.stem, "kernels": dict(sorted(kernels.items()))})
    path.write_text(text, encoding="utf-8")


def write_tables(path: Path, cases: Iterable[tuple[str, str]], arrays: Mapping[str, Any]) -> None:
    """Write the residual tables of one chip; those of cases not fitted now stay."""
    kept = dict(np.load(path)) if path.exists() else {}
    gone = {f"{op}/{dtype}" for op, dtype in cases}
    kept = {key: value for key, value in kept.items() if "/".join(key.split("/")[:2]) not in gone}
    np.savez_compressed(path, **dict(sorted({**kept, **arrays}.items())))


def write_errors(path: Path, table: pd.DataFrame) -> None:
    """Write the table of errors over the rows of the same classes and chips in a file."""
    if path.exists():
        kept, keys = pd.read_csv(path), ["op", "chip"]
        same = pd.MultiIndex.from_frame(kept[keys]).isin(pd.MultiIndex.from_frame(table[keys]))
        table = pd.concat([kept[~same], table], ignore_index=True)
    table = table.sort_values(["op", "chip", "dtype"], kind="stable")
    table.to_csv(path, index=False, float_format="%.2f", lineterminator="\n")
