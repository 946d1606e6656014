"""Pictures: detections on images, assignments of priors, and the curves of a run."""

from detkit.visualization.assignments import AssignmentPanel, AssignmentPicture, draw_assignment
from detkit.visualization.backends import WandbVisBackend
from detkit.visualization.curves import plot_run
from detkit.visualization.drawing import captioned, class_colour, contact_sheet, draw_instances
from detkit.visualization.visualizer import DetLocalVisualizer

__all__ = [
    "AssignmentPanel",
    "AssignmentPicture",
    "DetLocalVisualizer",
    "WandbVisBackend",
    "captioned",
    "class_colour",
    "contact_sheet",
    "draw_assignment",
    "draw_instances",
    "plot_run",
]
