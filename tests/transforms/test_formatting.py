"""What leaves the pipeline."""

import numpy as np
import pytest
import torch

from detkit.registry import TRANSFORMS
from detkit.structures import BitmapMasks
from detkit.transforms import PackDetInputs


def results(**extra):
    return {
        "img": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        "img_id": 5,
        "gt_bboxes": np.array([[0, 0, 1, 1], [1, 0, 4, 2]], dtype=np.float32),
        "gt_bboxes_labels": np.array([3, 1]),
        "gt_ignore_flags": np.array([True, False]),
        "gt_masks": BitmapMasks(np.stack([np.zeros((2, 4)), np.ones((2, 4))]).astype(np.uint8), 2, 4),
        **extra,
    }


def test_objects_and_ignored_regions_are_told_apart():
    sample = PackDetInputs()(results())["data_samples"]
    assert sample.gt_instances.bboxes.tolist() == [[1, 0, 4, 2]]
    assert sample.gt_instances.labels.tolist() == [1]
    assert sample.gt_instances.masks.areas.tolist() == [8]
    assert sample.ignored_instances.bboxes.tolist() == [[0, 0, 1, 1]]
    assert sample.ignored_instances.labels.tolist() == [3]
    assert sample.ignored_instances.masks.areas.tolist() == [0]


def test_the_image_is_channels_first_and_contiguous_whatever_its_strides():
    img = results()["img"]
    for view in (img, img[:, ::-1], img[..., ::-1].astype(np.float32)):
        inputs = PackDetInputs()({"img": view})["inputs"]
        assert inputs.is_contiguous()
        np.testing.assert_array_equal(inputs.numpy(), view.transpose(2, 0, 1))
    assert PackDetInputs()({"img": img[..., 0]})["inputs"].shape == (1, 2, 4)


def test_meta_keys_that_are_present():
    sample = PackDetInputs(meta_keys=["img_id", "flip", "note"])(results(note="x"))["data_samples"]
    assert sample.metainfo == {"img_id": 5, "note": "x"}


def test_a_test_image_without_annotations():
    sample = PackDetInputs()({"img": results()["img"]})["data_samples"]
    assert len(sample.gt_instances) == len(sample.ignored_instances) == 0
    assert "bboxes" not in sample.gt_instances


def test_proposals_and_segmentation_maps():
    extra = {
        "proposals": np.ones((3, 4), np.float32),
        "proposals_scores": np.zeros(3, np.float32),
        "gt_seg_map": np.ones((2, 4), np.uint8),
        "ignore_index": 255,
    }
    sample = PackDetInputs()(results(**extra))["data_samples"]
    assert sample.proposals.bboxes.shape == (3, 4)
    assert sample.proposals.scores.shape == (3,)
    assert sample.gt_sem_seg.sem_seg.shape == (1, 2, 4)
    assert sample.gt_sem_seg.ignore_index == 255


def test_a_whole_pipeline_of_plain_float32_boxes():
    pipeline = TRANSFORMS.build(
        {
            "type": "Compose",
            "transforms": [
                {"type": "Resize", "scale": (8, 4)},
                {"type": "RandomFlip", "prob": 1.0},
                {"type": "Pad", "size_divisor": 32},
                {"type": "PackDetInputs"},
            ],
        }
    )
    packed = pipeline(results())
    boxes = packed["data_samples"].gt_instances.bboxes
    assert type(boxes) is torch.Tensor
    assert boxes.dtype == torch.float32
    assert boxes.tolist() == [[0, 0, 6, 4]]  # [1, 0, 4, 2] doubled, then mirrored in 8
    assert packed["inputs"].shape == (3, 32, 32)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_box_that_is_not_finite_is_refused_with_its_image_and_annotation(value):
    spoilt = results(img_path="images/5.jpg", instances=[{"ann_id": 70}, {"ann_id": 71}])
    spoilt["gt_bboxes"][1, 2] = value
    with pytest.raises(ValueError, match=rf"images/5.jpg: annotation 71: the box \[1.0, 0.0, {value}, 2.0\]"):
        PackDetInputs()(spoilt)
    spoilt["instances"].append({"ann_id": 72})  # one was dropped since: which is not known
    with pytest.raises(ValueError, match=r"images/5\.jpg: object 1 of 2: "):
        PackDetInputs()(spoilt)
