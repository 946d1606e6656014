"""YOLOF, Chen et al., https://arxiv.org/abs/2103.09460."""

from __future__ import annotations

from detkit.models.detectors.single_stage import SingleStageDetector
from detkit.registry import MODELS

__all__ = ["YOLOF"]


@MODELS.register_module()
class YOLOF(SingleStageDetector):
    """ResNet, DilatedEncoder and YOLOFHead; the name that configs know."""
