import pytest
import torch
from assigner_laws import (
    Scene,
    assert_absent_priors_change_nothing,
    assert_batch_is_its_images,
    assert_chunks_change_nothing,
    assert_no_sync_and_traceable,
    assert_order_of_objects_is_free,
    assert_reference,
    assert_regions_add_no_positive,
    boxes,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.structures import InstanceData
from reference import cases

from detkit.task_modules import CenterRegionAssigner


def cells(stride=8, count=16):
    y, x = torch.meshgrid(torch.arange(count) * stride, torch.arange(count) * stride, indexing="ij")
    corner = torch.stack([x, y], dim=-1).reshape(-1, 2).float()
    return torch.cat([corner, corner + stride], dim=1)


def scene(seed, counts=(4, 0, 2)):
    return Scene.random(cells(), list(counts), seed)


def assigner(**changes):
    return CenterRegionAssigner(**{"pos_scale": 0.4, "neg_scale": 0.8, **changes})


@pytest.mark.parametrize("case", cases("assigners/CenterRegionAssigner"))
def test_reference(case):
    assert_reference(case)


ROW = torch.tensor([[10.0 * i, 0, 10.0 * i + 10, 10] for i in range(10)])


@pytest.mark.parametrize("foreground_dominate", [False, True])
def test_by_hand(foreground_dominate):
    # Core 40 to 60, shadow 20 to 80; the fifth and sixth prior are in the core, two at each side in the shadow.
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 100, 10]]), labels=torch.tensor([7]))
    use = assigner(pos_scale=0.2, neg_scale=0.6, foreground_dominate=foreground_dominate)
    result = use.assign(InstanceData(priors=ROW), gt)
    assert result.gt_inds.tolist() == [0] * 4 + [1, 1] + [0] * 4
    assert result.labels.tolist() == [-1] * 4 + [7, 7] + [-1] * 4
    assert result.get_extra_property("shadowed_labels").tolist() == [[2, 7], [3, 7], [6, 7], [7, 7]]
    assert result.max_overlaps is None


@pytest.mark.parametrize(
    ("labels", "foreground_dominate", "gt_inds", "shadowed"),
    [
        # The second, smaller object takes the fifth prior, which the first then shadows.
        ([7, 8], False, [2, 1], [[4, 7]]),
        ([7, 8], True, [2, 1], [[4, 7]]),
        # Of one class, the prior both learns and is shadowed: one of the two gives way.
        ([7, 7], False, [0, 1], [[4, 7]]),
        ([7, 7], True, [2, 1], []),
    ],
)
def test_two_objects(labels, foreground_dominate, gt_inds, shadowed):
    boxes_ = torch.tensor([[0.0, 0, 100, 10], [40, 0, 50, 10]])
    use = assigner(pos_scale=0.2, neg_scale=0.2, foreground_dominate=foreground_dominate)
    result = use.assign(InstanceData(priors=ROW), InstanceData(bboxes=boxes_, labels=torch.tensor(labels)))
    assert result.gt_inds[4:6].tolist() == gt_inds
    assert result.get_extra_property("shadowed_labels").tolist() == shadowed


def test_of_equal_objects_the_last_is_learnt():
    twice = torch.tensor([[0.0, 0, 100, 10]]).repeat(2, 1)
    use = assigner(pos_scale=0.2, neg_scale=0.2)
    result = use.assign(InstanceData(priors=ROW), InstanceData(bboxes=twice, labels=torch.arange(2)))
    assert result.gt_inds[4:6].tolist() == [2, 2]


def test_ignored_regions():
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 100, 10]]), labels=torch.tensor([7]))
    region = InstanceData(bboxes=torch.tensor([[30.0, 0, 50, 10]]))  # halved: 35 to 45, on the border of both centres
    use = assigner(pos_scale=0.2, neg_scale=0.2)
    assert use.assign(InstanceData(priors=ROW), gt, region).gt_inds[3:6].tolist() == [0, 1, 1]
    region.bboxes[0, 2] = 54  # 36 to 48
    assert use.assign(InstanceData(priors=ROW), gt, region).gt_inds[3:6].tolist() == [0, -1, 1]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), size=st.integers(1, 40), dominate=st.booleans())
def test_laws(seed, size, dominate, monkeypatch):
    use, images = assigner(foreground_dominate=dominate), scene(seed)
    assert_batch_is_its_images(use, images)
    assert_chunks_change_nothing(use, images, size, monkeypatch)
    assert_order_of_objects_is_free(use, images, seed)
    assert_regions_add_no_positive(use, images)
    assert_absent_priors_change_nothing(use, images, seed)


@pytest.mark.parametrize("counts", [(0,), (1,), (300,), (0, 0)])
def test_nothing_one_and_more_objects_than_priors(counts):
    result = scene(3, counts).assign(assigner())
    assert result.gt_inds.shape == result.labels.shape == (len(counts), 256)
    assert result.extra["shadowed"].shape == (len(counts), 256, counts[0])
    assert (result.gt_inds > 0).any() == (counts[0] > 0)


def test_no_priors():
    gt = InstanceData(bboxes=boxes(2, 0), labels=torch.arange(2))
    result = assigner().assign(InstanceData(priors=torch.zeros(0, 4)), gt)
    assert result.gt_inds.shape == (0,)
    assert result.get_extra_property("shadowed_labels").shape == (0, 2)


def test_no_sync():
    assert_no_sync_and_traceable(assigner(), scene(0))


@pytest.mark.parametrize("scales", [(0.5, 0.2), (-0.1, 0.2)])
def test_scales_that_are_none(scales):
    expected = f"CenterRegionAssigner: expected 0 <= .* got pos_scale={scales[0]} and neg_scale={scales[1]}"
    with pytest.raises(ValueError, match=expected):
        CenterRegionAssigner(*scales)
