"""PAA, Kim et al., https://arxiv.org/abs/2007.08103."""

from __future__ import annotations

from detkit.models.detectors.single_stage import SingleStageDetector
from detkit.registry import MODELS

__all__ = ["PAA"]


@MODELS.register_module()
class PAA(SingleStageDetector):
    """ResNet, FPN and PAAHead; the name that configs know."""
