"""CenterNet, Zhou et al., https://arxiv.org/abs/1904.07850."""

from __future__ import annotations

from detkit.models.detectors.single_stage import SingleStageDetector
from detkit.registry import MODELS

__all__ = ["CenterNet"]


@MODELS.register_module()
class CenterNet(SingleStageDetector):
    """ResNet, CTResNetNeck and CenterNetHead, or ResNet, FPN and CenterNetUpdateHead; the name that configs know."""
