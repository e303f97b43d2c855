"""Several timelines of one step over the same time axis, such as measured above predicted."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opgraph.plots.drawing import (
    DARK,
    fitting_legend,
    in_order,
    prepared,
    set_title,
    time_axis,
    time_text,
    write_text,
)
from opgraph.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito, Color Universal Design, 2008
_GROUPS = {
    "products": ("#0072B2", "gemm"),
    "experts": ("#D55E00", "moe"),
    "attention": ("#E69F00", "attention"),
    "vector": ("#009E73", "norm rotary activation elementwise quantize lookup sample select"),
    "communication": ("#CC79A7", "all_reduce all_gather reduce_scatter all_to_all send"),
    "copies": ("#56B4E9", "copy view"),
}
_OTHER, _GREY = "other", "#999999"
_GROUP_OF = {kind: name for name, (_, kinds) in _GROUPS.items() for kind in kinds.split()}
_BAR, _ROOM = 0.8, 0.45  # height of a bar, and room above all for the legend, in rows


def side_by_side(timelines: Sequence[Timeline], ax: "Axes | None" = None) -> "Axes":
    """Draw each timeline as a row of bars for each of its streams, coloured by kind of operator.

    The first stands on top; each is called by its ``source["made"]``, its name if it has none.

    Raises
    ------
    SpecError : a timeline of many design points.
    """
    for timeline in timelines:
        timeline.need_one_point("plot")
    rows = [(t, stream) for t in timelines for stream in in_order(e.stream for e in t.events)]
    ax = prepared(ax, (10, 1.2 + 0.6 * len(rows)))
    scale = time_axis(ax, max(float(timeline.time) for timeline in timelines))
    ax.set_ylim(len(rows), -_ROOM)
    names = [timeline.source.get("made", timeline.name) for timeline in timelines]
    told = [f"{n} {time_text(float(t.time))}" for n, t in zip(names, timelines, strict=True)]
    set_title(ax, timelines[0].name, ", ".join(told))
    for index, (timeline, stream) in enumerate(rows):
        _draw_row(ax, index, scale, timeline, stream)
        name = timeline.source.get("made", timeline.name)
        write_text(ax, 0, index + _BAR + 0.02, f"{name}: {stream}", va="top", color=DARK)
    fitting_legend(ax, _keys(timelines))
    return ax


def _draw_row(ax: "Axes", index: int, scale: float, timeline: Timeline, stream: str) -> None:
    boxes: dict[str, list[tuple[float, float]]] = {}
    for event in timeline.events:
        if event.stream == stream:
            group = _GROUP_OF.get(event.kind, _OTHER)
            width = float(event.time) * scale
            boxes.setdefault(group, []).extend((float(s) * scale, width) for s in event.starts)
    for group, spans in boxes.items():
        ax.broken_barh(spans, (index, _BAR), facecolor=_colour(group), linewidth=0)


def _colour(group: str) -> str:
    return _GROUPS[group][0] if group in _GROUPS else _GREY


def _keys(timelines: Sequence[Timeline]) -> list[Any]:
    """Each kind's colour, with its time in each of the timelines."""
    from matplotlib.patches import Patch

    totals: dict[str, list[float]] = {}
    for index, timeline in enumerate(timelines):
        for event in timeline.events:
            group = _GROUP_OF.get(event.kind, _OTHER)
            times = totals.setdefault(group, [0.0] * len(timelines))
            times[index] += float(event.time) * event.count
    return [
        Patch(label=f"{group} " + " / ".join(map(time_text, totals[group])), fc=_colour(group))
        for group in sorted(totals, key=lambda name: -max(totals[name]))
    ]
