"""What the plots share: colours, texts that are measured before they are written, axes."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardware import Number, format_quantity
from opgraph.timeline import Event, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Okabe & Ito, Color Universal Design, 2008: told apart by colour-blind readers
COLOURS = {"compute": "#0072B2", "memory": "#E69F00", "network": "#009E73", "tier": "#CC79A7"}
COLOURS |= dict.fromkeys(("launch", "unknown"), "#999999")
STREAMS = ("compute", "communication", "copy")
NUM_NAMED = 3  # of the longest operators, always named
SMALL, LARGE = 7.5, 9.5  # points
PAD = 4.0  # pixels between a text and what is next to it
LEAST_BAR = 12.0  # pixels; rather than draw a lower bar, leave away what is around it
FADED = 0.3  # of its colour is left to an operator with slack
DARK, GREY = "#222222", "#777777"


def exposed_times(timeline: Timeline) -> list[tuple[Event, float]]:
    """Each event with its seconds in which the streams before its own run nothing."""
    found: list[tuple[Event, float]] = []
    knots = busy = np.zeros(1)
    runs = np.zeros((2, 0))
    for stream in in_order(event.stream for event in timeline.events):
        events = [event for event in timeline.events if event.stream == stream]
        for event in events:
            start, end = event.starts, event.starts + event.time
            hidden = np.interp(end, knots, busy) - np.interp(start, knots, busy)
            found.append((event, float(np.sum(end - start - hidden))))
        own = [np.stack([event.starts, event.starts + event.time]) for event in events]
        runs = union_of_runs(np.concatenate([runs, *own], axis=1))
        knots = runs.T.ravel()
        busy = np.cumsum(np.stack([np.zeros(runs.shape[1]), runs[1] - runs[0]]).T.ravel())
    return found


def union_of_runs(runs: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same times as (start, end) columns that are apart and in order."""
    start, end = runs[:, np.argsort(runs[0])]
    end = np.maximum.accumulate(end)
    apart = start[1:] > end[:-1]
    return np.stack([start[np.append(True, apart)], end[np.append(apart, True)]])


def headline(timeline: Timeline) -> tuple[str, str]:
    shares: dict[str, float] = {}
    for limiter, share in timeline.limiter_shares.items():
        group = limiter.split()[0]
        shares[group] = shares.get(group, 0.0) + float(share)
    largest = sorted(shares, key=lambda group: -shares[group])
    words = [f"{percent_text(shares[group])} {group}" for group in largest if shares[group] > 0.005]
    return f"{timeline.name} step {time_text(float(timeline.time))}", ", ".join(words)


def prepared(ax: "Axes | None", size: tuple[float, float]) -> "Axes":
    if ax is None:
        from matplotlib import pyplot as plt

        _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.tick_params(labelsize=SMALL)
    ax.spines[["top", "right", "left"]].set_visible(False)
    return ax


def set_title(ax: "Axes", *parts: str) -> None:
    """Set the parts that there is room for, in as many lines as they need.

    Fixes the layout, so that texts can be measured.
    """
    pad = 4.0  # points
    style: dict[str, Any] = {"loc": "left", "fontsize": LARGE, "parse_math": False, "pad": pad}
    figure = ax.figure.canvas.figure
    figure.draw_without_rendering()
    width, lines = ax.get_window_extent().width, [""]
    above = figure.bbox.y1 - ax.get_window_extent().y1
    if figure.get_layout_engine() is not None:
        above = figure.bbox.height / 3  # the layout makes room, but not for a title alone
    most = int((above * 72 / figure.dpi - pad) / (1.2 * LARGE))
    for kept in range(len(parts), 0, -1):
        text = " · ".join(part for part in parts[:kept] if part)
        # letters differ in width: a line may be longer than its share of the text
        letters = int(0.9 * len(text) * width / text_size(ax, text, LARGE)[0])
        lines = textwrap.wrap(text, max(letters, 1), break_long_words=False)
        if len(lines) <= most:
            break
    ax.set_title("\n".join(line.strip(" ·") for line in lines[: max(most, 0)]), **style)
    figure.draw_without_rendering()


