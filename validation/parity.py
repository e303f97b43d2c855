"""Parity plots: predicted against measured times of one class, and the error against the time."""

from pathlib import Path
from typing import Any

import numpy as np

from validation.accuracy import Checked

_SIZE = (8.0, 3.2)  # inches
_DPI = 75
_MICRO = 1e6
_BAND = 1.1  # the grey lines: 10 % off
_ERRORS = (0.5, 2.0)  # range of predicted / measured that is shown


def save_parity(path: Path, op: str, checked: list[Checked]) -> None:
    """Write the plot of one class as PNG; rows that were held out at random, a colour per chip."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for chip in dict.fromkeys(each.chip for each in checked):
        mine = [each for each in checked if each.chip == chip]
        measured = np.concatenate([each.measured for each in mine]) * _MICRO
        predicted = np.concatenate([each.predicted for each in mine]) * _MICRO
        left.plot(measured, predicted, ".", markersize=2, label=chip)
        ratio = np.clip(predicted / measured, *_ERRORS)
        right.plot(measured, ratio, ".", markersize=2)
    _decorate(left, right, op)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def _decorate(left: Any, right: Any, op: str) -> None:
    """Label both panels."""
    left.set(xscale="log", yscale="log", title=op, xlabel="measured, µs", ylabel="predicted, µs")
    ends = np.array(left.dataLim.intervalx)
    left.plot(ends, ends, color="black", linewidth=0.8)
    left.legend(fontsize=6, markerscale=4, frameon=False)
    right.set(xscale="log", yscale="log", xlabel="measured, µs", ylabel="predicted / measured")
    right.set_ylim(*_ERRORS)
    right.set_yticks([0.5, 0.7, 1.0, 1.4, 2.0], ["0.5", "0.7", "1", "1.4", "2"])
    right.minorticks_off()
    for ratio in (1 / _BAND, 1.0, _BAND):
        right.axhline(ratio, color="black" if ratio == 1 else "grey", linewidth=0.8)
