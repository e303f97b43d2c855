"""Measured kernel tables: where they are, how they are cleaned and why, what shape a row is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hardware import SpecError
from validation.extras import TABLES, TABLES_VERSION, measured_tables, needed

MILLISECOND, MICROSECOND = 1e-3, 1e-6

# the queryable "current" slots of systems/query_versions.yaml in aiconfigurator-core 0.12.0
CURRENT = {"trtllm": "1.3.0rc20", "sglang": "0.5.14", "vllm": "0.24.0", "nccl": "2.29.2"}
CURRENT_BY_SYSTEM = {
    "a100_sxm": {"trtllm": "1.0.0", "sglang": "0.5.10", "vllm": "0.14.0", "nccl": "2.27.3"},
    "l40s": {"nccl": "2.27.3"},
}


class Rule(NamedTuple):
    """Rows to keep, and why the others go."""

    name: str
    reason: str
    keep: Callable[[pd.DataFrame], Any]


class Sample(NamedTuple):
    """Cleaned rows of one operator class on one chip in one number format."""

    shape: Any
    measured: np.ndarray  # seconds
    family: np.ndarray  # rows of the held-out shape family
    provenance: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class Dataset:
    """One measured table: the backends to choose from, its cleaning, its rows as shapes.

    Of the backends that time the same work, the reference is the *first* where it has the format,
    else the one that took least time over the shapes that they share. Shapes for which its kernel
    is mistuned, by the others' times, are left out. No prediction and no error takes part.
    """

    op: str
    table: str
    keys: tuple[str, ...]  # columns that identify a measurement
    load: str  # the one of them that grows with the load, for shapes that are otherwise the same
    backends: tuple[str, ...]  # those that time the same work
    why: str  # of these
    select: Mapping[str, Mapping[str, str]]  # number format -> column values
    shape: Callable[[pd.DataFrame, Any, str], Any]
    family: Callable[[pd.DataFrame], Any]
    family_means: str
    rules: tuple[Rule, ...] = ()
    latency: str = "latency"
    unit: float = MILLISECOND
    main_kernel_only: bool = True
    first: str = ""  # the backend taken wherever it has the format
    group: tuple[str, ...] = ()  # columns within which a kernel is tuned or not
    tuner: str = ""  # the backend whose version chooses kernels and protocols by the generation
    wider: str = ""  # a format in which the same work may not take much less time either


WIDE = 0.27  # a backend with fewer than this part of the rows is no candidate: every fourth shape
MISTUNED = 1.4  # times that another backend takes, or a wider format


def load(dataset: Dataset, chip: Any, dtype: str, *, system: str = "",
         source: Path | None = None) -> Sample | None:  # fmt: skip
    """Return the cleaned rows, or None where the table or format was not measured.

    `source` is a CSV or parquet file with the same columns instead of the package's table.
    Raises SpecError where that file lacks a column or a positive time.
    """
    if source is not None:
        return _own(dataset, chip, dtype, source)
    frames = _frames(dataset, system, dtype)
    if not frames:
        return None
    wider = {}
    if dataset.wider and dtype != dataset.wider:
        wider = _frames(dataset, system, dataset.wider)
    frame = reference(dataset, frames, wider)
    if frame.empty:
        return None
    slots = ", ".join(frame["slot"].value_counts().index)
    return _sample(dataset, (frame, chip, dtype), f"{TABLES} {TABLES_VERSION} {slots}")


def reference(
    dataset: Dataset, frames: Mapping[str, pd.DataFrame], wider: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """Return the tuned rows of the first backend; of the fastest one, where that has too few."""
    chosen = frames[dataset.first] if dataset.first in frames else fastest(dataset, frames)
    others = {backend: frame for backend, frame in frames.items() if frame is not chosen}
    rows = tuned(dataset, tuned(dataset, chosen, others), wider) if dataset.group else chosen
    if len(rows) < WIDE * len(chosen) and others:
        return reference(dataset, others, wider)
    return rows


def _frames(dataset: Dataset, system: str, dtype: str) -> dict[str, pd.DataFrame]:
    """Return the cleaned rows of each backend that measured the format."""
    frames = {}
    for backend in dataset.backends:
        path = _table(dataset.table, system, backend)
        if path is None:
            continue
        frame, kernel = _clean(dataset, path, dtype, {"system": system, "backend": backend})
        slot = f"{path.parent.parent.name}/{path.parent.name} {kernel}".strip()
        frames[backend] = frame.assign(slot=slot)
    return {backend: frame for backend, frame in frames.items() if len(frame)}


def fastest(dataset: Dataset, frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of the backend that takes least time over the shapes that all measured.

    A backend with few rows is no candidate.
    """
    most = max(len(frame) for frame in frames.values())
    wide = [frame for frame in frames.values() if len(frame) >= WIDE * most]
    rows = pd.concat(wide, ignore_index=True)
    keys = [key for key in dataset.keys if key in rows]
    times = rows.groupby(keys, dropna=False)["backend"].transform("size")
    shared = times == len(wide)
    total = rows[shared].groupby("backend")[dataset.latency].sum()
    return frames[str(total.idxmin())] if len(total) else wide[0]


