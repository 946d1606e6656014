"""Operators with kernels of their own; the only caller of ``torchvision.ops``."""

from detkit.ops.deform_conv import DeformConv2d, ModulatedDeformConv2d, deform_conv2d
from detkit.ops.matrix_nms import mask_matrix_nms
from detkit.ops.multiclass_nms import fast_nms, multiclass_nms
from detkit.ops.nms import NMS_KINDS, NMSCfg, batched_nms, nms
from detkit.ops.nms_match import nms_heads, nms_match
from detkit.ops.point_sample import point_sample
from detkit.ops.roi_align import RoIAlign, RoIPool, SimpleRoIAlign, roi_align, roi_pool
from detkit.ops.soft_nms import soft_nms
from detkit.ops.switchable_conv import SAConv2d

__all__ = [
    "NMS_KINDS",
    "DeformConv2d",
    "ModulatedDeformConv2d",
    "NMSCfg",
    "RoIAlign",
    "RoIPool",
    "SAConv2d",
    "SimpleRoIAlign",
    "batched_nms",
    "deform_conv2d",
    "fast_nms",
    "mask_matrix_nms",
    "multiclass_nms",
    "nms",
    "nms_heads",
    "nms_match",
    "point_sample",
    "roi_align",
    "roi_pool",
    "soft_nms",
]
