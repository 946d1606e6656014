"""What every assigner takes of one image: half precision, computed in float32, and box types."""

import pytest
import torch
from mmengine.structures import InstanceData
from task_modules.assigners.dense_scene import (
    CONFIGS,
    NUM_LEVEL_PRIORS,
    NUM_PRIORS,
    SIZE,
    STRIDES,
    anchors,
    objects,
    points,
    predictions,
    regions,
)

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import HorizontalBoxes

IOU = {"pos_iou_thr": 0.4, "neg_iou_thr": 0.3}
ASSIGNERS = {
    **CONFIGS,
    "ApproxMaxIoU": {"type": "ApproxMaxIoUAssigner", **IOU},
    "CenterRegion": {"type": "CenterRegionAssigner", "pos_scale": 0.3, "neg_scale": 0.6, "min_pos_iof": 0.05},
    "Grid": {"type": "GridAssigner", **IOU},
    "MultiInstance": {"type": "MultiInstanceAssigner", **IOU},
    "Point": {"type": "PointAssigner", "pos_num": 3},
    "Region": {"type": "RegionAssigner"},
    "Uniform": {"type": "UniformAssigner", "pos_ignore_thr": 0.15, "neg_ignore_thr": 0.6},
}
BOX_FIELDS = ("priors", "bboxes", "decoder_priors")


def scene(name):
    """Predictions, objects and further arguments for one of the assigners."""
    # So far from the origin, half precision has whole pixels and centres between them; levels of Region end before.
    far = 0.0 if name == "Region" else 1030.3
    drawn, gt, ignored = predictions(1, seed=0), objects(6, seed=1), regions(2, seed=0)
    boxes, scores = drawn["bboxes"][0] + far, drawn["scores"][0]
    gt.bboxes, ignored.bboxes = gt.bboxes + far, ignored.bboxes + far
    fields, more = {"priors": anchors() + far, "bboxes": boxes, "scores": scores}, {"gt_instances_ignore": ignored}
    if name == "ApproxMaxIoU":
        fields["approxs"] = torch.stack([fields["priors"], fields["priors"] + 2], dim=1)
    elif name == "Grid":
        fields["responsible_flags"] = torch.arange(NUM_PRIORS) % 3 > 0
    elif name in ("Point", "SimOTA", "DynamicSoftLabel"):
        fields["priors"] = points() + torch.tensor([far, far, 0.0, 0.0])
    elif name == "Uniform":
        fields["decoder_priors"] = boxes
    elif name == "Region":
        fields["valid_flags"] = torch.ones(NUM_PRIORS, dtype=torch.bool)
        more = {
            "img_meta": {"img_shape": (SIZE, SIZE)},
            "featmap_sizes": [(SIZE // stride, SIZE // stride) for stride in STRIDES],
            "num_level_anchors": NUM_LEVEL_PRIORS,
            "anchor_scale": 3,
            "anchor_strides": STRIDES,
            "allowed_border": -1,
        }
    if name.startswith("ATSS"):
        more["num_level_priors"] = NUM_LEVEL_PRIORS
    return fields, gt, more


def assign(name, fields, gt, more):
    result = TASK_UTILS.build(dict(ASSIGNERS[name])).assign(InstanceData(**fields), gt_instances=gt, **more)
    assert (result.labels[result.gt_inds > 0] >= 0).any()
    return [result.gt_inds, result.labels, result.max_overlaps]


@pytest.mark.parametrize("name", ASSIGNERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, dtype):
    fields, gt, more = scene(name)
    gt.bboxes = gt.bboxes.to(dtype)
    half = {key: value.to(dtype) if value.is_floating_point() else value for key, value in fields.items()}
    full = {key: value.float() if value.is_floating_point() else value for key, value in half.items()}
    found = assign(name, half, gt, more)
    expected = assign(name, full, InstanceData(bboxes=gt.bboxes.float(), labels=gt.labels), more)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ASSIGNERS)
def test_box_types_are_their_tensors(name):
    fields, gt, more = scene(name)
    expected = assign(name, fields, gt, more)
    points_not_boxes = ("Point", "SimOTA", "DynamicSoftLabel")
    for field in BOX_FIELDS:
        if field in fields and not (field == "priors" and name in points_not_boxes):
            fields[field] = HorizontalBoxes(fields[field])
    if "gt_instances_ignore" in more:
        more["gt_instances_ignore"] = InstanceData(bboxes=HorizontalBoxes(more["gt_instances_ignore"].bboxes))
    gt = InstanceData(bboxes=HorizontalBoxes(gt.bboxes), labels=gt.labels)
    torch.testing.assert_close(assign(name, fields, gt, more), expected, rtol=0, atol=0)
