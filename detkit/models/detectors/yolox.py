"""YOLOX, Ge et al., https://arxiv.org/abs/2107.08430."""

from __future__ import annotations

from detkit.models.detectors.single_stage import SingleStageDetector
from detkit.registry import MODELS

__all__ = ["YOLOX"]


@MODELS.register_module()
class YOLOX(SingleStageDetector):
    """CSPDarknet, YOLOXPAFPN and YOLOXHead; the name that configs know."""
