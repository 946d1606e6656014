"""RetinaNet, Lin et al., https://arxiv.org/abs/1708.02002."""

from __future__ import annotations

from detkit.models.detectors.single_stage import SingleStageDetector
from detkit.registry import MODELS

__all__ = ["RetinaNet"]


@MODELS.register_module()
class RetinaNet(SingleStageDetector):
    """ResNet, FPN and RetinaHead; the name that configs know."""
