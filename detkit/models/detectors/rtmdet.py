"""RTMDet, Lyu et al., https://arxiv.org/abs/2212.07784."""

from __future__ import annotations

from detkit.models.detectors.single_stage import SingleStageDetector
from detkit.registry import MODELS

__all__ = ["RTMDet"]


@MODELS.register_module()
class RTMDet(SingleStageDetector):
    """CSPNeXt, CSPNeXtPAFPN and RTMDetSepBNHead; the name that configs know."""
