"""Box heads: class and box of a region."""

from detkit.models.roi_heads.bbox_heads.bbox_head import (
    BBoxHead,
    ConvFCBBoxHead,
    SCNetBBoxHead,
    Shared2FCBBoxHead,
    Shared4Conv1FCBBoxHead,
)
from detkit.models.roi_heads.bbox_heads.double_bbox_head import DoubleConvFCBBoxHead
from detkit.models.roi_heads.bbox_heads.sabl_head import SABLHead

__all__ = [
    "BBoxHead",
    "ConvFCBBoxHead",
    "DoubleConvFCBBoxHead",
    "SABLHead",
    "SCNetBBoxHead",
    "Shared2FCBBoxHead",
    "Shared4Conv1FCBBoxHead",
]
