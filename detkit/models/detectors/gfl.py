"""GFL, Li et al., https://arxiv.org/abs/2006.04388."""

from __future__ import annotations

from detkit.models.detectors.single_stage import SingleStageDetector
from detkit.registry import MODELS

__all__ = ["GFL"]


@MODELS.register_module()
class GFL(SingleStageDetector):
    """ResNet, FPN and GFLHead; the name that configs know."""
