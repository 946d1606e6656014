"""Models: detectors and the parts they are built of."""

from detkit.models import pretrained
from detkit.models.backbones import ResNet
from detkit.models.data_preprocessor import DetDataPreprocessor
from detkit.models.dense_heads import RetinaHead
from detkit.models.detectors import RetinaNet, SingleStageDetector
from detkit.models.necks import FPN

__all__ = ["FPN", "DetDataPreprocessor", "ResNet", "RetinaHead", "RetinaNet", "SingleStageDetector", "pretrained"]
