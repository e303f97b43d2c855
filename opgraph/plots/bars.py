"""Where the time of a step goes, and what takes the memory of a chip."""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from hardware import SpecError, format_quantity
from opgraph.plots.drawing import (
    COLOURS,
    DARK,
    PAD,
    cut_text,
    exposed_times,
    fitting_legend,
    headline,
    ink_on,
    limiter_group,
    per_pixel,
    percent_text,
    prepared,
    quantity_axis,
    set_title,
    text_size,
    time_axis,
    time_text,
    write_text,
)
from opgraph.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from opgraph.report import Report

MEMORY_COLOURS = {"weights": "#56B4E9", "KV cache": "#CC79A7", "activations": "#F0E442"}


def waterfall(timeline: Timeline, ax: "Axes | None" = None) -> "Axes":
    """Draw where the step's time goes: computing, moving, waiting for other chips, launching.

    Communication and copies count as far as nothing runs on the streams before theirs.

    Raises
    ------
    SpecError : a timeline of many design points.
    """
    timeline.need_one_point("plot")
    total = float(timeline.time)
    parts: dict[tuple[str, str], float] = {}
    for event, time in exposed_times(timeline):
        limited = f"{event.limiter}-limited" if event.limiter else event.stream
        name = limited if event.stream == "compute" else f"exposed {event.limiter or event.stream}"
        parts[limiter_group(event), name] = parts.get((limiter_group(event), name), 0.0) + time
    parts["unknown", "idle"] = total - sum(parts.values())
    rounding, order = 1e-9 * total, [*COLOURS]
    shown = sorted((key for key in parts if parts[key] > rounding), key=lambda k: order.index(k[0]))
    ax = prepared(ax, (8, 0.9 + 0.35 * (len(shown) + 1)))
    scale = time_axis(ax, total)
    ax.set_ylim(len(shown) + 0.5, -0.5)
    set_title(ax, *headline(timeline))
    start = 0.0
    for row, key in enumerate(shown):
        name, share = key[1], percent_text(parts[key], total)
        texts = (f"{name} {time_text(parts[key])} · {share}", f"{name} {share}")
        _labelled_bar(ax, (row, start * scale, parts[key] * scale), key[0], texts)
        start += parts[key]
    _labelled_bar(ax, (len(shown), 0, total * scale), "total", [f"total {time_text(total)}"])
    return ax


def memory(report: "Report", ax: "Axes | None" = None) -> "Axes":
    """Draw what the fullest chip must hold against what it can.

    Raises
    ------
    SpecError : a report of many design points.
    """
    if report.point.shape:
        raise SpecError(f"memory: pick one of the {report.point.shape} points with at(index)")
    held = report.memory
    sizes = zip(MEMORY_COLOURS, (held.weights, held.kv_cache, held.activations), strict=True)
    giga, capacity = 1e9, float(held.capacity) / 1e9
    ax = prepared(ax, (8, 1.9))
    total = float(held.total) / giga
    ax.set_ylim(-1.2, 1.6)
    quantity_axis(ax, 1.02 * max(total, capacity), "GB")
    set_title(ax, report.verdict, f"{report.point.model.name} on {report.point.platform.name}")
    start = 0.0
    for name, nbytes in sizes:
        label, width = f"{name} {format_quantity(float(nbytes), 'B')}", float(nbytes) / giga
        ax.barh(0, width, left=start, color=MEMORY_COLOURS[name], ec="w", label=label)
        start += width
    if total > capacity:
        over = format_quantity((total - capacity) * giga, "B")
        ax.barh(0, total - capacity, left=capacity, fc="none", ec=DARK, hatch="////", lw=0,
                label=f"{over} too much")  # fmt: skip
    ax.plot([capacity] * 2, [-0.6, 0.6], c=DARK, lw=2)
    text = f"capacity {format_quantity(float(held.capacity), 'B')}"
    left = capacity - text_size(ax, text)[0] / 2 * per_pixel(ax)
    left = min(left, ax.get_xlim()[1] - text_size(ax, text)[0] * per_pixel(ax))
    write_text(ax, max(left, 0), -0.65, text, va="top")
    fitting_legend(ax, ax.get_legend_handles_labels()[0])
    return ax


def _labelled_bar(
    ax: "Axes", bar: tuple[int, float, float], group: str, texts: Sequence[str]
) -> None:
    """A bar (row, left, width) and the first of *texts* that fits inside, right or left of it."""
    row, left, width = bar
    ax.barh(row, width, left=left, height=0.75, color=COLOURS.get(group, DARK))
    unit, limit = per_pixel(ax), ax.get_xlim()[1]
    gap = PAD * unit
    right = left + width
    places = {
        "inside": (width, left + gap, {"color": ink_on(group)}),
        "right": (limit - right, right + gap, {}),
        "left": (left, left - gap, {"ha": "right"}),
    }
    widest = max(places, key=lambda place: places[place][0])
    for text, place in [*product(texts, places), (texts[-1], widest)]:
        room, x, style = places[place]
        if text_size(ax, text)[0] * unit + 2 * gap <= room or (text, place) == (texts[-1], widest):
            write_text(ax, x, row, cut_text(ax, text, room / unit - 2 * PAD), va="center", **style)
            return
