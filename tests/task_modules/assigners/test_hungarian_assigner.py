import math

import pytest
import torch
from assigner_laws import (
    Scene,
    assert_absent_priors_change_nothing,
    assert_batch_is_its_images,
    assert_chunks_change_nothing,
    assert_order_of_objects_is_free,
    assert_reference,
    assert_same_result,
    boxes,
    instances,
)
from host_reads import HostReads
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.structures import InstanceData
from no_sync import NoSync
from reference import cases

from detkit.registry import TASK_UTILS
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import HungarianAssigner

DETR = [
    {"type": "ClassificationCost", "weight": 1.0},
    {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
    {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
]
FOCAL = [{"type": "FocalLossCost", "weight": 2.0}, *DETR[1:]]
MASKS = [{"type": "CrossEntropyLossCost", "weight": 5.0}, {"type": "DiceCost", "weight": 5.0, "pred_act": True}]


def scene(seed, counts=(4, 0, 2), num_predictions=20):
    generator = torch.Generator().manual_seed(seed)
    size = len(counts), num_predictions
    predicted = torch.stack([boxes(num_predictions, seed + 100 * (index + 1)) for index in range(len(counts))])
    inputs = {"scores": torch.randn(*size, 40, generator=generator), "bboxes": predicted}
    metas = [{"img_shape": (150, 160 + index), "img_path": f"dir/{index}.jpg"} for index in range(len(counts))]
    priors = torch.zeros(num_predictions, 4)
    return Scene.random(priors, list(counts), seed, inputs=inputs, settings={"img_metas": metas})


@pytest.mark.parametrize("case", cases("assigners/HungarianAssigner"))
def test_reference(case):
    if "error" in case:
        with pytest.raises(ValueError, match="match_costs is empty"):
            assert_reference(case)
    else:
        assert_reference(case)


def test_by_hand():
    pred = InstanceData(bboxes=torch.tensor([[50.0, 50, 60, 60], [0, 0, 9, 9], [0, 0, 10, 10]]))
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 61]]), labels=torch.tensor([7, 8]))
    result = HungarianAssigner({"type": "BBoxL1Cost"}).assign(pred, gt, {"img_shape": (100, 100)})
    assert result.gt_inds.tolist() == [2, 0, 1]
    assert result.labels.tolist() == [8, -1, 7]
    assert result.max_overlaps is None
    assert result.num_gts == 2


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), costs=st.sampled_from([DETR, FOCAL]))
def test_laws(seed, costs):
    use, images = HungarianAssigner(costs), scene(seed)
    assert_batch_is_its_images(use, images)
    assert_order_of_objects_is_free(use, images, seed)
    assert_absent_priors_change_nothing(use, images, seed)
    result = images.assign(use)
    for index, count in enumerate((4, 0, 2)):  # each object gets one prediction of its own
        assert sorted(result.gt_inds[index].tolist()) == [0] * (20 - count) + list(range(1, count + 1))


def test_costs_of_a_few_images_at_a_time_are_the_same(monkeypatch):
    assert_chunks_change_nothing(HungarianAssigner(DETR), scene(0), 1, monkeypatch)


@pytest.mark.parametrize("counts", [(0,), (1,), (33,), (0, 0)])
@pytest.mark.parametrize("num_predictions", [0, 20])
def test_nothing_one_and_more_objects_than_predictions(counts, num_predictions):
    result = scene(3, counts, num_predictions).assign(HungarianAssigner(DETR))
    assert result.gt_inds.shape == result.labels.shape == (len(counts), num_predictions)
    assert (result.gt_inds > 0).sum() == min(counts[0], num_predictions)


def test_without_objects_no_fact_of_the_image_is_needed():
    pred = InstanceData(scores=torch.rand(3, 40), bboxes=boxes(3, 0))
    result = HungarianAssigner(DETR).assign(pred, instances(0, 0))
    assert result.gt_inds.tolist() == [0, 0, 0]
    assert result.labels.tolist() == [-1, -1, -1]
    empty = GroundTruth.from_instances([instances(0, 0)])
    some = HungarianAssigner(DETR).assign_batch(
        None, empty, torch.tensor([[True, False, True]]), bboxes=pred.bboxes.unsqueeze(0)
    )
    assert some.gt_inds.tolist() == [[0, -1, 0]]


def test_one_transfer_each_way():
    """However many images and decoder layers there are; the sizes of the images go to the device besides."""
    images = scene(0)
    layers = Scene(
        images.priors,
        images.objects * 6,
        images.regions * 6,
        {name: value.repeat(6, *[1] * (value.dim() - 1)) for name, value in images.inputs.items()},
        {"img_metas": images.settings["img_metas"] * 6},
    )
    truth = GroundTruth.from_instances(layers.objects)
    with HostReads() as reads, NoSync():
        result = HungarianAssigner(FOCAL).assign_batch(None, truth, **layers.inputs, **layers.settings)
    assert reads.counts == {"cpu": 1, "numpy": 1, "to": 2}
    assert torch.equal(result.gt_inds, images.assign(HungarianAssigner(FOCAL)).gt_inds.repeat(6, 1))


