"""Instance masks of one image, as bitmaps or as polygons, with the operations of a data pipeline.

Both classes have MMDetection's names and arguments. They are values: every operation gives new masks.
Sizes are (height, width); coordinates are pixels, x to the right and y down, without a ``+ 1``.
"""

from detkit.structures.masks.bitmap import BitmapMasks
from detkit.structures.masks.polygon import PolygonMasks

__all__ = ["BitmapMasks", "PolygonMasks"]
