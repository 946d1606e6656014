"""Models: detectors and the parts they are built of."""

from detkit.models.backbones import RegNet, Res2Net, ResNeSt, ResNet, ResNetV1d, ResNeXt
from detkit.models.data_preprocessor import DetDataPreprocessor
from detkit.models.dense_heads import FCOSHead, FoveaHead, RetinaHead
from detkit.models.detectors import FCOS, FOVEA, RetinaNet, SingleStageDetector
from detkit.models.necks import FPN
from detkit.models.pretrained import PretrainedInit

__all__ = [
    "FCOS",
    "FOVEA",
    "FPN",
    "DetDataPreprocessor",
    "FCOSHead",
    "FoveaHead",
    "PretrainedInit",
    "RegNet",
    "Res2Net",
    "ResNeSt",
    "ResNeXt",
    "ResNet",
    "ResNetV1d",
    "RetinaHead",
    "RetinaNet",
    "SingleStageDetector",
]
