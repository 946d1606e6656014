"""Coders: boxes as numbers a network can regress."""

from detkit.task_modules.coders.bucketing_bbox_coder import (
    BucketingBBoxCoder,
    BucketTargets,
    bbox2bucket,
    bucket2bbox,
)
from detkit.task_modules.coders.delta_xywh_bbox_coder import DeltaXYWHBBoxCoder, bbox2delta, delta2bbox
from detkit.task_modules.coders.delta_xywh_glip_bbox_coder import DeltaXYWHBBoxCoderForGLIP
from detkit.task_modules.coders.delta_xywht_rbbox_coder import DeltaXYWHTRBBoxCoder
from detkit.task_modules.coders.distance_point_bbox_coder import DistancePointBBoxCoder
from detkit.task_modules.coders.finite import encode_finite
from detkit.task_modules.coders.legacy_delta_xywh_bbox_coder import (
    LegacyDeltaXYWHBBoxCoder,
    legacy_bbox2delta,
    legacy_delta2bbox,
)
from detkit.task_modules.coders.pseudo_bbox_coder import PseudoBBoxCoder
from detkit.task_modules.coders.tblr_bbox_coder import TBLRBBoxCoder, bboxes2tblr, tblr2bboxes
from detkit.task_modules.coders.yolo_bbox_coder import YOLOBBoxCoder

__all__ = [
    "BucketTargets",
    "BucketingBBoxCoder",
    "DeltaXYWHBBoxCoder",
    "DeltaXYWHBBoxCoderForGLIP",
    "DeltaXYWHTRBBoxCoder",
    "DistancePointBBoxCoder",
    "LegacyDeltaXYWHBBoxCoder",
    "PseudoBBoxCoder",
    "TBLRBBoxCoder",
    "YOLOBBoxCoder",
    "bbox2bucket",
    "bbox2delta",
    "bboxes2tblr",
    "bucket2bbox",
    "delta2bbox",
    "encode_finite",
    "legacy_bbox2delta",
    "legacy_delta2bbox",
    "tblr2bboxes",
]
