"""What plans can reach: tokens for each user against tokens of each chip."""

from typing import TYPE_CHECKING

import numpy as np

from opgraph.explore import Search
from opgraph.plots.drawing import (
    COLOURS,
    GREY,
    SMALL,
    prepared,
    set_title,
    text_size,
    write_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def pareto(search: Search, ax: "Axes | None" = None) -> "Axes":
    """Draw every plan and batch that was found, and the front that none of them beats.

    Raises
    ------
    SpecError : no plan was feasible.
    """
    report = search.best
    ax = prepared(ax, (8, 4.5))
    ax.spines["left"].set_visible(True)
    table, front = search.table, search.pareto
    users, chips = "tokens_per_s_per_user", "tokens_per_s_per_chip"
    ax.set(xscale="log", yscale="log")
    ax.set_xlabel("tokens/s for each user", fontsize=SMALL)
    ax.set_ylabel("tokens/s of each chip", fontsize=SMALL)
    ax.scatter(table[users], table[chips], s=6, color=GREY, alpha=0.4, lw=0)
    ax.plot(front[users], front[chips], color=COLOURS["compute"], marker="o", ms=3, lw=1)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    ax.tick_params(which="both", labelsize=SMALL)
    ax.figure.canvas.figure.draw_without_rendering()
    first = front.iloc[0]
    _make_room(ax, float(first[users]), f" {search.name_of(first)} ")
    free = -1.0
    for _, row in front.iloc[::-1].iterrows():
        place = (row[users], row[chips])
        left = float(ax.transData.transform(place)[0])
        if left > free:
            name = search.name_of(row)
            write_text(ax, *place, f" {name}", color=GREY, va="bottom")
            free = left + text_size(ax, f" {name} ")[0]
    point = report.point
    set_title(ax, f"{point.model.name} on {point.platform.name}", f"{search.candidates} priced")
    return ax


def _make_room(ax: "Axes", x: float, text: str) -> None:
    """Widen the logarithmic axis, so that *text* has room to the right of *x*."""
    low, high = np.log(ax.get_xlim())
    share = text_size(ax, text)[0] / ax.bbox.width
    ax.set_xlim(right=np.exp(max(high, low + (np.log(x) - low) / (1 - share))))
