"""What the measurements themselves allow: their noise, and the peers' way, which is to interpolate.

Both go along the axis of the load (`Dataset.load`: rows of a product, tokens, bytes) through shapes
that are otherwise the same.
"""

import numpy as np

from validation.calibrate import Case
from validation.classes import CLASSES
from validation.splits import Split

NEAR = 2.5  # neighbours further apart than this factor say nothing of what lies between


def noise(case: Case) -> float:
    """Return the noise floor in percent: the mean |ln| by which a time leaves its neighbours'.

    That is from the straight line (in ln) between the next smaller and the next larger load, less
    what the neighbours' own noise adds; steps of tiles and waves are in it, so it is a bound. NaN
    where the sweep is too wide.
    """
    group, load = _axis(case)
    order = np.lexsort((load, group))
    group, load = group[order], load[order]
    time = np.log(case.sample.measured[order])
    middle = slice(1, -1)
    same = (group[:-2] == group[2:]) & (load[2:] - load[:-2] <= 2 * np.log(NEAR))
    part = (load[middle] - load[:-2]) / np.where(same, load[2:] - load[:-2], 1)
    line = (1 - part) * time[:-2] + part * time[2:]
    gap = np.abs(time[middle] - line) / np.sqrt(1 + part**2 + (1 - part) ** 2)
    return 100 * float(np.expm1(np.mean(gap[same]))) if same.any() else float("nan")


def interpolated(case: Case, split: Split) -> np.ndarray:
    """Return ln(measured / interpolated) of the held-out rows between two fitted neighbours.

    Linear in the load, as AIConfigurator 0.12 interpolates its tables (`perf_interp.rs`).
    """
    group, load = _axis(case)
    train = split.train[np.lexsort((load[split.train], group[split.train]))]
    span = load.max() - load.min() + 1
    place = group * span + load - load.min()  # ascending with the group, then with the load
    after = np.searchsorted(place[train], place[split.test])
    inside = (after > 0) & (after < len(train))
    low, high = train[np.maximum(after - 1, 0)], train[np.minimum(after, len(train) - 1)]
    inside &= (group[low] == group[split.test]) & (group[high] == group[split.test])
    rows, low, high = split.test[inside], low[inside], high[inside]
    size, time = np.exp(load), case.sample.measured
    part = (size[rows] - size[low]) / np.where(size[high] > size[low], size[high] - size[low], 1)
    between = (1 - part) * time[low] + part * time[high]
    return np.asarray(np.log(time[rows] / between))


def _axis(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return the group of shapes that each row belongs to, and ln of its load."""
    dataset, frame = CLASSES[case.op].dataset, case.sample.frame
    others = [key for key in (*dataset.keys, "backend") if key in frame and key != dataset.load]
    group = frame.groupby(others, dropna=False).ngroup().to_numpy()
    return group, np.log(np.maximum(frame[dataset.load].to_numpy(float), 1))
