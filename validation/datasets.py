"""Measured kernel tables: where they are, how they are cleaned and why, what shape a row is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
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
    tuned: np.ndarray  # rows whose kernel is not a known mistuned one
    provenance: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class Dataset:
    """One measured table: its backend of reference, its cleaning, its rows as shapes."""

    op: str
    table: str
    keys: tuple[str, ...]  # columns that identify a measurement
    backends: Mapping[str, str]  # number format -> reference backend
    why: str  # of that choice
    select: Mapping[str, Mapping[str, str]]  # number format -> column values
    shape: Callable[[pd.DataFrame, Any, str], Any]
    family: Callable[[pd.DataFrame], Any]
    family_means: str
    rules: tuple[Rule, ...] = ()
    latency: str = "latency"
    unit: float = MILLISECOND
    main_kernel_only: bool = True
    by_system: Mapping[str, str] = field(default_factory=dict)  # by system, or system/format
    rivals: tuple[str, ...] = ()  # backends that tell which groups of rows are mistuned
    rival_format: str = ""  # a wider format that must not be faster either
    group: tuple[str, ...] = ()  # columns of such a group


MISTUNED = 1.4


def load(dataset: Dataset, chip: Any, dtype: str, *, system: str = "", backend: str | None = None,
         source: Path | None = None) -> Sample | None:  # fmt: skip
    """Return the cleaned rows, or None where the table, backend or format was not measured.

    `source` is a CSV or parquet file with the same columns instead of the package's table.
    Raises SpecError where that file lacks a column or a positive time.
    """
    if source is not None:
        return _own(dataset, chip, dtype, source)
    declared = (dataset.by_system.get(f"{system}/{dtype}"), dataset.by_system.get(system))
    backend = backend or declared[0] or declared[1] or dataset.backends[dtype]
    path = _table(dataset.table, system, backend)
    if path is None:
        return None
    frame, kernel = _clean(dataset, path, dtype, {"system": system, "backend": backend})
    if frame.empty:
        return None
    slot = f"{TABLES} {TABLES_VERSION} {path.parent.parent.name}/{path.parent.name}"
    return _sample(dataset, (frame, chip, dtype), f"{slot} {kernel}".strip(),
                   _tuned(dataset, frame, dtype))  # fmt: skip


def _own(dataset: Dataset, chip: Any, dtype: str, source: Path) -> Sample | None:
    """Return the rows of a user's file."""
    if dtype not in dataset.select:
        known = ", ".join(dataset.select)
        raise SpecError(f"no tables of {dataset.op} in {dtype!r}; there are {known}")
    try:
        frame, _ = _clean(dataset, source, dtype, {"system": "", "backend": "own"})
        if frame.empty:
            return None
        sample = _sample(dataset, (frame, chip, dtype), source.name, np.ones(len(frame), bool))
    except KeyError as error:
        columns = ", ".join([*dataset.select[dtype], *dataset.keys, dataset.latency])
        raise SpecError(f"{source} has no column {error}; {dataset.op} takes {columns}") from None
    if not np.all(np.isfinite(sample.measured) & (sample.measured > 0)):
        raise SpecError(f"{source}: {dataset.latency} is not a positive time in every row")
    return sample


def _sample(
    dataset: Dataset, rows: tuple[pd.DataFrame, Any, str], provenance: str, tuned: np.ndarray
) -> Sample:
    """Return cleaned rows as shapes and seconds."""
    frame, chip, dtype = rows
    measured = frame[dataset.latency].to_numpy(float) * dataset.unit
    family = np.asarray(dataset.family(frame), bool)
    shape = dataset.shape(frame, chip, dtype)
    return Sample(shape, measured, family, tuned, provenance, frame)


def _clean(
    dataset: Dataset, path: Path, dtype: str, origin: Mapping[str, str], *, main: bool = True
) -> tuple[pd.DataFrame, str]:
    """Return the rows that the rules keep, one per key, and the kernel they ran."""
    frame = _read(path)
    for column, value in dataset.select[dtype].items():
        frame = frame[frame[column] == value]
    frame = frame.assign(**origin)
    for rule in dataset.rules:
        frame = frame[np.asarray(rule.keep(frame), bool)] if len(frame) else frame
    kernel = ""
    if main and dataset.main_kernel_only and "kernel_source" in frame and len(frame):
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


def _tuned(dataset: Dataset, frame: pd.DataFrame, dtype: str) -> np.ndarray:
    """Return rows of groups that no rival runs MISTUNED times faster in the median.

    Rivals are the other backends, and every backend in the wider `rival_format`.
    """
    if not dataset.rivals:
        return np.ones(len(frame), bool)
    system, backend = frame["system"].iloc[0], frame["backend"].iloc[0]
    best = pd.Series(np.inf, index=frame.index)
    formats = dict.fromkeys((dtype, dataset.rival_format or dtype))
    for rival, form in product(dataset.rivals, formats):
        path = _table(dataset.table, system, rival)
        if (rival, form) == (backend, dtype) or path is None:
            continue
        origin = {"system": system, "backend": rival}
        other, _ = _clean(dataset, path, form, origin, main=False)
        if len(other):
            keys = list(dataset.keys)
            both = frame[keys].merge(other[[*keys, dataset.latency]], on=keys, how="left")
            best = np.minimum(best, both[dataset.latency].fillna(np.inf).to_numpy())
    slower = (frame[dataset.latency] / best).where(np.isfinite(best))
    median = slower.groupby([frame[name] for name in dataset.group]).transform("median")
    return ~(median > MISTUNED).to_numpy()


def _table(table: str, system: str, backend: str) -> Path | None:
    """Return the table of the current slot, else that of the newest version below it."""
    slot = CURRENT_BY_SYSTEM.get(system, {}).get(backend, CURRENT[backend])
    found = sorted(
        measured_tables().glob(f"{system}/*/{backend}/*/{table}_perf.parquet"),
        key=lambda path: _order(path.parent.name),
    )
    usable = [path for path in found if _order(path.parent.name) <= _order(slot)]
    return usable[-1] if usable else None


def _order(version: str) -> tuple[tuple[int, ...], int]:
    """Return a sort key of "1.3.0rc20" or "0.5.6.post2"."""
    base, _, candidate = version.partition("rc")
    numbers = tuple(int(part) for part in base.split(".") if part.isdigit())
    return numbers, int(candidate) if candidate else 10**6


def take(shape: Any, rows: Any) -> Any:
    """Return the shape of a subset of rows."""
    columns = {name: value for name, value in shape._asdict().items() if np.ndim(value)}
    return shape._replace(**{name: value[rows] for name, value in columns.items()})
