"""The committed captures beside their predictions: errors by step and by class of operator."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from frontends.traces import load_trace
from hardware import Platform, SpecError, load_platform
from opgraph.cost import LEVELS
from validation.compare import Comparison, compare
from validation.replay import predict, step_of

TRACES = Path(__file__).parent / "traces"
CHIP = TRACES / "epyc-zen5-core.toml"
TEXT = Path(__file__).parent / "captured_text.md"
# of the levels, that whose errors are told by class
TOLD = "corrected"
_MILLI = 1e3


@dataclass(frozen=True)
class Captured:
    """One captured step and its predictions, by level of fidelity.

    step_time: seconds without the profiler, which makes every operator a little longer.
    """

    name: str
    step_time: float
    levels: dict[str, Comparison]

    def error(self, level: str) -> float:
        """Predicted over measured time of the step, less 1."""
        return float(self.levels[level].predicted.time) / self.step_time - 1


def captured(folder: Path = TRACES, chip: Path = CHIP) -> list[Captured]:
    """Every capture in a folder, predicted on a chip.

    Raises
    ------
    SpecError : no capture is there, or one that is none.
    """
    paths = sorted(folder.glob("*.json.gz"))
    if not paths:
        raise SpecError(f"{folder}: no capture (.json.gz) is there")
    platform = load_platform(str(chip))
    return [_captured(path, platform) for path in paths]


def _captured(path: Path, platform: Platform) -> Captured:
    measured = load_trace(path)
    step = step_of(measured.source)
    levels = {level: compare(measured, predict(step, platform, cost=level)) for level in LEVELS}
    return Captured(step.name, float(measured.source["step_ms"]) / _MILLI, levels)


def steps(captures: Iterable[Captured]) -> pd.DataFrame:
    """A row for each step: ``step measured_ms`` and the error of each level, in percent."""
    return pd.DataFrame(
        {"step": each.name, "measured_ms": each.step_time * _MILLI,
         **{level: 100 * each.error(level) for level in LEVELS}}
        for each in captures
    )  # fmt: skip


def summary(captures: Iterable[Captured]) -> pd.DataFrame:
    """For each level, over all steps: geometric mean of the error, bias, worst; in percent.

    The geometric mean of max(p/m, m/p) less 1, p predicted and m measured; bias: that of p/m.
    """
    found = list(captures)
    rows = []
    for level in LEVELS:
        logs = np.log([1 + each.error(level) for each in found])
        mean, bias, worst = np.mean(np.abs(logs)), np.mean(logs), np.max(np.abs(logs))
        rows.append({"level": level, "steps": len(found),
                     **{name: 100 * float(np.expm1(value)) for name, value in
                        (("geomean_error", mean), ("bias", bias), ("worst", worst))}})  # fmt: skip
    return pd.DataFrame(rows)


def classes(captures: Iterable[Captured], level: str = TOLD) -> pd.DataFrame:
    """Where the time goes, and the error comes from: for each class, the mean over steps.

    Columns: ``class``; ``share`` of the measured (profiled) step; ``predicted`` over measured;
    ``missing``: what is measured and not predicted, as a part of the step; in percent.
    """
    frames = [pd.DataFrame(each.levels[level].classes()[:-1]) for each in captures]
    for frame in frames:
        frame["missing"] = frame["share"] * (1 - frame["predicted_us"] / frame["measured_us"])
        frame["class"] = frame["class"].map(_plain)
    together = pd.concat([frame.groupby("class")[["share", "missing"]].sum() for frame in frames])
    mean = together.groupby("class").sum() / len(frames)
    mean["predicted"] = 1 - mean["missing"] / mean["share"]
    ordered = 100 * mean.sort_values("share", ascending=False)
    return ordered[["share", "predicted", "missing"]].reset_index()


def _plain(name: str) -> str:
    """Classes by their first kind: a norm and a view are a norm."""
    kind = name.partition(" + ")[0]
    return {"gemm": "products", "norm": "norm, rotary", "rotary": "norm, rotary"}.get(kind, kind)


def report(captures: list[Captured]) -> str:
    """The report as Markdown."""
    text = TEXT.read_text(encoding="utf-8")
    parts: dict[str, Any] = {
        "summary": summary(captures), "steps": steps(captures), "classes": classes(captures),
    }  # fmt: skip
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", _markdown(part))
    return text.replace("{{level}}", TOLD)


def _markdown(frame: pd.DataFrame) -> str:
    head = f"| {' | '.join(map(str, frame.columns))} |\n|{'---|' * len(frame.columns)}"
    rows = (f"| {' | '.join(map(_cell, row))} |" for row in frame.itertuples(index=False))
    return "\n".join((head, *rows))


def _cell(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
