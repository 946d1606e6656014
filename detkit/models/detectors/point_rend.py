"""PointRend, Kirillov et al., https://arxiv.org/abs/1912.08193."""

from __future__ import annotations

from detkit.models.detectors.two_stage import TwoStageDetector
from detkit.registry import MODELS

__all__ = ["PointRend"]


@MODELS.register_module()
class PointRend(TwoStageDetector):
    """Mask R-CNN with masks that are decided point by point; the name that configs know."""
