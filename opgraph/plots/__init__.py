"""Plots: the timeline of a step, its roofline, where its time goes, and a chip's memory.

Each draws on the Axes given, or makes a figure, and returns the Axes; none shows or saves.
Labels are measured for the size that the Axes has then: give the figure its size first.
"""

from opgraph.plots.bars import memory, waterfall
from opgraph.plots.beside import side_by_side
from opgraph.plots.drawing import COLOURS
from opgraph.plots.gantt import timeline
from opgraph.plots.roof import roofline

__all__ = ["COLOURS", "memory", "roofline", "side_by_side", "timeline", "waterfall"]
