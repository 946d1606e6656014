"""Hybrid Task Cascade, Chen et al., https://arxiv.org/abs/1901.07518."""

from __future__ import annotations

from detkit.models.detectors.two_stage import TwoStageDetector
from detkit.registry import MODELS

__all__ = ["HybridTaskCascade"]


@MODELS.register_module()
class HybridTaskCascade(TwoStageDetector):
    """Cascade Mask R-CNN whose boxes and masks take turns; the name that configs know."""
