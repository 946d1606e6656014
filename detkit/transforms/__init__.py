"""Steps of a data pipeline; mmcv's own (RandomChoice, RandomApply, Normalize …) are found by name too."""

import mmcv.transforms  # noqa: F401  registers mmcv's transforms

from detkit.transforms.affine import RandomAffine
from detkit.transforms.cached_mixing import CachedMixUp, CachedMosaic
from detkit.transforms.copy_paste import CopyPaste
from detkit.transforms.cropping import MinIoURandomCrop, RandomCrop
from detkit.transforms.erasing import RandomErasing
from detkit.transforms.external import Albu, InstaBoost
from detkit.transforms.formatting import PackDetInputs
from detkit.transforms.geometric import Pad, RandomFlip, Resize
from detkit.transforms.loading import FilterAnnotations, LoadAnnotations, LoadImageFromFile, LoadImageFromNDArray
from detkit.transforms.mixing import MixUp, Mosaic
from detkit.transforms.photometric import CutOut, PhotoMetricDistortion, YOLOXHSVRandomAug
from detkit.transforms.placing import Expand, RandomCenterCropPad, RandomShift
from detkit.transforms.proposals import LoadProposals, ProposalBroadcaster
from detkit.transforms.resizing import FixScaleResize, FixShapeResize, RandomChoiceResize, RandomResize, SegRescale
from detkit.transforms.test_time_aug import TestTimeAug

__all__ = [
    "Albu",
    "CachedMixUp",
    "CachedMosaic",
    "CopyPaste",
    "CutOut",
    "Expand",
    "FilterAnnotations",
    "FixScaleResize",
    "FixShapeResize",
    "InstaBoost",
    "LoadAnnotations",
    "LoadImageFromFile",
    "LoadImageFromNDArray",
    "LoadProposals",
    "MinIoURandomCrop",
    "MixUp",
    "Mosaic",
    "PackDetInputs",
    "Pad",
    "PhotoMetricDistortion",
    "ProposalBroadcaster",
    "RandomAffine",
    "RandomCenterCropPad",
    "RandomChoiceResize",
    "RandomCrop",
    "RandomErasing",
    "RandomFlip",
    "RandomResize",
    "RandomShift",
    "Resize",
    "SegRescale",
    "TestTimeAug",
    "YOLOXHSVRandomAug",
]
