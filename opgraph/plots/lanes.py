"""The stages of a pipeline: which microbatch is where, and when."""

from typing import TYPE_CHECKING

import numpy as np

from opgraph.plots.drawing import (
    DARK,
    GREY,
    headline,
    percent_text,
    prepared,
    set_title,
    text_size,
    time_axis,
    write_text,
)
from opgraph.timeline import Event, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LANE = 0.8  # height of a microbatch's bar, in rows


def lanes(timeline: Timeline, ax: "Axes | None" = None) -> "Axes":
    """Draw each microbatch's passage through the stages; the gaps are the pipeline's bubbles.

    Raises
    ------
    SpecError : a timeline of many design points.
    """
    from matplotlib import colormaps

    timeline.need_one_point("plot")
    pieces = _by_piece(timeline)
    stages = list(dict.fromkeys(stage for stage, _ in pieces))
    spans = {key: _spans(events) for key, events in pieces.items()}
    end = max(float(last) for found in spans.values() for _, last in found)
    ax = prepared(ax, (10, 1.5 + 0.35 * len(stages)))
    scale = time_axis(ax, end)
    busy = sum(last - first for found in spans.values() for first, last in found)
    idle = percent_text(1 - busy / (float(timeline.time) * len(stages)))
    set_title(ax, *headline(timeline), f"{idle} of the stages' time is idle")
    shades = colormaps["viridis"]
    most = max(len(found) for found in spans.values())
    for (stage, _), found in spans.items():
        row = -stages.index(stage)
        for number, (first, last) in enumerate(found):
            shade = shades(0.15 + 0.75 * number / max(most - 1, 1))
            ax.barh(
                row, (last - first) * scale, left=first * scale, height=_LANE, color=shade, ec="w"
            )
            width = (last - first) / end * ax.get_window_extent().width
            if text_size(ax, f"{number}")[0] < width:
                place = (first + last) / 2 * scale
                ink = "w" if number < most / 2 else DARK
                write_text(ax, place, row, f"{number}", ha="center", va="center", color=ink)
    ax.set_ylim(-len(stages) + 0.4, 0.6)
    ax.set_yticks([-row for row in range(len(stages))], stages)
    ax.tick_params(axis="y", length=0, labelcolor=GREY)
    return ax


def _by_piece(timeline: Timeline) -> dict[tuple[str, str], list[Event]]:
    """Stage and piece → what runs there, but for what is handed on."""
    found: dict[tuple[str, str], list[Event]] = {}
    for event in timeline.events:
        piece, _, block = event.block.partition(".")
        if block != "send":
            stage = " ".join(event.stream.split()[:2])
            found.setdefault((stage, piece), []).append(event)
    return found


def _spans(events: list[Event]) -> list[tuple[float, float]]:
    """When each microbatch begins and ends."""
    rounds = events[0].rounds
    starts = [event.starts.reshape(rounds, -1) for event in events]
    firsts = np.min([part.min(axis=1) for part in starts], axis=0)
    lasts = np.max(
        [part.max(axis=1) + float(e.time) for part, e in zip(starts, events, strict=True)], axis=0
    )
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))
