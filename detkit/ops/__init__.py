"""Operators with kernels of their own; the only caller of ``torchvision.ops``."""

from detkit.ops.nms import batched_nms, nms
from detkit.ops.nms_match import nms_heads, nms_match

__all__ = ["batched_nms", "nms", "nms_heads", "nms_match"]
