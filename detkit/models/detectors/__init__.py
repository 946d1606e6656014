"""Detectors: backbone, neck and heads, trained and used as one."""

from detkit.models.detectors.centernet import CenterNet
from detkit.models.detectors.fcos import FCOS
from detkit.models.detectors.fovea import FOVEA
from detkit.models.detectors.fsaf import FSAF
from detkit.models.detectors.retinanet import RetinaNet
from detkit.models.detectors.single_stage import SingleStageDetector

__all__ = ["FCOS", "FOVEA", "FSAF", "CenterNet", "RetinaNet", "SingleStageDetector"]
