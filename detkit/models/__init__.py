"""Models: detectors and the parts they are built of."""

from detkit.models.backbones import (
    PyramidVisionTransformer,
    PyramidVisionTransformerV2,
    RegNet,
    Res2Net,
    ResNeSt,
    ResNet,
    ResNetV1d,
    ResNeXt,
    SwinTransformer,
    TIMMBackbone,
)
from detkit.models.data_preprocessor import DetDataPreprocessor
from detkit.models.dense_heads import (
    CenterNetHead,
    CenterNetUpdateHead,
    FCOSHead,
    FoveaHead,
    FreeAnchorRetinaHead,
    FSAFHead,
    RetinaHead,
    SABLRetinaHead,
)
from detkit.models.detectors import FCOS, FOVEA, FSAF, CenterNet, RetinaNet, SingleStageDetector
from detkit.models.necks import FPN
from detkit.models.pretrained import PretrainedInit

__all__ = [
    "FCOS",
    "FOVEA",
    "FPN",
    "FSAF",
    "CenterNet",
    "CenterNetHead",
    "CenterNetUpdateHead",
    "DetDataPreprocessor",
    "FCOSHead",
    "FSAFHead",
    "FoveaHead",
    "FreeAnchorRetinaHead",
    "PretrainedInit",
    "PyramidVisionTransformer",
    "PyramidVisionTransformerV2",
    "RegNet",
    "Res2Net",
    "ResNeSt",
    "ResNeXt",
    "ResNet",
    "ResNetV1d",
    "RetinaHead",
    "RetinaNet",
    "SABLRetinaHead",
    "SingleStageDetector",
    "SwinTransformer",
    "TIMMBackbone",
]
