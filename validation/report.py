"""The accuracy report: `docs/accuracy.md` with its plots, written from the recomputed table."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from opgraph.kernels import KERNELS
from validation.accuracy import Checked, table_of
from validation.classes import CLASSES
from validation.extras import TABLES, TABLES_VERSION
from validation.parity import save_parity
from validation.summary import goals, missed, summary

TEXT = Path(__file__).parent / "accuracy_text.md"
# columns of the table of one class
_COLUMNS = (
    ("random", "calibrated"), ("random", "tiled"), ("random", "corrected"),
    ("random", "interpolated"),
    ("family", "calibrated"), ("family", "tiled"), ("family", "corrected"),
    ("largest", "calibrated"), ("largest", "tiled"), ("largest", "corrected"),
    ("chip", "tiled"), ("chip+30", "tiled"),
)  # fmt: skip


def save_report(path: Path, checked: list[Checked]) -> None:
    """Write the report, and one plot per class into the folder of its name beside it."""
    table = table_of(checked)
    plots = path.with_suffix("")
    plots.mkdir(exist_ok=True)
    for op in KERNELS:
        mine = [each for each in checked if each.op == op]
        if mine:
            save_parity(plots / f"{op}.png", op, mine)
    path.write_text(report(table, plots.name), encoding="utf-8")


def report(table: pd.DataFrame, plots: str) -> str:
    """Return the report as Markdown; `plots` is the folder of the pictures."""
    text = TEXT.read_text(encoding="utf-8")
    parts = {
        "data": f"{TABLES} {TABLES_VERSION}",
        "summary": _markdown(summary(table)),
        "coverage": _markdown(_coverage(table)),
        "goals": _markdown(goals(table)),
        "missed": _markdown(_misses(table)),
        "classes": "\n".join(_class(op, table, plots) for op in KERNELS if op in set(table["op"])),
    }
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    return text


def _class(op: str, table: pd.DataFrame, plots: str) -> str:
    """Return the section of one class: its data, its levels, each chip and format."""
    kernel, dataset = CLASSES[op]
    part = table[table["op"] == op]
    columns = [(s, lv) for s, lv in _COLUMNS
               if not part[(part["split"] == s) & (part["level"] == lv)].empty]  # fmt: skip
    rows = []
    for (chip, dtype), case in part.groupby(["chip", "dtype"], sort=False):
        found = case.set_index(["split", "level"])["geomean_error"]
        row: dict[str, Any] = {"chip": chip, "format": dtype, "held out": _counts(case)}
        row |= {f"{s} {lv}": f"{found[s, lv]:.1f}" if (s, lv) in found else "–"
                for s, lv in columns}  # fmt: skip
        row["noise"] = f"{case['noise'].iloc[0]:.1f}"
        rows.append(row)
    rules = "".join(f"- {rule.name}: {rule.reason}.\n" for rule in dataset.rules)
    rules = f"Rows left out:\n\n{rules}\n" if rules else ""
    return (
        f"### {op}\n\nLevels: {', '.join(kernel.levels)}. Table `{dataset.table}`; "
        f"{dataset.why}. Family held out: {dataset.family_means}.\n\n{rules}"
        f"{_markdown(rows)}\n\n![{op}: predicted against measured]({plots}/{op}.png)\n"
    )


def _counts(case: pd.DataFrame) -> str:
    """Return the rows held out at random."""
    return f"{case[case['split'] == 'random']['n'].iloc[0]:,}"


def _coverage(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the part of held-out rows inside the intervals, at the best level of each class.

    Each chip and format counts alike; in brackets the least and the greatest of them.
    """
    rows = []
    for op in dict.fromkeys(table["op"]):
        kernel = KERNELS[op]
        best = kernel.level("corrected")
        row: dict[str, Any] = {"class": op, "level": best}
        for split in ("random", "family", "largest", "chip"):
            level = kernel.level("tiled") if split == "chip" else best
            part = table[(table["op"] == op) & (table["level"] == level)
                         & (table["split"] == split)]["coverage"].dropna()  # fmt: skip
            row[split] = (
                f"{part.mean():.0f} % ({part.min():.0f}–{part.max():.0f})" if len(part) else "–"
            )
        rows.append(row)
    return rows


def _misses(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return what is above its target, cases of one class, split and level in one row."""
    found: dict[tuple[str, str, str, float], list[str]] = {}
    for row in missed(table):
        key = (row["op"], row["split"], row["level"], row["target"])
        found.setdefault(key, []).append(
            f"{row['chip']} {row['dtype']} {row['geomean_error']:.1f}")  # fmt: skip
    return [
        {"class": op, "split": split, "level": level, "target": f"{goal:g}",
         "above it": " · ".join(cases)}
        for (op, split, level, goal), cases in sorted(found.items())
    ]  # fmt: skip


def _markdown(rows: Iterable[dict[str, Any]]) -> str:
    """Return rows of equal keys as a Markdown table."""
    table = list(rows)
    if not table:
        return "None."
    lines = [list(table[0]), ["---"] * len(table[0])]
    lines += [[str(value) for value in row.values()] for row in table]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
