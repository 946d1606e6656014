"""Steps of a data pipeline; mmcv's own (RandomResize, RandomChoice, Normalize …) are found by name too."""

import mmcv.transforms  # noqa: F401  registers mmcv's transforms

from detkit.transforms.formatting import PackDetInputs
from detkit.transforms.geometric import Pad, RandomFlip, Resize
from detkit.transforms.loading import FilterAnnotations, LoadAnnotations, LoadImageFromFile, LoadImageFromNDArray

__all__ = [
    "FilterAnnotations",
    "LoadAnnotations",
    "LoadImageFromFile",
    "LoadImageFromNDArray",
    "PackDetInputs",
    "Pad",
    "RandomFlip",
    "Resize",
]
