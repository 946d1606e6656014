"""RepPoints, Yang et al., https://arxiv.org/abs/1904.11490."""

from __future__ import annotations

from detkit.models.detectors.single_stage import SingleStageDetector
from detkit.registry import MODELS

__all__ = ["RepPointsDetector"]


@MODELS.register_module()
class RepPointsDetector(SingleStageDetector):
    """ResNet, FPN and RepPointsHead; the name that configs know."""