def test_masks_need_no_boxes():
    generator = torch.Generator().manual_seed(0)
    gt_masks = torch.rand(3, 3, 8, 8, generator=generator) > 0.5
    order = torch.tensor([2, 0, 1])
    logits = torch.where(gt_masks[:, order], 5.0, -5.0)
    use = HungarianAssigner(MASKS)
    result = use.assign(InstanceData(masks=logits[0]), InstanceData(masks=gt_masks[0], labels=torch.arange(3)))
    assert result.gt_inds.tolist() == (order + 1).tolist()
    truth = GroundTruth.from_instances([instances(3, 0)] * 3)
    batch = use.assign_batch(None, truth, objects={"masks": gt_masks}, masks=logits)
    assert batch.gt_inds.tolist() == [(order + 1).tolist()] * 3


def test_a_match_cost_of_ones_own_needs_only_the_image_form():
    class TableCost:
        def __call__(self, pred_instances, gt_instances, img_meta=None, **kwargs):
            return pred_instances.table[:, : len(gt_instances)] * img_meta["scale"]

    TASK_UTILS.register_module(name="TableCost", module=TableCost)
    try:
        use = HungarianAssigner({"type": "TableCost"})
    finally:
        TASK_UTILS.module_dict.pop("TableCost")
    table = torch.tensor([[1.0, 2], [1.5, 9]])
    alone = use.assign(InstanceData(table=table), instances(2, 0), {"scale": 1})
    assert alone.gt_inds.tolist() == [2, 1]
    truth = GroundTruth.from_instances([instances(2, 0), instances(2, 1)])
    metas = [{"scale": 1}, {"scale": -1}]
    batch = use.assign_batch(None, truth, img_metas=metas, table=torch.stack([table, table]))
    assert batch.gt_inds.tolist() == [[2, 1], [1, 2]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    images = scene(0)
    half = {name: value.to(dtype) for name, value in images.inputs.items()}
    whole = {name: value.float() for name, value in half.items()}
    low, high = (
        Scene(images.priors, images.objects, images.regions, inputs, images.settings) for inputs in (half, whole)
    )
    assert_same_result(low.assign(HungarianAssigner(DETR)), high.assign(HungarianAssigner(DETR)))


def broken(seed=0, **changes):
    images = scene(seed)
    inputs = {name: value.clone() for name, value in images.inputs.items()}
    for name, (index, value) in changes.items():
        inputs[name][index] = value
    return Scene(images.priors, images.objects, images.regions, inputs, images.settings)


def test_predictions_that_are_not_finite_name_the_image():
    with pytest.raises(
        ValueError,
        match=r"HungarianAssigner: image 2 of the batch \(dir/2.jpg\): the cost of prediction 7 and object 0 is "
        r"ClassificationCost nan, BBoxL1Cost \d.*; scores of the prediction are not finite: the training has diverged",
    ):
        broken(scores=((2, 7, 3), math.nan)).assign(HungarianAssigner(DETR))
    with pytest.raises(ValueError, match=r"dir/0.jpg.*prediction 5 .*bboxes of the prediction are not finite"):
        broken(bboxes=((0, 5), math.nan)).assign(HungarianAssigner(DETR))
    # An image without objects has nothing to match.
    broken(scores=((1, 7, 3), math.nan)).assign(HungarianAssigner(DETR))


def test_a_label_without_class_names_the_object():
    images = scene(0)
    images.objects[2].labels[1] = 40
    with pytest.raises(ValueError, match=r"dir/2.jpg.* object 1 .*the object has label 40, but there are 40 classes"):
        images.assign(HungarianAssigner(FOCAL))


def test_a_box_that_is_no_box_names_the_object():
    images = scene(0)
    images.objects[2].bboxes[1, 2] = math.inf
    with pytest.raises(ValueError, match=r"dir/2.jpg.* object 1 .*the object's box is \[.*inf"):
        images.assign(HungarianAssigner(DETR))


def test_infinite_costs_that_leave_no_assignment():
    images = broken(bboxes=((0, slice(None), 2), 1e38), scores=((0, 0, 0), 0.0))
    images.settings["img_metas"][0]["img_shape"] = (1e-9, 1e-9)
    with pytest.raises(ValueError, match=r"image 0 of the batch \(dir/0.jpg\) has infinite costs"):
        images.assign(HungarianAssigner({"type": "BBoxL1Cost"}))


def test_inputs_that_are_missing():
    truth = GroundTruth.from_instances([instances(2, 0)])
    with pytest.raises(ValueError, match="HungarianAssigner: no predictions given"):
        HungarianAssigner(DETR).assign_batch(None, truth)
    with pytest.raises(
        ValueError, match="ClassificationCost: the predictions need the field 'scores', but have bboxes"
    ):
        HungarianAssigner(DETR).assign_batch(None, truth, bboxes=torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match="BBoxL1Cost: image 0 needs img_meta with 'img_shape', got None"):
        HungarianAssigner(DETR[1]).assign_batch(None, truth, bboxes=torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match="HungarianAssigner: 2 img_metas for 1 images"):
        HungarianAssigner(DETR[1]).assign_batch(None, truth, img_metas=[{}, {}], bboxes=torch.zeros(1, 3, 4))
