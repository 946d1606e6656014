"""Detectors: backbone, neck and heads, trained and used as one."""

from detkit.models.detectors.retinanet import RetinaNet
from detkit.models.detectors.single_stage import SingleStageDetector

__all__ = ["RetinaNet", "SingleStageDetector"]
