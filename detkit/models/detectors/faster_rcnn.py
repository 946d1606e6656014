"""Faster R-CNN, Ren et al., https://arxiv.org/abs/1506.01497."""

from __future__ import annotations

from detkit.models.detectors.two_stage import TwoStageDetector
from detkit.registry import MODELS

__all__ = ["FasterRCNN"]


@MODELS.register_module()
class FasterRCNN(TwoStageDetector):
    """A region proposal network, and a box head on its proposals; the name that configs know."""
