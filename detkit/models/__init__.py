"""Models: detectors and the parts they are built of."""

from detkit.models.backbones import ResNet
from detkit.models.data_preprocessor import DetDataPreprocessor
from detkit.models.dense_heads import RetinaHead
from detkit.models.detectors import RetinaNet, SingleStageDetector
from detkit.models.necks import FPN
from detkit.models.pretrained import PretrainedInit

__all__ = [
    "FPN",
    "DetDataPreprocessor",
    "PretrainedInit",
    "ResNet",
    "RetinaHead",
    "RetinaNet",
    "SingleStageDetector",
]