def fitting_legend(ax: "Axes", handles: Sequence[Any]) -> float:
    """A legend along the top in as many columns as fit, if one does; its height in pixels."""
    for columns in range(len(handles), 0, -1):
        legend = ax.legend(
            handles=handles, ncols=columns, loc="upper left", frameon=False, fontsize=SMALL,
            borderaxespad=0, borderpad=0.2, handlelength=1.5, columnspacing=1.2, labelspacing=0.2,
        )  # fmt: skip
        legend.set_in_layout(False)
        box = legend.get_window_extent()
        if box.width <= ax.get_window_extent().width:
            return float(box.height)
        legend.remove()
    return 0.0


def write_text(ax: "Axes", x: float, y: float, text: str, **style: Any) -> Any:
    known: dict[str, Any] = {
        "fontsize": SMALL,
        "color": DARK,
        "parse_math": False,
        "in_layout": False,
    }
    return ax.text(x, y, text, **known | style)


def text_size(ax: "Axes", text: str, fontsize: float = SMALL) -> tuple[float, float]:
    """Width and height of a text in pixels."""
    probe = write_text(ax, 0, 0, text, fontsize=fontsize, transform=None)
    box = probe.get_window_extent()
    probe.remove()
    return float(box.width), float(box.height)


def per_pixel(ax: "Axes") -> float:
    return float(np.ptp(ax.get_xlim())) / float(ax.get_window_extent().width)


def cut_text(ax: "Axes", text: str, width: float) -> str:
    """The text with its middle left out, so that it is no wider than *width* pixels."""
    while len(text) > 1 and (wide := text_size(ax, text)[0]) > width:
        text = cut_middle(text, min(int(len(text) * width / wide), len(text) - 1))
    return text


def cut_middle(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    tail = max(length - 1, 0) // 2
    return text[: max(length - 1 - tail, 0)] + "…" + text[len(text) - tail :]


def short_name(event: Event) -> str:
    """The operator's name without its block's."""
    name = event.name.removeprefix(event.block).removeprefix(".") if event.block else event.name
    return " ".join(name.split()) or event.name


def unique_names(events: Sequence[Event]) -> list[str]:
    """Short names, but for those that more than one has."""
    short = [short_name(event) for event in events]
    return [
        name if short.count(name) == 1 else event.name
        for name, event in zip(short, events, strict=True)
    ]


def in_order(streams: Iterable[str]) -> list[str]:
    used = set(streams)
    return [stream for stream in STREAMS if stream in used] + sorted(used - {*STREAMS})


def limiter_group(event: Event) -> str:
    word = str(event.limiter).partition(" ")[0]
    return word if word in COLOURS else "unknown"


def bar_style(group: str, *, critical: bool) -> dict[str, Any]:
    from matplotlib.colors import to_rgb

    if critical:
        return {"facecolor": COLOURS[group], "edgecolor": "w"}
    pale = 1 - FADED * (1 - np.array(to_rgb(COLOURS[group])))
    return {"facecolor": tuple(pale), "edgecolor": COLOURS[group], "hatch": "////"}


def ink_on(group: str) -> str:
    """The darkest and the lightest grounds take white text."""
    return "w" if group in ("compute", "total") else DARK


def time_axis(ax: "Axes", end: float) -> float:
    """Let x run to *end* seconds, in the unit that suits them; units in a second."""
    scale, unit = next(
        ((scale, unit) for scale, unit in ((1.0, "s"), (1e3, "ms")) if end * scale >= 1),
        (1e6, "µs"),
    )
    quantity_axis(ax, end * scale, unit)
    return scale


def quantity_axis(ax: "Axes", end: float, unit: str) -> None:
    """Let x run to *end*; the unit stands at the ticks, where it is never cut off."""
    from matplotlib.ticker import MaxNLocator

    ax.set(xlim=(0, end or 1), yticks=[])
    widest = text_size(ax, f"0000.0 {unit}")[0] + 2 * PAD
    count = max(int(ax.get_window_extent().width / widest), 1)
    ax.xaxis.set_major_locator(MaxNLocator(min(count, 10), steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g} {unit}")


def time_text(seconds: float) -> str:
    return format_quantity(seconds, "s").replace(" us", " µs")


def percent_text(part: Number, whole: Number = 1.0) -> str:
    # no line breaks at this kind of space
    return f"{float(part) / float(whole) if whole else 0.0:.0%}".replace("%", "\u00a0%")


def overlaps(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
