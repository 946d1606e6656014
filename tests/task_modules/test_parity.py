"""Assigners, coders and prior generators against MMDetection 3.3.0."""

import pytest
import torch
from mmengine.structures import InstanceData
from reference import arguments, assert_same, case_named, cases

from detkit.registry import TASK_UTILS
from detkit.structures.ground_truth import GroundTruth

# With an int, MMDetection's assigner finds no negatives at all; tested below.
WITHOUT_BUG = [case for case in cases("assigners/MaxIoUAssigner") if case.id != "neg_thr_int"]


@pytest.mark.parametrize("case", WITHOUT_BUG)
def test_max_iou_assigner(case):
    result = TASK_UTILS.build(case["config"]).assign(**arguments(case["inputs"]))
    assert_same(result, case["outputs"], rtol=1e-4, atol=1e-5)


def test_an_int_threshold_is_a_number_like_any_other():
    case = case_named("assigners/MaxIoUAssigner", "neg_thr_int")
    result = TASK_UTILS.build(case["config"]).assign(**arguments(case["inputs"]))
    assert (result.gt_inds[result.max_overlaps < 1] >= 0).all()
    assert (result.gt_inds == 0).any()


@pytest.mark.parametrize("case", WITHOUT_BUG)
def test_a_batch_is_its_images_one_by_one(case):
    """Padding, and an image without objects beside it, change nothing."""
    assigner = TASK_UTILS.build(case["config"])
    inputs = arguments(case["inputs"])
    priors, gt, ignored = inputs["pred_instances"].priors, inputs["gt_instances"], inputs.get("gt_instances_ignore")
    more = InstanceData(bboxes=torch.cat([gt.bboxes, gt.bboxes + 3]), labels=torch.cat([gt.labels, gt.labels]))
    images = [(gt, ignored), (more, None), (gt[:0], None)]
    batch = assigner.assign_batch(priors, GroundTruth.from_instances(*(list(c) for c in zip(*images, strict=True))))
    for index, (instances, regions) in enumerate(images):
        alone = assigner.assign(InstanceData(priors=priors), instances, regions)
        in_batch = batch.image(index, len(instances))
        assert torch.equal(alone.gt_inds, in_batch.gt_inds)
        assert torch.equal(alone.labels, in_batch.labels)
        assert torch.equal(alone.max_overlaps, in_batch.max_overlaps)
