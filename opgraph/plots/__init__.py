"""Plots: the timeline of a step, its roofline, where its time goes, memory, plans, and packages.

Each draws on the Axes given, or makes a figure, and returns the Axes; none shows or saves.
Labels are measured for the size that the Axes has then: give the figure its size first.
"""

from opgraph.plots.bars import memory, waterfall
from opgraph.plots.beside import side_by_side
from opgraph.plots.drawing import COLOURS
from opgraph.plots.front import pareto
from opgraph.plots.gantt import timeline
from opgraph.plots.lanes import lanes
from opgraph.plots.package import temperatures
from opgraph.plots.roof import roofline

__all__ = [
    "COLOURS",
    "lanes",
    "memory",
    "pareto",
    "roofline",
    "side_by_side",
    "temperatures",
    "timeline",
    "waterfall",
]
