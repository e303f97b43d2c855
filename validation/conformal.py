"""Scores: held-out errors in units of their expected size, and their quantiles by class.

The expected size of an error is the scatter of the fit on the rows that it has seen, times one
plus the octaves that a shape lies outside of them. The quantiles of all chips make the intervals
that are shipped; the coverage of a chip's rows is counted with those of the *other* chips, which
no row of its own has touched (other generations where a chip takes others' parameters).
"""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opgraph.kernels import LEVELS
from opgraph.kernels.interval import COVERED, RELATIONS, seen
from validation.calibrate import Case, Fits
from validation.chips import MEASURED
from validation.classes import CLASSES
from validation.datasets import take
from validation.splits import subset
from validation.toml import dump

Gaps = Mapping[str, Mapping[str, np.ndarray]]  # ln(measured / predicted) by split and level
Ends = Mapping[str, Mapping[str, Mapping[str, list[float]]]]  # by level, relation, chip or ALL

ALL = "all"
CHIP = "chip"  # the split that holds out a whole generation
SHARE = 400  # rows of a case and split that count, so that long tables do not outvote others
FEW = 10  # with fewer, a case says nothing of a relation


class Standing(NamedTuple):
    """How the held-out rows of a split stand to its fit."""

    relation: np.ndarray  # index into RELATIONS
    size: Mapping[str, np.ndarray]  # expected size of the error in ln, by level


def standing(case: Case, fits: Fits, split: str) -> Standing:
    """Return how the held-out rows of a split stand to its fit."""
    if split == CHIP:
        assert fits.transferred is not None  # noqa: S101
        moved = np.array(len(RELATIONS) - 1)
        return Standing(moved, {k: np.array(v) for k, v in fits.transferred.scatter.items()})
    kernel = CLASSES[case.op].kernel
    train, test = (take(case.sample.shape, rows) for rows in case.splits[split])
    relation, octaves = seen(kernel, train, case.chip).relation(kernel, test, case.chip)
    return Standing(relation, {k: v * (1 + octaves) for k, v in fits.scatter[split].items()})


def ends(scored: Iterable[tuple[Case, Fits, Gaps]]) -> Ends:
    """Return the quantiles of the scores of one class: of all chips, and without each of them."""
    parts: dict[tuple[str, str], list[tuple[str, np.ndarray]]] = {}
    for case, fits, gaps in scored:
        for split, by_level in _judged(case, gaps):
            relation, size = standing(case, fits, split)
            for level in size.keys() & by_level.keys():
                score = by_level[level] / size[level]
                for index, name in enumerate(RELATIONS):
                    mine = score[np.broadcast_to(relation == index, score.shape)]
                    if len(mine) >= FEW:
                        part = (case.chip_name, mine[subset(np.arange(len(mine)), SHARE)])
                        parts.setdefault((level, name), []).append(part)
    answer: dict[str, dict[str, dict[str, list[float]]]] = {}
    for (level, name), found in sorted(parts.items()):
        whose = {ALL: _quantiles(part for _, part in found)}
        for chip in dict.fromkeys(chip for chip, _ in found):
            whose[chip] = _quantiles(part for other, part in found if _apart(name, other, chip))
        answer.setdefault(level, {})[name] = whose
    return answer


def _judged(case: Case, gaps: Gaps) -> list[tuple[str, Mapping[str, np.ndarray]]]:
    """Return the splits that intervals speak of: a chip measured in part has none of its own."""
    return [(split, gap) for split, gap in gaps.items() if split in (*case.splits, CHIP)]


def _apart(relation: str, one: str, other: str) -> bool:
    """Tell whether rows of one chip may judge the other's."""
    if relation == RELATIONS[-1]:
        return MEASURED[one].generation != MEASURED[other].generation
    return one != other


def _quantiles(parts: Iterable[np.ndarray]) -> list[float]:
    """Return the scores that 80 % lie between; a price is never outside its own interval."""
    low, high = np.quantile(np.concatenate([*parts, np.zeros(1)]), COVERED)
    return [min(float(low), 0.0), max(float(high), 0.0)]


def coverage(case: Case, fits: Fits, gaps: Gaps, found: Ends) -> dict[str, dict[str, float]]:
    """Return the percentage of held-out rows inside their intervals, by level and split."""
    answer: dict[str, dict[str, float]] = {}
    for split, by_level in _judged(case, gaps):
        relation, size = standing(case, fits, split)
        for level in size.keys() & by_level.keys():
            quantiles = [_of(found, level, name, case.chip_name) for name in RELATIONS]
            low, high = np.moveaxis(np.array(quantiles)[relation], -1, 0) * size[level]
            inside = (by_level[level] >= low) & (by_level[level] <= high)
            answer.setdefault(level, {})[split] = 100 * float(np.mean(inside))
    return answer


def bands(scatter: Mapping[str, float], moved: Mapping[str, float] | None, found: Ends) -> Any:
    """Return the factors of a calibration's intervals, by level and relation.

    `scatter` is that of the chip's own fit, empty for parameters that no chip has to itself;
    `moved` that of the other chips' parameters.
    """
    answer: dict[str, dict[str, list[float]]] = {}
    for level, size in scatter.items():
        answer[level] = {name: _factors(_of(found, level, name), size) for name in RELATIONS[:-1]}
    moved = moved or scatter
    for level in scatter or {**moved, LEVELS[-1]: 0.0}:
        kept = level if level in moved else list(moved)[-1]  # no residual travels
        ends = _factors(_of(found, kept, RELATIONS[-1]), moved[kept])
        answer.setdefault(level, {})[RELATIONS[-1]] = ends
    return answer


def _of(found: Ends, level: str, relation: str, chip: str = ALL) -> list[float]:
    """Return the quantiles that may judge a chip's rows; of a relation never met, the widest."""
    by_relation = found[level]
    if relation in by_relation:
        return by_relation[relation].get(chip, by_relation[relation][ALL])
    return by_relation[max(by_relation, key=lambda name: np.ptp(by_relation[name][ALL]))][ALL]


def _factors(quantiles: list[float], size: float) -> list[float]:
    """Return scores as factors on a time."""
    return [float(np.exp(end * size)) for end in quantiles]


def read_ends(path: Path) -> dict[str, Ends]:
    """Return the stored quantiles, by class."""
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_ends(path: Path, op: str, found: Ends) -> None:
    """Store the quantiles of a class."""
    head = "# quantiles of held-out errors, written by `opgraph calibrate`: do not edit\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + dump(dict(sorted({**read_ends(path), op: found}.items()))), "utf-8")
