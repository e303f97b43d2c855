"""The temperatures of a package, seen from above."""

from typing import TYPE_CHECKING

from hardware import Package
from opgraph.plots.drawing import SMALL, prepared, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MILLI = 1e3
_COLOURS = "inferno"


def temperatures(package: Package, ax: "Axes | None" = None) -> "Axes":
    """Draw °C where the transistors are, with the chiplets' outlines and hottest points."""
    heat = package.heat
    ax = prepared(ax, (8, 6))
    x, y = (edges * _MILLI for edges in heat.edges)
    image = ax.pcolormesh(x, y, heat.temperature, cmap=_COLOURS, rasterized=True)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8)
    bar.set_label("°C", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    for chiplet in package.chiplets:
        (left, right), (low, high) = ((a * _MILLI, b * _MILLI) for a, b in chiplet.sides)
        hottest = heat.hottest[chiplet.name]
        ax.plot([left, right, right, left, left], [low, low, high, high, low], "w", linewidth=0.8)
        middle = (left + right) / 2, (low + high) / 2
        ax.annotate(
            f"{chiplet.name}\n{float(chiplet.power):g} W, {hottest:.0f} °C",
            middle, ha="center", va="center", fontsize=SMALL, color="white",
            bbox={"facecolor": "black", "alpha": 0.45, "edgecolor": "none", "pad": 2},
        )  # fmt: skip
    ax.set_aspect("equal")
    ax.set_xlabel("mm", fontsize=SMALL)
    ax.set_ylabel("mm", fontsize=SMALL)
    clock = "full clock" if heat.slowdown >= 1 else f"{heat.slowdown:.0%} of the clock"
    set_title(ax, f"{package.name}: {package.power:g} W on {package.interposer}, {clock}")
    return ax
