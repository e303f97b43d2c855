"""Errors in few words: per class and split over all chips, and what misses its target."""

from typing import Any

import numpy as np
import pandas as pd

from opgraph.kernels import KERNELS, LEVELS

SPLITS = ("random", "family", "largest", "chip", "chip+30")
_BF16 = ("a100-sxm-80gb", "h100-sxm", "h200-sxm", "b200-sxm", "gb200")

# class → greatest geomean error in percent by split and level: what the project asks of itself
_ATTENTION = {"family.tiled": 9.0, "family.corrected": 5.0, "largest.corrected": 10.0,
              "chip.tiled": 20.0}  # fmt: skip
_DECODE = {"family.tiled": 18.0, "family.corrected": 9.0, "largest.corrected": 12.0,
           "chip.tiled": 30.0}  # fmt: skip
_MLA = {"family.tiled": 11.0, "family.corrected": 9.0, "largest.corrected": 11.0}
_LIBRARY = {"random.tiled": 9.0, "family.tiled": 15.0, "largest.tiled": 12.0}
_CUSTOM = {"random.tiled": 10.0, "largest.tiled": 20.0}
TARGETS = {
    "attention_prefill": _ATTENTION,
    "attention_decode": _DECODE,
    "mla_prefill": _MLA,
    "mla_decode": _MLA,
    "moe": {"family.tiled": 20.0, "family.corrected": 15.0, "largest.corrected": 25.0},
    "all_reduce": _LIBRARY,
    "all_gather": _LIBRARY,
    "reduce_scatter": _LIBRARY,
    "all_to_all": _LIBRARY,
    "custom_all_reduce": _CUSTOM,
    "dispatch": _CUSTOM,
    "combine": _CUSTOM,
}
GEMM_BF16 = {"family.tiled": 8.0, "family.corrected": 5.5, "largest.corrected": 8.0,
             "chip.tiled": 14.0, "chip+30.tiled": 10.0}  # fmt: skip
GEMM_NARROW = {"family.tiled": 13.0, "family.corrected": 8.5, "largest.corrected": 10.0}


def targets(op: str, chip: str, dtype: str) -> dict[str, float]:
    """Return the targets of one case in percent, by "split.level"."""
    if op != "gemm":
        return TARGETS.get(op, {})
    if dtype == "bf16":
        return GEMM_BF16 if chip in _BF16 else {}
    return GEMM_NARROW if dtype in ("fp8", "fp8_block", "nvfp4") else {}


def summary(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row per class and split: the median error of all chips and formats by level.

    Beside the levels stand the peers' way, which is to interpolate the table, and the noise floor
    of the measurements. `worst` names the case with the largest error at the class's best level.
    """
    rows = []
    for (op, split), part in table.groupby(["op", "split"], sort=False):
        by_level = part.groupby("level")["geomean_error"].median()
        best = part[part["level"] == _best(str(op), part)]
        worst = best.iloc[int(best["geomean_error"].argmax())]
        rows.append(
            {
                "op": op,
                "split": split,
                "cases": len(best),
                **{level: _figure(by_level.get(level)) for level in (*LEVELS, "interpolated")},
                "noise": _figure(part["noise"].median()),
                "worst": f"{worst['geomean_error']:.1f} ({worst['chip']} {worst['dtype']})",
            }
        )
    order = {name: place for place, name in enumerate((*KERNELS, *SPLITS))}
    return sorted(rows, key=lambda row: (order[str(row["op"])], order[str(row["split"])]))


def missed(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the errors above their target, per class, split and level."""
    rows: list[dict[str, Any]] = []
    for record in table.to_dict("records"):
        row = {str(name): value for name, value in record.items()}
        goal = targets(row["op"], row["chip"], row["dtype"]).get(f"{row['split']}.{row['level']}")
        if goal is not None and row["geomean_error"] > goal:
            rows.append({**row, "target": goal})
    return rows


def _best(op: str, part: pd.DataFrame) -> str:
    """Return the best level that a class has in a split."""
    upto = LEVELS[: LEVELS.index(KERNELS[op].level("corrected")) + 1]
    return next(level for level in reversed(upto) if level in set(part["level"]))


def _figure(value: float | None) -> str:
    """Return a percentage in three digits, or a dash."""
    return (
        "–"
        if value is None or np.isnan(value)
        else f"{value:.0f}"
        if value >= 100
        else f"{value:.1f}"
    )
