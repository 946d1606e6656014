"""ATSS, Zhang et al., https://arxiv.org/abs/1912.02424."""

from __future__ import annotations

from detkit.models.detectors.single_stage import SingleStageDetector
from detkit.registry import MODELS

__all__ = ["ATSS"]


@MODELS.register_module()
class ATSS(SingleStageDetector):
    """ResNet, FPN and ATSSHead; the name that configs know."""
