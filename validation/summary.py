"""Errors in few words: per class and split over all chips, and what misses its target."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from opgraph.kernels import KERNELS, LEVELS

SPLITS = ("random", "family", "largest", "chip", "chip+30")


class Goal(NamedTuple):
    """What the project asks of itself: the greatest geomean error in percent of a class.

    limits: by split and level. dtypes, chips: those that it is asked of, all where empty.
    """

    name: str
    ops: tuple[str, ...]
    limits: Mapping[tuple[str, str], float]
    dtypes: tuple[str, ...] = ()
    chips: tuple[str, ...] = ()

    def asks(self, op: str, chip: str, dtype: str) -> bool:
        """Tell whether the goal is for a case."""
        return (op in self.ops and (not self.dtypes or dtype in self.dtypes)
                and (not self.chips or chip in self.chips))  # fmt: skip


GOALS = (
    Goal("products in bf16", ("gemm",), {
        ("family", "tiled"): 8.0, ("family", "corrected"): 5.5, ("largest", "corrected"): 8.0,
        ("chip", "tiled"): 14.0, ("chip+30", "tiled"): 10.0,
    }, ("bf16",), ("a100-sxm-80gb", "h100-sxm", "h200-sxm", "b200-sxm", "gb200")),
    Goal("products in fp8, fp8 block, nvfp4", ("gemm",), {
        ("family", "tiled"): 13.0, ("family", "corrected"): 8.5, ("largest", "corrected"): 10.0,
    }, ("fp8", "fp8_block", "nvfp4")),
    Goal("prefill attention", ("attention_prefill",), {
        ("family", "tiled"): 9.0, ("family", "corrected"): 5.0, ("largest", "corrected"): 10.0,
        ("chip", "tiled"): 20.0,
    }),
    Goal("decode attention", ("attention_decode",), {
        ("family", "tiled"): 18.0, ("family", "corrected"): 9.0, ("largest", "corrected"): 12.0,
        ("chip", "tiled"): 30.0,
    }),
    Goal("latent attention", ("mla_prefill", "mla_decode"), {
        ("family", "tiled"): 11.0, ("family", "corrected"): 9.0, ("largest", "corrected"): 11.0,
    }),
    Goal("experts", ("moe",), {
        ("family", "tiled"): 20.0, ("family", "corrected"): 15.0, ("largest", "corrected"): 25.0,
    }),
    Goal("library collectives", ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"), {
        ("random", "tiled"): 9.0, ("family", "tiled"): 15.0, ("largest", "tiled"): 12.0,
    }),
    Goal("custom collectives", ("custom_all_reduce", "dispatch", "combine"), {
        ("random", "tiled"): 10.0, ("largest", "tiled"): 20.0,
    }),
)  # fmt: skip


def goals(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row per goal, split and level: the target and what is reached.

    The error is the geomean over all held-out rows of the class; beside it stand the median of
    the cases (chips and formats) and how many of them are above the target.
    """
    rows = []
    for goal in GOALS:
        asked = [goal.asks(*case) for case in zip(table["op"], table["chip"], table["dtype"],
                                                  strict=True)]  # fmt: skip
        mine = table[asked]
        for (split, level), limit in goal.limits.items():
            part = mine[(mine["split"] == split) & (mine["level"] == level)]
            if part.empty:
                continue
            logs = np.log1p(part["geomean_error"] / 100)
            rows.append(
                {
                    "class": goal.name,
                    "split": split,
                    "level": level,
                    "target": f"{limit:g}",
                    "all rows": _figure(100 * np.expm1(np.average(logs, weights=part["n"]))),
                    "median case": _figure(part["geomean_error"].median()),
                    "cases above": f"{(part['geomean_error'] > limit).sum()} of {len(part)}",
                }
            )
    return rows


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
    """Return the cases with an error above their target, per class, split and level."""
    rows: list[dict[str, Any]] = []
    for record in table.to_dict("records"):
        row = {str(name): value for name, value in record.items()}
        for goal in GOALS:
            limit = goal.limits.get((row["split"], row["level"]), np.inf)
            if goal.asks(row["op"], row["chip"], row["dtype"]) and row["geomean_error"] > limit:
                rows.append({**row, "target": limit})
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
