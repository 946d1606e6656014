"""Fast R-CNN, Girshick, https://arxiv.org/abs/1504.08083."""

from __future__ import annotations

from detkit.models.detectors.two_stage import TwoStageDetector
from detkit.registry import MODELS

__all__ = ["FastRCNN"]


@MODELS.register_module()
class FastRCNN(TwoStageDetector):
    """A box head on proposals that come with the data; the name that configs know."""
