"""The operators of a step under the roofline of their chip."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from hardware import SpecError, format_quantity
from opgraph.plots.drawing import (
    COLOURS,
    GREY,
    NUM_NAMED,
    PAD,
    SMALL,
    cut_middle,
    cut_text,
    headline,
    limiter_group,
    overlaps,
    percent_text,
    prepared,
    set_title,
    text_size,
    unique_names,
    write_text,
)
from opgraph.timeline import Event, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes


NUM_LISTED = 10  # operators in the list beside a roofline


def roofline(timeline: Timeline, ax: "Axes | None" = None) -> "Axes":
    """Draw what each operator computes per second, over FLOP per byte, below the chip's roofs.

    Operators are numbered by their share of the time; a stem shows how much the roof would allow.

    Raises
    ------
    SpecError : a timeline of many design points, or a measured one; nothing that computes.
    """
    timeline.need_one_point("plot")
    points = _points(timeline)
    if timeline.chip is None or not points:
        raise SpecError(f"the timeline {timeline.name!r} has no chip or nothing that computes")
    bandwidth = float(timeline.chip.memory_bandwidth)
    roofs = {point.dtype: point.peak for point in points}
    low = min(point.intensity for point in points) / 2
    high = 4 * max(*(point.intensity for point in points), max(roofs.values()) / bandwidth)
    ax = prepared(ax, (9, 5))
    ax.spines["left"].set_visible(True)
    ax.set(xscale="log", yscale="log", xlim=(low, high))
    ax.set_ylim(min(point.rate for point in points) / 2, 4 * max(roofs.values()))
    ax.set_xlabel("FLOP per byte of memory traffic", fontsize=SMALL)
    ax.set_ylabel("FLOP/s", fontsize=SMALL)
    reached = sum(point.share * point.reached for point in points) / sum(p.share for p in points)
    set_title(ax, *headline(timeline), f"operators reach {percent_text(reached)} of their roofs")
    taken: list[Any] = []
    for dtype, peak in sorted(roofs.items(), key=lambda roof: -roof[1]):
        corners = np.array([low, max(peak / bandwidth, low), high])
        ax.plot(corners, np.minimum(corners * bandwidth, peak), c=GREY, lw=1)
        name, above = f"{dtype} {format_quantity(peak, 'FLOP/s')}", not taken
        at = {"va": "bottom" if above else "top", "ha": "right", "color": GREY}
        taken.append(write_text(ax, high * 0.9, peak * (1.05 if above else 0.95), name, **at))
    _draw_points(ax, points, taken)
    return ax


@dataclass(frozen=True)
class _Point:
    """An operator under its roof: FLOP/byte, FLOP/s, shares of the time and of the roof."""

    event: Event
    dtype: str
    peak: float
    intensity: float
    rate: float
    share: float
    reached: float


def _points(timeline: Timeline) -> list[_Point]:
    """What computes, the longest first."""
    chip, graph = timeline.chip, timeline.graph
    if chip is None or graph is None:
        return []
    points = []
    for event in timeline.events:
        if not (event.work.flop and event.work.moved and event.time):
            continue
        operator = graph.nx.nodes[event.name]["operator"]
        is_matrix = operator.unit == "matrix"
        peak = float(chip.peak(operator.dtype) if is_matrix else chip.vector)
        intensity, rate = float(event.work.intensity), float(event.work.flop / event.time)
        roof = min(peak, intensity * float(chip.memory_bandwidth))
        share = float(event.time * event.count / timeline.time)
        dtype = operator.dtype if is_matrix else "vector"
        points.append(_Point(event, dtype, peak, intensity, rate, share, rate / roof))
    return sorted(points, key=lambda point: -point.share)


def _draw_points(ax: "Axes", points: Sequence[_Point], roofs: Sequence[Any]) -> None:
    listed, box = _draw_list(ax, points)
    names = unique_names([point.event for point in points])
    labels = [str(number) for number in range(1, listed + 1)] or names[:NUM_NAMED]
    spots: list[tuple[Any, list[str]]] = []
    for number, point in enumerate(points, 1):
        colour = COLOURS[limiter_group(point.event)]
        ax.plot([point.intensity] * 2, [point.rate, point.rate / point.reached], c=colour, lw=1)
        ax.plot(point.intensity, point.rate, "o", c=colour, mec="w", ms=6)
        at = ax.transData.transform((point.intensity, point.rate))
        near = [spot for spot in spots if np.hypot(*(spot[0] - at)) < 3 * PAD]
        if number <= len(labels) and near:
            near[0][1].append(labels[number - 1])
        elif number <= len(labels):
            spots.append((at, [labels[number - 1]]))
    _label_spots(ax, spots, [box, *(text.get_window_extent().extents for text in roofs)])


def _label_spots(
    ax: "Axes", spots: Sequence[tuple[Any, list[str]]], taken: list[tuple[float, ...]]
) -> None:
    """Write the labels beside the points, where nothing is yet."""
    room = ax.get_window_extent()
    for (x, y), labels in spots:
        text = cut_text(ax, ",".join(labels), room.width / 2)
        width, height = text_size(ax, text)
        across = (-width - PAD, -width / 2, 2 * PAD, -width - 8 * PAD)
        along = (PAD, -height - PAD, 4 * PAD, 8 * PAD, -height - 5 * PAD, -height - 9 * PAD)
        for dx, dy in product(across, along):
            box = (x + dx, y + dy, x + dx + width, y + dy + height)
            inside = room.x0 < box[0] and box[2] < room.x1 and room.y0 < box[1] and box[3] < room.y1
            if inside and not any(overlaps(box, other) for other in taken):
                taken.append(box)
                left, bottom = ax.transData.inverted().transform(box[:2])
                halo = {"fc": "w", "ec": "none", "alpha": 0.7, "pad": 0.5}
                write_text(ax, left, bottom, text, va="bottom", bbox=halo)
                break


def _draw_list(ax: "Axes", points: Sequence[_Point]) -> tuple[int, tuple[float, ...]]:
    """List operators in the corner below the roof: how many, and the list's box in pixels."""
    names = unique_names([point.event for point in points])
    room = ax.get_window_extent()
    for listed, bar in ((NUM_LISTED, 10), (NUM_LISTED, 0), (5, 0), (NUM_NAMED, 0)):
        longest = min(max(map(len, names[:listed])), 24)
        lines = [f"{'':{longest + 3}} {'time':>5} {'':{bar}} {'of roof':>7} limited by"]
        for number, (name, point) in enumerate(zip(names[:listed], points, strict=False), 1):
            blocks = "█" * round(point.share / points[0].share * bar)
            lines.append(
                f"{number:>2} {cut_middle(name, longest):{longest}} {percent_text(point.share):>5} "
                f"{blocks:{bar}} {percent_text(point.reached):>7} {limiter_group(point.event)}"
            )
        rest = 1 - sum(point.share for point in points[:listed])
        lines.append(f"{'':2} {'all others':{longest}} {percent_text(max(rest, 0)):>5}")
        style: dict[str, Any] = {"family": "DejaVu Sans Mono", "transform": ax.transAxes}
        style |= {"ha": "right", "va": "bottom", "multialignment": "left"}
        written = write_text(ax, 0.99, 0.02, "\n".join(lines), **style)
        written.set_bbox({"fc": "w", "ec": GREY, "lw": 0.5, "pad": 2})
        box = written.get_window_extent()
        if box.width < room.width / 2 and box.height < room.height / 2:
            break
        written.remove()
    else:
        return 0, (room.x1, room.y0, room.x1, room.y0)
    at = np.array([(point.intensity, point.rate) for point in points])
    for _ in range(8):
        pixels = ax.transData.transform(at)
        if not np.any((pixels[:, 0] > box.x0 - PAD) & (pixels[:, 1] < box.y1 + 2 * PAD)):
            break
        ax.set_ylim(ax.get_ylim()[0] / 2)
    return min(listed, len(points)), (box.x0, box.y0, box.x1, box.y1)
