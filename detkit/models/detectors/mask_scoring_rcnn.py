"""Mask Scoring R-CNN, Huang et al., https://arxiv.org/abs/1903.00241."""

from __future__ import annotations

from detkit.models.detectors.two_stage import TwoStageDetector
from detkit.registry import MODELS

__all__ = ["MaskScoringRCNN"]


@MODELS.register_module()
class MaskScoringRCNN(TwoStageDetector):
    """Mask R-CNN that says how well its masks fit; the name that configs know."""
