"""Operators with kernels of their own; the only caller of ``torchvision.ops``."""

from detkit.ops.deform_conv import DeformConv2d, ModulatedDeformConv2d, deform_conv2d
from detkit.ops.nms import batched_nms, nms
from detkit.ops.nms_match import nms_heads, nms_match

__all__ = [
    "DeformConv2d",
    "ModulatedDeformConv2d",
    "batched_nms",
    "deform_conv2d",
    "nms",
    "nms_heads",
    "nms_match",
]
