"""Operators with kernels of their own; the only caller of ``torchvision.ops``."""

from detkit.ops.nms import batched_nms, nms

__all__ = ["batched_nms", "nms"]
