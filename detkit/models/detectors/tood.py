"""TOOD, Feng et al., https://arxiv.org/abs/2108.07755."""

from __future__ import annotations

from detkit.models.detectors.single_stage import SingleStageDetector
from detkit.registry import MODELS

__all__ = ["TOOD"]


@MODELS.register_module()
class TOOD(SingleStageDetector):
    """ResNet, FPN and TOODHead; the name that configs know."""
