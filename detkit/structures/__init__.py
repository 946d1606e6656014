"""What travels through the toolbox: samples and masks; box functions are in ``detkit.structures.boxes``."""

from detkit.structures.boxes import HorizontalBoxes
from detkit.structures.masks import BitmapMasks, PolygonMasks
from detkit.structures.sample import DetDataSample

__all__ = ["BitmapMasks", "DetDataSample", "HorizontalBoxes", "PolygonMasks"]
