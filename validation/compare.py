"""Measured against predicted: the operators of two timelines of one step, side by side.

Both run the same model in the same order, so products, attentions and experts are found in turn:
each predicted one is what the next measured ones do together, by their FLOP (a fused projection of
queries, keys and values is measured as three). Whatever runs between two of them is compared as a
whole: a norm that is one kernel here may be six operators there.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardware import SpecError
from opgraph.timeline import Event, Timeline

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

ANCHORS = ("gemm", "attention", "moe")  # what is found in turn; the rest lies between
SAME_WORK = 0.02  # part of the FLOP by which two products may differ: a bias, a padded side
MOST_STRANGE = 0.5  # part of the products whose FLOP may differ: a head over all positions
BETWEEN, OUTSIDE = "no operator of the model", "outside operators"
_MICRO = 1e6


@dataclass(frozen=True)
class Row:
    """One predicted operator, or those between two products, and what was measured of it.

    Attributes
    ----------
    operator, kind, block : of the prediction.
    measured, predicted : seconds of all of it.
    count : measured operators or kernels.
    work : measured over predicted FLOP of a product, where both are known.
    """

    operator: str
    kind: str
    block: str
    measured: float
    predicted: float
    count: int
    work: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A measured and a predicted step, and their operators in program order."""

    measured: Timeline
    predicted: Timeline
    rows: tuple[Row, ...]

    @property
    def error(self) -> float:
        """Predicted over measured time of the step, less 1."""
        return float(self.predicted.time / self.measured.time) - 1

    def to_frame(self) -> "pd.DataFrame":
        """Columns ``operator kind block measured_us predicted_us error count work``."""
        import pandas as pd

        return pd.DataFrame([_figures(row) for row in self.rows])

    def classes(self) -> list[dict[str, Any]]:
        """By kind of operator: times, predicted over measured less 1, share of the measured step.

        The last row is the step. Its error is not the mean of theirs: operators may overlap.
        """
        kinds = dict.fromkeys(row.kind for row in self.rows)
        rows = [self._sum(kind, [r for r in self.rows if r.kind == kind]) for kind in kinds]
        rows.sort(key=lambda row: -row["measured_us"])
        step = Row("", "step", "", float(self.measured.time), float(self.predicted.time), 0)
        return [*rows, self._sum("step", [step])]

    def _sum(self, kind: str, rows: Sequence[Row]) -> dict[str, Any]:
        measured, predicted = (sum(getattr(r, n) for r in rows) for n in ("measured", "predicted"))
        return {
            "class": kind,
            "measured_us": measured * _MICRO,
            "predicted_us": predicted * _MICRO,
            "error": predicted / measured - 1 if measured else None,
            "share": measured / float(self.measured.time),
        }

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw both steps over one time axis; see `plots.side_by_side`."""
        from opgraph import plots

        return plots.side_by_side([self.measured, self.predicted], ax)

    def save_trace(self, path: str | Path) -> None:
        """Write both as one Chrome trace, the measured step above the predicted one."""
        from opgraph import trace

        trace.save(path, [self.measured, self.predicted], beside=True)


def compare(measured: Timeline, predicted: Timeline) -> Comparison:
    """Find the operators of the prediction in what was measured.

    Raises
    ------
    SpecError : the measured step has other products than the predicted one, or none.
    """
    measured.need_one_point("compare")
    if not measured.time > 0:
        raise SpecError(f"compare: the step {measured.name!r} took no time")
    told = _strange(measured, predicted)
    expected = list(_groups(predicted.unroll().events))
    found = list(_groups(measured.unroll().events))
    rows = list(_matched(found, expected, told))
    products = [row for row in rows if row.work is not None]
    strange = [row for row in products if not _alike(row.work or 0.0)]
    if len(strange) > MOST_STRANGE * len(products):
        raise SpecError(f"{told}; {strange[0].operator} does {strange[0].work:.3g} times")
    rows.append(_outside(measured, predicted))
    return Comparison(_labelled(measured, "measured"), _labelled(predicted, "predicted"),
                      tuple(rows))  # fmt: skip


def _strange(measured: Timeline, predicted: Timeline) -> str:
    """What to say where the measured step is not the predicted one.

    Raises
    ------
    SpecError : no product that was measured has its shapes.
    """
    seen, said = (
        float(sum(e.work.flop * e.count for e in t.events if e.kind == "gemm"))
        for t in (measured, predicted)
    )
    if not seen:
        raise SpecError(
            f"compare: no product of the step {measured.name!r} has shapes: profile it with "
            "record_shapes=True"
        )
    return (
        f"compare: the step {measured.name!r} is not the {predicted.name} predicted: another "
        "model, batch, length or number of layers; "
        f"its products do {seen / said:.3g} times the FLOP"
    )


def _labelled(timeline: Timeline, made: str) -> Timeline:
    return replace(timeline, source={**timeline.source, "made": made})


@dataclass
class _Group:
    """Operators that are found together: one product, attention or expert layer; or the rest."""

    kind: str
    events: list[Event]

    @property
    def is_anchor(self) -> bool:
        return self.kind in ANCHORS

    @property
    def time(self) -> float:
        return _total(self.events)

    @property
    def flop(self) -> float:
        return float(sum(event.work.flop for event in self.events))


def _groups(events: Iterable[Event]) -> Iterator[_Group]:
    """Events in groups: every product alone, attention's and the experts' kernels together.

    What an expert layer does between its products is part of it: scattering, gating, gathering.
    """
    for kind, run in groupby(events, key=lambda event: event.kind if _anchors(event) else ""):
        if kind == "gemm":
            for event in run:
                yield _Group(kind, [event])
        else:
            yield _Group(kind, list(run))


def _anchors(event: Event) -> bool:
    return event.kind in ANCHORS


def _matched(found: list[_Group], expected: list[_Group], told: str) -> Iterator[Row]:
    """Rows in the order of the prediction; *found* is used up."""
    waiting: list[Event] = []  # measured between products, not yet told of
    between: list[Event] = []  # predicted between products, likewise
    for group in _merged(expected):
        if not group.is_anchor:
            between += group.events
            continue
        before, taken, inside = _take(found, group, told)
        yield from _rest(waiting + before, between)
        waiting, between = inside, []
        yield _row(group, taken)
    waiting += [event for group in found for event in group.events]
    if left := [event for event in waiting if event.kind in ANCHORS and event.work.flop]:
        raise SpecError(f"{told}; it goes on with {left[0].name} where the prediction ends")
    yield from _rest(waiting, between)


def _merged(groups: list[_Group]) -> list[_Group]:
    """The groups with an expert layer's products and what is between them as one."""
    merged: list[_Group] = []
    for group in groups:
        inside = len(merged) > 1 and group.kind == "moe" and merged[-2].kind == "moe"
        if inside and not merged[-1].is_anchor:
            between = merged.pop()
            merged[-1] = _Group("moe", merged[-1].events + between.events + group.events)
        else:
            merged.append(group)
    return merged


