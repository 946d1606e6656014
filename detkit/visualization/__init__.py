"""Pictures: detections on images, and the curves of a run."""

from detkit.visualization.curves import plot_run
from detkit.visualization.drawing import captioned, class_colour, contact_sheet, draw_instances
from detkit.visualization.visualizer import DetLocalVisualizer

__all__ = ["DetLocalVisualizer", "captioned", "class_colour", "contact_sheet", "draw_instances", "plot_run"]
