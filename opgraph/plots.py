"""Plots: the timeline of a step, its roofline, where its time goes, and a chip's memory.

Each draws on the Axes given, or makes a figure, and returns the Axes; none shows or saves.
Labels are measured for the size that the Axes has then: give the figure its size first.
"""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import TYPE_CHECKING, Any

import numpy as np

from hardware import SpecError, format_quantity
from opgraph.timeline import Event, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

    from opgraph.report import Report

# Okabe & Ito, Color Universal Design, 2008: told apart by colour-blind readers
COLOURS = {
    "compute": "#0072B2",
    "memory": "#E69F00",
    "network": "#009E73",
    "launch": "#999999",
    "nothing known": "#999999",
}
MEMORY_COLOURS = {"weights": "#56B4E9", "KV cache": "#CC79A7", "activations": "#F0E442"}
STREAMS = ("compute", "communication", "copy")
NUM_NAMED = 3  # of the longest operators, always named

_SMALL, _LARGE = 7.5, 9.5  # points
_PAD = 4.0  # pixels between a text and what is next to it
_LEAST_BAR = 9.0  # pixels; below this the bars' surroundings go first
_FADED = 0.3  # of its colour is left to an operator with slack
_GREY, _DARK = "#777777", "#222222"


def timeline(timeline: Timeline, ax: "Axes | None" = None, *, unrolled: bool = False) -> "Axes":
    """Draw the operators as bars on their streams, coloured by what limits them.

    A block that repeats is drawn once, at its middle repetition, unless *unrolled*; blocks stand
    one after another. What could take longer without the step taking longer is pale and hatched.

    Raises
    ------
    SpecError : a timeline of many design points.
    """
    from opgraph.gantt import draw

    return draw(timeline, ax, unrolled=unrolled)
