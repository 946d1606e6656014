"""Functions on boxes: plain float tensors ``(..., 4)``, xyxy in pixels, x2 > x1, no +1."""

from detkit.structures.boxes.box_tensor import HasTensor, get_box_tensor
from detkit.structures.boxes.clip import MaxShape, stack_corners
from detkit.structures.boxes.conversion import (
    bbox2corner,
    bbox2distance,
    bbox_cxcyah_to_xyxy,
    bbox_cxcywh_to_xyxy,
    bbox_xyxy_to_cxcyah,
    bbox_xyxy_to_cxcywh,
    corner2bbox,
    distance2bbox,
    get_box_wh,
)
from detkit.structures.boxes.geometry import (
    bbox_flip,
    bbox_mapping,
    bbox_mapping_back,
    bbox_project,
    bbox_rescale,
    find_inside_bboxes,
    scale_boxes,
)
from detkit.structures.boxes.horizontal_boxes import HorizontalBoxes, cat_boxes, empty_box_as, stack_boxes
from detkit.structures.boxes.overlaps import OVERLAP_MODES, bbox_overlaps, raw_overlaps
from detkit.structures.boxes.rois import bbox2result, bbox2roi, roi2bbox

__all__ = [
    "OVERLAP_MODES",
    "HasTensor",
    "HorizontalBoxes",
    "MaxShape",
    "bbox2corner",
    "bbox2distance",
    "bbox2result",
    "bbox2roi",
    "bbox_cxcyah_to_xyxy",
    "bbox_cxcywh_to_xyxy",
    "bbox_flip",
    "bbox_mapping",
    "bbox_mapping_back",
    "bbox_overlaps",
    "bbox_project",
    "bbox_rescale",
    "bbox_xyxy_to_cxcyah",
    "bbox_xyxy_to_cxcywh",
    "cat_boxes",
    "corner2bbox",
    "distance2bbox",
    "empty_box_as",
    "find_inside_bboxes",
    "get_box_tensor",
    "get_box_wh",
    "raw_overlaps",
    "roi2bbox",
    "scale_boxes",
    "stack_boxes",
    "stack_corners",
]
