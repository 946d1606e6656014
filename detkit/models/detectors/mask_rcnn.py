"""Mask R-CNN, He et al., https://arxiv.org/abs/1703.06870."""

from __future__ import annotations

from detkit.models.detectors.two_stage import TwoStageDetector
from detkit.registry import MODELS

__all__ = ["MaskRCNN"]


@MODELS.register_module()
class MaskRCNN(TwoStageDetector):
    """Faster R-CNN with a mask head beside the box head; the name that configs know."""
