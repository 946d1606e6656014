"""Cascade R-CNN, Cai and Vasconcelos, https://arxiv.org/abs/1906.09756."""

from __future__ import annotations

from detkit.models.detectors.two_stage import TwoStageDetector
from detkit.registry import MODELS

__all__ = ["CascadeRCNN"]


@MODELS.register_module()
class CascadeRCNN(TwoStageDetector):
    """Faster or Mask R-CNN with a second stage that is repeated; the name that configs know."""
