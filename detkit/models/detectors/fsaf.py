"""FSAF, Zhu et al., https://arxiv.org/abs/1903.00621."""

from __future__ import annotations

from detkit.models.detectors.single_stage import SingleStageDetector
from detkit.registry import MODELS

__all__ = ["FSAF"]


@MODELS.register_module()
class FSAF(SingleStageDetector):
    """ResNet, FPN and FSAFHead; the name that configs know."""
