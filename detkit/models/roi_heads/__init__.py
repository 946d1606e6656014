"""RoI heads: what a detector's second stage says of proposals."""

from detkit.models.roi_heads.bbox_heads import (
    BBoxHead,
    ConvFCBBoxHead,
    DoubleConvFCBBoxHead,
    SABLHead,
    SCNetBBoxHead,
    Shared2FCBBoxHead,
    Shared4Conv1FCBBoxHead,
)
from detkit.models.roi_heads.cascade_roi_head import CascadeRoIHead
from detkit.models.roi_heads.double_roi_head import DoubleHeadRoIHead
from detkit.models.roi_heads.dynamic_roi_head import DynamicRoIHead
from detkit.models.roi_heads.htc_roi_head import HybridTaskCascadeRoIHead
from detkit.models.roi_heads.mask_heads import (
    CoarseMaskHead,
    FCNMaskHead,
    FeatureRelayHead,
    FusedSemanticHead,
    GlobalContextHead,
    HTCMaskHead,
    MaskIoUHead,
    MaskPointHead,
    SCNetMaskHead,
    SCNetSemanticHead,
)
from detkit.models.roi_heads.mask_scoring_roi_head import MaskScoringRoIHead
from detkit.models.roi_heads.pisa_roi_head import PISARoIHead
from detkit.models.roi_heads.point_rend_roi_head import PointRendRoIHead
from detkit.models.roi_heads.roi_extractors import GenericRoIExtractor, SingleRoIExtractor
from detkit.models.roi_heads.scnet_roi_head import SCNetRoIHead
from detkit.models.roi_heads.shared_heads import ResLayer
from detkit.models.roi_heads.standard_roi_head import StandardRoIHead
from detkit.models.roi_heads.trident_roi_head import TridentRoIHead

__all__ = [
    "BBoxHead",
    "CascadeRoIHead",
    "CoarseMaskHead",
    "ConvFCBBoxHead",
    "DoubleConvFCBBoxHead",
    "DoubleHeadRoIHead",
    "DynamicRoIHead",
    "FCNMaskHead",
    "FeatureRelayHead",
    "FusedSemanticHead",
    "GenericRoIExtractor",
    "GlobalContextHead",
    "HTCMaskHead",
    "HybridTaskCascadeRoIHead",
    "MaskIoUHead",
    "MaskPointHead",
    "MaskScoringRoIHead",
    "PISARoIHead",
    "PointRendRoIHead",
    "ResLayer",
    "SABLHead",
    "SCNetBBoxHead",
    "SCNetMaskHead",
    "SCNetRoIHead",
    "SCNetSemanticHead",
    "Shared2FCBBoxHead",
    "Shared4Conv1FCBBoxHead",
    "SingleRoIExtractor",
    "StandardRoIHead",
    "TridentRoIHead",
]
