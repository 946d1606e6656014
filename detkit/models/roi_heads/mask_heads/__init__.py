"""Mask heads: where in a region its object is."""

from detkit.models.roi_heads.mask_heads.coarse_mask_head import CoarseMaskHead
from detkit.models.roi_heads.mask_heads.fcn_mask_head import FCNMaskHead
from detkit.models.roi_heads.mask_heads.fused_semantic_head import FusedSemanticHead
from detkit.models.roi_heads.mask_heads.htc_mask_head import HTCMaskHead
from detkit.models.roi_heads.mask_heads.mask_point_head import MaskPointHead
from detkit.models.roi_heads.mask_heads.maskiou_head import MaskIoUHead
from detkit.models.roi_heads.mask_heads.scnet_heads import (
    FeatureRelayHead,
    GlobalContextHead,
    SCNetMaskHead,
    SCNetSemanticHead,
)

__all__ = [
    "CoarseMaskHead",
    "FCNMaskHead",
    "FeatureRelayHead",
    "FusedSemanticHead",
    "GlobalContextHead",
    "HTCMaskHead",
    "MaskIoUHead",
    "MaskPointHead",
    "SCNetMaskHead",
    "SCNetSemanticHead",
]
