"""SCNet, Vu et al., https://arxiv.org/abs/2012.10150."""

from __future__ import annotations

from detkit.models.detectors.two_stage import TwoStageDetector
from detkit.registry import MODELS

__all__ = ["SCNet"]


@MODELS.register_module()
class SCNet(TwoStageDetector):
    """Cascade R-CNN with masks of its last boxes and context of the whole image; the name that configs know."""
