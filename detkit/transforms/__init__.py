"""Steps of a data pipeline; mmcv's own (RandomResize, RandomChoice, Normalize …) are found by name too."""

import mmcv.transforms  # noqa: F401  registers mmcv's transforms

from detkit.transforms.formatting import PackDetInputs
from detkit.transforms.geometric import Pad, RandomFlip, Resize
from detkit.transforms.loading import FilterAnnotations, LoadAnnotations, LoadImageFromFile, LoadImageFromNDArray
from detkit.transforms.test_time_aug import TestTimeAug

__all__ = [
    "FilterAnnotations",
    "LoadAnnotations",
    "LoadImageFromFile",
    "LoadImageFromNDArray",
    "PackDetInputs",
    "Pad",
    "RandomFlip",
    "Resize",
    "TestTimeAug",
]
