"""Margin loss of similarities between objects, QDTrack, Pang et al., https://arxiv.org/abs/2006.06664."""

from __future__ import annotations

from detkit.losses.l2_loss import L2Loss
from detkit.registry import MODELS

__all__ = ["MarginL2Loss"]

# The name that QDTrack's embedding head uses.
MarginL2Loss = L2Loss
MODELS.register_module("MarginL2Loss", module=MarginL2Loss)
