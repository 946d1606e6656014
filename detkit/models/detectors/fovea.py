"""FoveaBox, Kong et al., https://arxiv.org/abs/1904.03797."""

from __future__ import annotations

from detkit.models.detectors.single_stage import SingleStageDetector
from detkit.registry import MODELS

__all__ = ["FOVEA"]


@MODELS.register_module()
class FOVEA(SingleStageDetector):
    """ResNet, FPN and FoveaHead; the name that configs know."""
