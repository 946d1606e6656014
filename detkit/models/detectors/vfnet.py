"""VFNet, Zhang et al., https://arxiv.org/abs/2008.13367."""

from __future__ import annotations

from detkit.models.detectors.single_stage import SingleStageDetector
from detkit.registry import MODELS

__all__ = ["VFNet"]


@MODELS.register_module()
class VFNet(SingleStageDetector):
    """ResNet, FPN and VFNetHead; the name that configs know."""
