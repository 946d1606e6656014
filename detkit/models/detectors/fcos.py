"""FCOS, Tian et al., https://arxiv.org/abs/1904.01355."""

from __future__ import annotations

from detkit.models.detectors.single_stage import SingleStageDetector
from detkit.registry import MODELS

__all__ = ["FCOS"]


@MODELS.register_module()
class FCOS(SingleStageDetector):
    """ResNet, FPN and FCOSHead; the name that configs know."""