def tuned(dataset: Dataset, rows: pd.DataFrame, rivals: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of groups that are not MISTUNED: slower than the fastest of their *rivals*
    by that factor in the median.
    """
    if not rivals:
        return rows
    keys, time = list(dataset.keys), dataset.latency
    best = pd.concat(list(rivals.values()))[[*keys, time]].groupby(keys, as_index=False).min()
    both = rows[keys].merge(best, on=keys, how="left")
    slower = rows[time].to_numpy() / both[time]
    median = slower.groupby([rows[name].to_numpy() for name in dataset.group]).transform("median")
    kept: pd.DataFrame = rows[~(median > MISTUNED).to_numpy()]
    return kept.reset_index(drop=True)


def _own(dataset: Dataset, chip: Any, dtype: str, source: Path) -> Sample | None:
    """Return the rows of a user's file."""
    if dtype not in dataset.select:
        known = ", ".join(dataset.select)
        raise SpecError(f"no tables of {dataset.op} in {dtype!r}; there are {known}")
    try:
        frame, _ = _clean(dataset, source, dtype, {"system": "", "backend": "own"})
        if frame.empty:
            return None
        sample = _sample(dataset, (frame, chip, dtype), source.name)
    except KeyError as error:
        columns = ", ".join([*dataset.select[dtype], *dataset.keys, dataset.latency])
        raise SpecError(f"{source} has no column {error}; {dataset.op} takes {columns}") from None
    if not np.all(np.isfinite(sample.measured) & (sample.measured > 0)):
        raise SpecError(f"{source}: {dataset.latency} is not a positive time in every row")
    return sample


def _sample(dataset: Dataset, rows: tuple[pd.DataFrame, Any, str], provenance: str) -> Sample:
    """Return cleaned rows as shapes and seconds."""
    frame, chip, dtype = rows
    measured = frame[dataset.latency].to_numpy(float) * dataset.unit
    family = np.asarray(dataset.family(frame), bool)
    shape = dataset.shape(frame, chip, dtype)
    return Sample(shape, measured, family, provenance, frame)


def _clean(
    dataset: Dataset, path: Path, dtype: str, origin: Mapping[str, str]
) -> tuple[pd.DataFrame, str]:
    """Return the rows that the rules keep, one per key, and the kernel they ran."""
    frame = _read(path)
    for column, value in dataset.select[dtype].items():
        frame = frame[frame[column] == value]
    frame = frame.assign(**origin)
    for rule in dataset.rules:
        frame = frame[np.asarray(rule.keep(frame), bool)] if len(frame) else frame
    kernel = ""
    if dataset.main_kernel_only and "kernel_source" in frame and len(frame):
        kernel = str(frame["kernel_source"].value_counts().index[0])
        frame = frame[frame["kernel_source"] == kernel]
    keys = [key for key in dataset.keys if key in frame]
    columns = list(dict.fromkeys([*keys, dataset.latency]))
    frame = frame[columns].groupby(keys, as_index=False, dropna=False).median()
    return frame.assign(**origin, kernel=kernel), kernel


def _read(path: Path) -> pd.DataFrame:
    """Return a table of any of the formats that there are."""
    if path.suffix == ".parquet":
        needed("pyarrow")
        return pd.read_parquet(path)
    try:
        return pd.read_csv(path)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise SpecError(f"{path} is not a CSV table: {error}") from None


def uncleaned(table: str, system: str, backend: str) -> pd.DataFrame:
    """Return all rows of a table that is there."""
    path = _table(table, system, backend)
    assert path is not None, (table, system, backend)  # noqa: S101
    return _read(path)


def _table(table: str, system: str, backend: str) -> Path | None:
    """Return the table of the current slot, else that of the newest version below it."""
    slot = current(system, backend)
    found = sorted(
        measured_tables().glob(f"{system}/*/{backend}/*/{table}_perf.parquet"),
        key=lambda path: _order(path.parent.name),
    )
    usable = [path for path in found if _order(path.parent.name) <= _order(slot)]
    return usable[-1] if usable else None


def current(system: str, backend: str) -> str:
    """Return the version whose table of a backend is taken on a system."""
    return CURRENT_BY_SYSTEM.get(system, {}).get(backend, CURRENT[backend])


def _order(version: str) -> tuple[tuple[int, ...], int]:
    """Return a sort key of "1.3.0rc20" or "0.5.6.post2"."""
    base, _, candidate = version.partition("rc")
    numbers = tuple(int(part) for part in base.split(".") if part.isdigit())
    return numbers, int(candidate) if candidate else 10**6


def take(shape: Any, rows: Any) -> Any:
    """Return the shape of a subset of rows."""
    columns = {name: value for name, value in shape._asdict().items() if np.ndim(value)}
    return shape._replace(**{name: value[rows] for name, value in columns.items()})
