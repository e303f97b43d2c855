"""The timeline of a step: operators as bars on their streams."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import TYPE_CHECKING, Any

from opgraph.plots.drawing import (
    COLOURS,
    DARK,
    GREY,
    LEAST_BAR,
    NUM_NAMED,
    PAD,
    bar_style,
    cut_text,
    fitting_legend,
    headline,
    in_order,
    ink_on,
    limiter_group,
    per_pixel,
    percent_text,
    prepared,
    set_title,
    short_name,
    text_size,
    time_axis,
    write_text,
)
from opgraph.timeline import Event, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def timeline(timeline: Timeline, ax: "Axes | None" = None, *, unrolled: bool = False) -> "Axes":
    """Draw the operators as bars on their streams, coloured by what limits them.

    A block that repeats is drawn once, in its middle repetition, unless *unrolled*; blocks stand
    one after another. What could take longer without the step taking longer is pale and hatched.

    Raises
    ------
    SpecError : a timeline of many design points.
    """
    timeline.need_one_point("plot")
    bars, spans = _bars(timeline, unrolled=unrolled)
    end = max((span.end for span in spans), default=0.0)
    ax = prepared(ax, (10, 1.5 + 0.7 * len({bar.event.stream for bar in bars})))
    scale = time_axis(ax, end)
    answer = f"compute busy {percent_text(timeline.busy.get('compute', 0.0), timeline.time)}"
    if timeline.communicates:
        answer += f", exposed communication {percent_text(timeline.exposed, timeline.time)}"
    set_title(ax, *headline(timeline), answer)
    _Gantt(ax, bars, spans, scale).draw(_keys(timeline, bars))
    return ax


@dataclass(frozen=True, eq=False)
class _Bar:
    """One execution of an operator; *texts* in order of preference."""

    event: Event
    start: float
    texts: tuple[str, ...]
    critical: bool
    named: bool

    @property
    def end(self) -> float:
        return self.start + float(self.event.time)


@dataclass(frozen=True)
class _Span:
    """Where a block stands, and the share of the step that all its repetitions take."""

    name: str
    count: int
    start: float
    end: float
    share: float

    @property
    def texts(self) -> list[str]:
        if self.count == 1:
            return [f"{self.name} · {percent_text(self.share)}", self.name] if self.name else []
        times = f"{self.name} ×{self.count}".strip()
        return [f"{times} · {percent_text(self.share)} of the step", times, f"×{self.count}"]


def _bars(timeline: Timeline, *, unrolled: bool) -> tuple[list[_Bar], list[_Span]]:
    events = [event for event in timeline.events if event.time > 0]
    longest = sorted(events, key=lambda event: -float(event.time * event.count))[:NUM_NAMED]
    bars: list[_Bar] = []
    spans: list[_Span] = []
    for (block, count), group in groupby(events, key=lambda event: (event.block, event.count)):
        members = list(group)
        middle = count // 2
        drawn = range(count) if unrolled else range(middle, middle + 1)
        begin, final = _extent(members, drawn)
        first, last = _extent(members, range(count))
        shift = 0.0 if unrolled else (spans[-1].end if spans else 0.0) - begin
        share = (last - first) / float(timeline.time)
        spans.append(_Span(block, count, begin + shift, final + shift, share))
        for event in members:
            name, is_long = short_name(event), event in longest
            times = f" ×{count}" if unrolled and count > 1 else ""
            told = f"{name}{times} {percent_text(float(event.time) * count, timeline.time)}"
            for index in drawn:
                is_named = is_long and index == middle
                texts = (told, name) if is_named else (name,)
                start = float(event.starts[index]) + shift
                bars.append(_Bar(event, start, texts, event.is_critical, is_named))
    return bars, spans


def _extent(events: Sequence[Event], drawn: range) -> tuple[float, float]:
    begin = min(float(event.starts[drawn[0]]) for event in events)
    return begin, max(float(event.starts[drawn[-1]] + event.time) for event in events)


def _keys(timeline: Timeline, bars: Sequence[_Bar]) -> list[Any]:
    """What the colours and the hatching mean."""
    from matplotlib.patches import Patch

    present = {limiter_group(bar.event) for bar in bars}
    words = {"unknown": "limit not known"}
    keys = [
        Patch(label=words.get(group, f"limited by {group}"), **bar_style(group, critical=True))
        for group in COLOURS
        if group in present
    ]
    has_slack = not all(bar.critical for bar in bars)
    if has_slack or (bars and timeline.graph is not None):
        keys += [Patch(label="solid: on the critical path", fc=GREY)]
    if has_slack:
        keys += [Patch(label="hatched: has slack", **bar_style("launch", critical=False))]
    return keys


class _Gantt:
    """Bars in rows: y is pixels upwards. What stands around them is left away for want of room."""

    def __init__(
        self, ax: "Axes", bars: Sequence[_Bar], spans: Sequence[_Span], scale: float
    ) -> None:
        box = ax.get_window_extent()
        ax.set_ylim(0, box.height)
        self.ax, self.bars, self.spans, self.scale = ax, bars, spans, scale
        self.width, self.height, self.pixels = box.width, box.height, scale / per_pixel(ax)
        self.line = text_size(ax, "Ág")[1] + 1
        self.streams = in_order(bar.event.stream for bar in bars)
        self.around = ["legend", "captions", "blocks", "leaders"]
        if not any(span.texts for span in spans):
            self.around.remove("blocks")
        self.leaders: dict[_Bar, tuple[str, float, int]] = {}
        self.bar_height = 0.0

    def draw(self, keys: Sequence[Any]) -> None:
        """Draw all of it; *keys* are for the legend."""
        legend = fitting_legend(self.ax, keys) + PAD if keys else 0.0
        while True:
            self._lead_out(legend if "legend" in self.around else 0.0)
            if self.bar_height >= LEAST_BAR or not self.around:
                break
            self.around.pop(0)
        if "legend" not in self.around and self.ax.legend_:
            self.ax.legend_.remove()
        bottom = self.height - (legend if "legend" in self.around else 0.0)
        bottom -= self._blocks(bottom) if "blocks" in self.around else 0.0
        for stream in self.streams:
            bottom -= self._band(stream) + self.bar_height
            bars = [bar for bar in self.bars if bar.event.stream == stream]
            self._boxes(bars, bottom)
            self._texts(bars, bottom)
            if "captions" in self.around:
                write_text(self.ax, 0, bottom - 1, stream, va="top", color=GREY)
                bottom -= self.line
            bottom -= PAD

    def _lead_out(self, legend: float) -> None:
        """Add leaders until no named bar lacks one: each makes the bars lower."""
        self.leaders = {}
        blocks = self.line + 2 * PAD if "blocks" in self.around else 0.0
        caption = PAD + (self.line if "captions" in self.around else 0.0)
        while True:
            rows = sum(self._band(stream) + caption for stream in self.streams)
            free = self.height - legend - blocks - rows
            self.bar_height = max(free / max(len(self.streams), 1), 1.0)
            lost = [bar for bar in self.bars if bar.named and not self._fitting(bar)]
            if set(lost) <= set(self.leaders) or "leaders" not in self.around:
                return
            for stream in self.streams:
                self._arrange([bar for bar in lost if bar.event.stream == stream])

    def _arrange(self, bars: Sequence[_Bar]) -> None:
        """Put each leader's text on a side of it, at a level: as low as goes without a clash."""
        texts = [cut_text(self.ax, bar.texts[0], self.width) for bar in bars]
        widths = [text_size(self.ax, text)[0] for text in texts]
        at = [(bar.start + bar.end) / 2 * self.pixels for bar in bars]
        sides = [
            [min(max(left, 0.0), self.width - width) for left in (x + 2, x - width - 2)]
            for x, width in zip(at, widths, strict=True)
        ]
        pairs = [pair for pair in product(range(len(bars)), repeat=2) if pair[0] != pair[1]]

        def badness(choice: tuple[tuple[int, ...], tuple[float, ...]]) -> tuple[int, int]:
            level, left = choice
            clashes = 0
            for i, j in pairs:
                right = left[j] + widths[j] + PAD
                overlap = level[i] == level[j] and left[j] - PAD <= left[i] <= right
                crossing = level[i] > level[j] and left[j] <= at[i] <= right - PAD
                clashes += overlap or crossing
            return clashes, sum(level)

        levels = product(range(len(bars)), repeat=len(bars))
        best = min(product(levels, product(*sides)), key=badness)
        for bar, text, level, left in zip(bars, texts, *best, strict=True):
            self.leaders[bar] = (text, left, level)

    def _band(self, stream: str) -> float:
        """The height of the leaders above a row."""
        levels = [at[2] + 1 for bar, at in self.leaders.items() if bar.event.stream == stream]
        return max(levels, default=0) * self.line + (2 * PAD if levels else 0)

    def _fitting(self, bar: _Bar) -> tuple[str, int] | None:
        """The text that fits into a bar, and its rotation."""
        length = (bar.end - bar.start) * self.pixels
        if min(length, self.bar_height) < self.line:
            return None
        for rotation, text in product((0, 90), bar.texts):
            across, along = text_size(self.ax, text)[:: -1 if rotation else 1]
            if across + PAD <= length and along + PAD / 2 <= self.bar_height:
                return text, rotation
        return None

    def _boxes(self, bars: Sequence[_Bar], bottom: float) -> None:
        kinds = sorted({(limiter_group(bar.event), bar.critical) for bar in bars})
        for group, critical in kinds:
            alike = [b for b in bars if (limiter_group(b.event), b.critical) == (group, critical)]
            # an edge sets neighbours apart, but would hide a bar that is hardly wider
            edges = [0.6 if (bar.end - bar.start) * self.pixels > PAD else 0.0 for bar in alike]
            boxes = [(bar.start * self.scale, (bar.end - bar.start) * self.scale) for bar in alike]
            fill = bar_style(group, critical=critical)
            # unsnapped: thin bars fade evenly instead of coming and going with the pixels
            style: dict[str, Any] = {"linewidth": edges, "snap": False} | fill
            self.ax.broken_barh(boxes, (bottom, self.bar_height), **style)

    def _texts(self, bars: Sequence[_Bar], bottom: float) -> None:
        for bar in bars:
            x, top = (bar.start + bar.end) / 2 * self.scale, bottom + self.bar_height
            if fitting := self._fitting(bar):
                style: dict[str, Any] = {"color": ink_on(limiter_group(bar.event))}
                if not bar.critical:
                    style = {"bbox": {"fc": "w", "ec": "none", "pad": 0.5}}
                style |= {"rotation": fitting[1], "ha": "center", "va": "center"}
                write_text(self.ax, x, bottom + self.bar_height / 2, fitting[0], **style)
            elif bar in self.leaders and "leaders" in self.around:
                text, left, level = self.leaders[bar]
                y = top + PAD + level * self.line
                right = left + text_size(self.ax, text)[0]
                beside = not left <= x / self.scale * self.pixels <= right
                self.ax.plot(
                    [x, x], [top, y + beside * self.line / 2], c=DARK, lw=0.7, clip_on=False
                )
                write_text(self.ax, left / self.pixels * self.scale, y, text, va="bottom")

    def _blocks(self, top: float) -> float:
        """Brackets over repeated blocks, names, and what separates them; the height they take."""
        y, taken = top - self.line - 1, list[tuple[float, float]]()
        for span in sorted(self.spans, key=lambda s: (s.count == 1, s.start - s.end)):
            left, right = span.start * self.pixels, span.end * self.pixels
            fitting = [t for t in span.texts if text_size(self.ax, t)[0] + PAD <= right - left]
            text = (fitting or (span.texts[-1:] if span.count > 1 else []) or [""])[0]
            width = text_size(self.ax, text)[0] if text else 0.0
            x = min(max((left + right - width) / 2, 0.0), self.width - width)
            if text and not any(x < end + PAD and begin < x + width + PAD for begin, end in taken):
                taken.append((x, x + width))
                write_text(self.ax, x / self.pixels * self.scale, y, text, va="bottom")
            if span.count > 1:
                sides = [span.start * self.scale] * 2 + [span.end * self.scale] * 2
                self.ax.plot(sides, [y - PAD, y - 1, y - 1, y - PAD], c=DARK, lw=0.9)
        inner = [span.start * self.scale for span in self.spans[1:]]
        self.ax.vlines(inner, 0, y, colors=GREY, linewidth=0.5, linestyles="dotted")
        return self.line + 2 * PAD