def _take(
    found: list[_Group], wanted: _Group, told: str
) -> tuple[list[Event], _Group, list[Event]]:
    """What was measured of a product, attention or expert layer; what ran before it, and amid it.

    Measured products are taken until they have its FLOP.
    """
    before: list[Event] = []
    taken: list[Event] = []
    amid: list[Event] = []
    while found and not _complete(taken, found, wanted):
        group = found.pop(0)
        if group.kind == wanted.kind:
            taken += group.events
        elif group.is_anchor:
            name, seen = wanted.events[0].name, group.events[0].name
            raise SpecError(f"{told}; where {name} should be, a {wanted.kind}, it has {seen}")
        elif taken and wanted.kind == "moe":
            taken += group.events
        else:
            (amid if taken else before).extend(group.events)
    if not taken:
        raise SpecError(f"{told}; it ends before {wanted.events[0].name}")
    return before, _Group(wanted.kind, taken), amid


def _complete(taken: list[Event], found: list[_Group], wanted: _Group) -> bool:
    """Whether the measured products are all of the wanted ones."""
    following = next((group for group in found if group.is_anchor), None)
    if not taken or following is None:
        return bool(taken)
    if following.kind != wanted.kind:
        return True
    if wanted.kind != "gemm":
        return wanted.kind == "attention"
    if not following.flop:  # a kernel without FLOP of its own finishes the product before it
        return False
    done = sum(event.work.flop for event in taken)
    is_enough = bool(done >= wanted.flop * (1 - SAME_WORK))
    return is_enough or bool(done + following.flop > wanted.flop * (1 + SAME_WORK))


def _row(group: _Group, taken: _Group) -> Row:
    known = group.kind == "gemm" and taken.flop > 0
    first = group.events[0]
    return Row(
        first.name, group.kind, first.block, taken.time, group.time, len(taken.events),
        taken.flop / group.flop if known else None,
    )  # fmt: skip


def _rest(measured: Sequence[Event], predicted: Sequence[Event]) -> Iterator[Row]:
    """The row of what runs between two products, if anything does."""
    if not measured and not predicted:
        return
    names = " + ".join(event.name for event in predicted)
    kinds = " + ".join(dict.fromkeys(event.kind for event in predicted))
    block = predicted[0].block if predicted else ""
    yield Row(
        names or BETWEEN, kinds or BETWEEN, block, _total(measured), _total(predicted),
        len(measured),
    )  # fmt: skip


def _total(events: Iterable[Event]) -> float:
    """Seconds of all of them, with their repetitions."""
    return float(sum(event.time * event.count for event in events))


def _outside(measured: Timeline, predicted: Timeline) -> Row:
    """What a step takes besides its operators: the host, gaps; less what overlaps."""
    seen, said = (max(float(t.time) - _total(t.events), 0.0) for t in (measured, predicted))
    return Row(OUTSIDE, OUTSIDE, "", seen, said, 0)


def _alike(work: float) -> bool:
    return abs(work - 1) <= SAME_WORK


def _figures(row: Row) -> dict[str, Any]:
    return {
        "operator": row.operator,
        "kind": row.kind,
        "block": row.block,
        "measured_us": row.measured * _MICRO,
        "predicted_us": row.predicted * _MICRO,
        "error": row.predicted / row.measured - 1 if row.measured else None,
        "count": row.count,
        "work": row.work,
    }
