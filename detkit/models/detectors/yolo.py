"""YOLOv3, Redmon and Farhadi, https://arxiv.org/abs/1804.02767."""

from __future__ import annotations

from detkit.models.detectors.single_stage import SingleStageDetector
from detkit.registry import MODELS

__all__ = ["YOLOV3"]


@MODELS.register_module()
class YOLOV3(SingleStageDetector):
    """Darknet, YOLOV3Neck and YOLOV3Head; the name that configs know."""
