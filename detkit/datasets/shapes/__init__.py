"""The embedded example data: scenes of textured shapes, drawn by this program, nobody else's pictures."""

from detkit.datasets.shapes.dataset import ShapesDataset
from detkit.datasets.shapes.files import SPLITS, generate
from detkit.datasets.shapes.scene import CATEGORIES

__all__ = ["CATEGORIES", "SPLITS", "ShapesDataset", "generate"]
