"""Constructors and methods have the argument names, order and defaults of MMDetection 3.3.0."""

import inspect

import pytest

from detkit.registry import TASK_UTILS

REQUIRED = inspect.Parameter.empty
IOU = {"pos_iou_thr": REQUIRED, "neg_iou_thr": REQUIRED, "min_pos_iou": 0.0, "gt_max_assign_all": True}
MAX_IOU = {**IOU, "ignore_iof_thr": -1, "ignore_wrt_candidates": True, "match_low_quality": True, "gpu_assign_thr": -1}
FOCAL = {"alpha": 0.25, "gamma": 2, "eps": 1e-12, "binary_input": False, "weight": 1.0}
# Dicts of MMDetection's defaults (calculators, costs) are None here and made in the constructor.
ARGUMENTS = {
    "ApproxMaxIoUAssigner": {**MAX_IOU, "iou_calculator": None},
    "BBoxL1Cost": {"box_format": "xyxy", "weight": 1.0},
    "BinaryFocalLossCost": FOCAL,
    "CenterRegionAssigner": {
        "pos_scale": REQUIRED,
        "neg_scale": REQUIRED,
        "min_pos_iof": 1e-2,
        "ignore_gt_scale": 0.5,
        "foreground_dominate": False,
        "iou_calculator": None,
    },
    "ClassificationCost": {"weight": 1.0},
    "CrossEntropyLossCost": {"use_sigmoid": True, "weight": 1.0},
    "DiceCost": {"pred_act": False, "eps": 1e-3, "naive_dice": True, "weight": 1.0},
    "FocalLossCost": FOCAL,
    "GridAssigner": {**IOU, "iou_calculator": None},
    "HungarianAssigner": {"match_costs": REQUIRED},
    "IoUCost": {"iou_mode": "giou", "weight": 1.0},
    "MultiInstanceAssigner": {"num_instance": 2, **MAX_IOU, "iou_calculator": None},
    "PointAssigner": {"scale": 4, "pos_num": 3},
    "RegionAssigner": {"center_ratio": 0.2, "ignore_ratio": 0.5},
    "TopkHungarianAssigner": {
        "topk": REQUIRED,
        "iou_calculator": None,
        "cls_cost": None,
        "reg_cost": None,
        "iou_cost": None,
    },
    "UniformAssigner": {
        "pos_ignore_thr": REQUIRED,
        "neg_ignore_thr": REQUIRED,
        "match_times": 4,
        "iou_calculator": None,
    },
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name):
    found = inspect.signature(TASK_UTILS.get(name)).parameters
    assert {key: parameter.default for key, parameter in found.items()} == ARGUMENTS[name]
    assert list(found) == list(ARGUMENTS[name])


PER_IMAGE = {"pred_instances": REQUIRED, "gt_instances": REQUIRED, "gt_instances_ignore": None}
LEVELS = ("img_meta", "featmap_sizes", "num_level_anchors", "anchor_scale", "anchor_strides")
PLAIN = ("pred_scores", "decode_bboxes", "gt_bboxes", "gt_labels", "img_meta")
METHODS = {
    "ApproxMaxIoUAssigner": PER_IMAGE,
    "CenterRegionAssigner": PER_IMAGE,
    "GridAssigner": PER_IMAGE,
    "HungarianAssigner": {"pred_instances": REQUIRED, "gt_instances": REQUIRED, "img_meta": None},
    "MultiInstanceAssigner": PER_IMAGE,
    "PointAssigner": PER_IMAGE,
    "RegionAssigner": {
        "pred_instances": REQUIRED,
        "gt_instances": REQUIRED,
        **dict.fromkeys(LEVELS, REQUIRED),
        "gt_instances_ignore": None,
        "allowed_border": 0,
    },
    "TopkHungarianAssigner": {**dict.fromkeys(PLAIN, REQUIRED), "alpha": 1, "beta": 6},
    "UniformAssigner": PER_IMAGE,
}


@pytest.mark.parametrize("name", METHODS)
def test_assign(name):
    found = dict(inspect.signature(TASK_UTILS.get(name).assign).parameters)
    assert found.pop("kwargs").kind is inspect.Parameter.VAR_KEYWORD
    del found["self"]
    assert {key: parameter.default for key, parameter in found.items()} == METHODS[name]
    assert list(found) == list(METHODS[name])


@pytest.mark.parametrize(("name", "setting"), [("RegionAssigner", "allowed_border"), ("TopkHungarianAssigner", "alpha"),
                                               ("TopkHungarianAssigner", "beta")])  # fmt: skip
def test_the_batched_form_has_the_same_defaults(name, setting):
    batched = inspect.signature(TASK_UTILS.get(name).assign_batch).parameters
    assert batched[setting].default == METHODS[name][setting]
