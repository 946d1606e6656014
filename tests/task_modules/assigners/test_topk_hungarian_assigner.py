import math

import pytest
import torch
from assigner_laws import (
    Scene,
    assert_absent_priors_change_nothing,
    assert_batch_is_its_images,
    assert_order_of_objects_is_free,
    assert_reference,
    boxes,
)
from host_reads import HostReads
from hypothesis import given, settings
from hypothesis import strategies as st
from no_sync import NoSync
from reference import cases

from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import TopkHungarianAssigner


def scene(seed, counts=(4, 0, 2), num_predictions=30):
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.stack([boxes(num_predictions, seed + 100 * (index + 1)) for index in range(len(counts))])
    inputs = {"scores": torch.rand(len(counts), num_predictions, 40, generator=generator), "bboxes": predicted}
    metas = [{"img_shape": (150, 160 + index), "img_path": f"dir/{index}.jpg"} for index in range(len(counts))]
    priors = torch.zeros(num_predictions, 4)
    return Scene.random(priors, list(counts), seed, inputs=inputs, settings={"img_metas": metas})


@pytest.mark.parametrize("case", cases("assigners/TopkHungarianAssigner"))
def test_reference(case):
    assert_reference(case)


def test_by_hand():
    bboxes = torch.tensor([[0.0, 0, 10, 8], [50, 50, 60, 60], [0, 0, 10, 10], [50, 50, 60, 65], [90, 90, 99, 99]])
    scores = torch.full((5, 2), 0.5)
    gt = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    result = TopkHungarianAssigner(topk=2).assign(
        scores, bboxes, gt, torch.tensor([1, 0]), {"img_shape": (100, 100)}, alpha=1, beta=2
    )
    assert result.gt_inds.tolist() == [1, 2, 1, 2, 0]
    assert result.labels.tolist() == [1, 0, 1, 0, -1]
    # IoU 0.8, 1, 1 and 2/3; metric is half of its square
    torch.testing.assert_close(result.max_overlaps, torch.tensor([0.8, 1, 1, 2 / 3]))
    torch.testing.assert_close(result.assign_metrics, torch.tensor([0.32, 0.5, 0.5, 2 / 9]))


def test_more_objects_than_predictions():
    """MMDetection assigns nothing there."""
    images = scene(0, (7,), num_predictions=3)
    result = images.assign(TopkHungarianAssigner(topk=4))
    assert (result.gt_inds > 0).all()
    assert len(result.gt_inds.unique()) == 3


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), topk=st.integers(1, 8))
def test_laws(seed, topk):
    use, images = TopkHungarianAssigner(topk), scene(seed)
    assert_batch_is_its_images(use, images)
    assert_order_of_objects_is_free(use, images, seed)
    assert_absent_priors_change_nothing(use, images, seed)
    result = images.assign(use)
    for index, count in enumerate((4, 0, 2)):
        numbers = [(result.gt_inds[index] == number + 1).sum().item() for number in range(count)]
        assert numbers == [min(topk, 30 // max(count, 1))] * count
    assert not result.max_overlaps[result.gt_inds <= 0].any()
    assert torch.equal(result.metrics > 0, (result.gt_inds > 0) & (result.max_overlaps > 0))


@pytest.mark.parametrize("counts", [(0,), (1,), (33,), (0, 0)])
@pytest.mark.parametrize("num_predictions", [0, 20])
def test_nothing_one_and_more_objects_than_predictions(counts, num_predictions):
    result = scene(3, counts, num_predictions).assign(TopkHungarianAssigner(2))
    shape = (len(counts), num_predictions)
    assert result.gt_inds.shape == result.labels.shape == result.max_overlaps.shape == result.metrics.shape == shape
    assert (result.gt_inds > 0).any() == (counts[0] > 0 and num_predictions > 0)


def test_one_transfer_each_way():
    images = scene(0)
    truth = GroundTruth.from_instances(images.objects)
    with HostReads() as reads, NoSync():
        TopkHungarianAssigner(3).assign_batch(None, truth, **images.inputs, **images.settings)
    assert reads.counts == {"cpu": 1, "numpy": 1, "to": 2}  # there also the sizes of the images


def test_predictions_that_are_not_finite_name_the_image():
    images = scene(0)
    images.inputs["bboxes"][2, 7] = math.nan
    with pytest.raises(
        ValueError,
        match=r"TopkHungarianAssigner: image 2 of the batch \(dir/2.jpg\): the cost of prediction 7 and object 0 is "
        r"cls_cost -?\d.*, reg_cost nan, iou_cost nan; bboxes of the prediction are not finite",
    ):
        images.assign(TopkHungarianAssigner(3))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="topk must be at least 1, got 0"):
        TopkHungarianAssigner(0)
