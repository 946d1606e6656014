"""Laws of MaxIoUAssigner: permutation, ignored regions, chunks, wrong thresholds."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.structures import InstanceData

from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import MaxIoUAssigner, assign_batch
from detkit.task_modules.assigners import chunks, overlap_rules


def boxes(count, seed, size=100.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size
    return torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * size / 2], dim=1)


def instances(count, seed):
    return InstanceData(bboxes=boxes(count, seed), labels=torch.arange(count))


def assigner(**changes):
    return MaxIoUAssigner(**{"pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "ignore_iof_thr": 0.5, **changes})


def test_by_hand():
    priors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4], [0, 0, 10, 5.5], [50, 50, 60, 60]])
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10]]), labels=torch.tensor([7]))
    result = assigner(neg_iou_thr=0.5, pos_iou_thr=0.6).assign(InstanceData(priors=priors), gt)
    # IoU 1, 0.4, 0.55, 0: learns it, background, between the thresholds, background
    assert result.gt_inds.tolist() == [1, 0, -1, 0]
    assert result.labels.tolist() == [7, -1, -1, -1]
    torch.testing.assert_close(result.max_overlaps, torch.tensor([1.0, 0.4, 0.55, 0.0]))


@pytest.mark.parametrize(("reassign", "expected"), [(False, [-1, 2, 0, 1]), (True, [-1, 3, 0, 3])])
def test_a_low_quality_match_learns_its_best_object_as_in_detectron2(reassign, expected):
    """The matcher of Detectron2 (thresholds 0.3 and 0.7) matches 1, 1, 2, 0 with labels -1, 1, 0, 1.

    The third object is overlapped most, by 0.4, by two boxes that overlap others more: there they learn the others.
    MMDetection has both learn the third.
    """
    overlaps = torch.tensor([[0.15, 0.45, 0.2, 0.6], [0.3, 0.65, 0.05, 0.1], [0.05, 0.4, 0.25, 0.4]])
    rules = assigner(pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0, reassign_low_quality=reassign)
    truth = GroundTruth.from_instances([instances(3, 0)])
    found = rules.assign_by_overlaps(lambda piece: overlaps[None, :, piece].clone(), boxes(4, 1), truth, None)
    assert found.gt_inds.tolist() == [expected]


@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 6), seed=st.integers(0, 10_000), low_quality=st.booleans())
def test_permuting_objects_permutes_the_assignment(count, seed, low_quality):
    priors, gt = InstanceData(priors=boxes(60, seed + 1)), instances(count, seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    use = assigner(match_low_quality=low_quality)
    first, second = use.assign(priors, gt), use.assign(priors, gt[order])
    assert torch.equal(first.max_overlaps, second.max_overlaps)
    assert torch.equal(first.gt_inds > 0, second.gt_inds > 0)
    if not low_quality:  # of objects that claim the same prior by rule 3, the last wins
        assert torch.equal(first.labels, second.labels)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 5), ignored=st.integers(1, 4), seed=st.integers(0, 10_000))
def test_an_ignored_region_never_adds_a_positive_by_threshold(count, ignored, seed):
    priors, gt = InstanceData(priors=boxes(60, seed + 1)), instances(count, seed)
    use = assigner(match_low_quality=False)
    without = use.assign(priors, gt)
    with_region = use.assign(priors, gt, InstanceData(bboxes=boxes(ignored, seed + 2)))
    assert not ((with_region.gt_inds > 0) & (without.gt_inds <= 0)).any()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), chunk=st.integers(1, 40), take_all=st.booleans())
def test_chunks_change_nothing(seed, chunk, take_all):
    truth = GroundTruth.from_instances([instances(4, seed), instances(2, seed + 9)], [instances(2, seed + 5), None])
    priors = boxes(37, seed + 1).repeat(2, 1)  # equal priors, whose order matters
    use = assigner(gt_max_assign_all=take_all)
    dense = use.assign_batch(priors, truth)
    for kept in (1 << 26, 0):  # overlaps kept, or computed twice
        with (
            mock.patch.object(chunks, "LEAST_PRIORS", 1),
            mock.patch.object(chunks, "CPU_CHUNK", chunk * 8),
            mock.patch.object(overlap_rules, "KEPT_ELEMENTS", kept),
        ):
            chunked = use.assign_batch(priors, truth)
        assert all(torch.equal(a, b) for a, b in zip(dense[:3], chunked[:3], strict=True))


def test_priors_may_differ_from_image_to_image():
    truth = GroundTruth.from_instances([instances(3, 0), instances(2, 4)], [None, instances(2, 7)])
    priors = torch.stack([boxes(40, 1), boxes(40, 2)])
    valid = torch.rand(2, 40, generator=torch.Generator().manual_seed(2)) > 0.3
    batch = assigner().assign_batch(priors, truth, valid)
    for index, (gt, regions) in enumerate([(instances(3, 0), None), (instances(2, 4), instances(2, 7))]):
        alone = assigner().assign(InstanceData(priors=priors[index][valid[index]]), gt, regions)
        assert torch.equal(batch.gt_inds[index][valid[index]], alone.gt_inds)


def test_equal_objects_are_moved_apart_to_share_the_priors():
    priors = boxes(4000, 1)
    gt = instances(3, 0)
    gt.bboxes[2] = gt.bboxes[0]
    plain = assigner().assign(InstanceData(priors=priors), gt)
    assert (plain.gt_inds == 3).sum() == 1  # of two equal objects the first takes all but the best prior
    torch.manual_seed(0)
    both = assigner(perm_repeat_gt_cfg={"iou_thr": 0.7, "perm_range": 0.05})
    found = torch.stack([both.assign(InstanceData(priors=priors), gt).gt_inds for _ in range(8)])
    assert ((found == 1).sum(dim=1) > 1).all()
    assert ((found == 3).sum(dim=1) > 1).any()
    assert torch.equal(found == 2, (plain.gt_inds == 2).expand_as(found))


def test_an_unknown_key_of_perm_repeat_gt_cfg():
    with pytest.raises(TypeError, match=r"perm_repeat_gt_cfg.iou_thrs: .* did you mean 'iou_thr'\?"):
        assigner(perm_repeat_gt_cfg={"iou_thrs": 0.7})


def test_many_regions_are_met_in_pieces():
    """A region costs as much memory as an object: pieces of priors are made for both."""
    truth = GroundTruth.from_instances([instances(3, 0), instances(2, 4)], [instances(40, 1), instances(7, 2)])
    seen = []
    use = assigner()
    whole = use.iou_calculator

    def counted(first, second, mode="iou", is_aligned=False):
        found = whole(first, second, mode, is_aligned)
        seen.append(found.numel())
        return found

    dense = use.assign_batch(boxes(300, 1), truth)
    use.iou_calculator = counted
    with mock.patch.object(chunks, "LEAST_PRIORS", 1), mock.patch.object(chunks, "CPU_CHUNK", 400):
        pieces = use.assign_batch(boxes(300, 1), truth)
    assert max(seen) <= 400
    assert all(torch.equal(a, b) for a, b in zip(dense[:3], pieces[:3], strict=True))


def test_priors_that_take_no_part_are_ignored_and_match_nothing():
    truth = GroundTruth.from_instances([instances(3, 0), instances(0, 0)])
    priors = boxes(40, 1)
    valid = torch.rand(2, 40, generator=torch.Generator().manual_seed(2)) > 0.5
    result = assigner(match_low_quality=True).assign_batch(priors, truth, valid)
    assert (result.gt_inds[~valid] == -1).all()
    alone = assigner().assign(InstanceData(priors=priors[valid[0]]), instances(3, 0))
    assert torch.equal(result.gt_inds[0][valid[0]], alone.gt_inds)


def test_an_assigner_of_ones_own_needs_only_the_image_form():
    class Mine:
        def assign(self, pred_instances, gt_instances, gt_instances_ignore=None, **kwargs):
            return assigner().assign(pred_instances, gt_instances, gt_instances_ignore)

    truth = GroundTruth.from_instances([instances(3, 0), instances(1, 4)], [None, instances(2, 7)])
    valid = torch.rand(2, 40, generator=torch.Generator().manual_seed(2)) > 0.3
    for mask in (None, valid):
        own = assign_batch(Mine(), boxes(40, 1), truth, mask)
        built_in = assign_batch(assigner(), boxes(40, 1), truth, mask)
        assert torch.equal(own.gt_inds, built_in.gt_inds)
        assert torch.equal(own.labels, built_in.labels)


@pytest.mark.parametrize("neg", [0.6, (0.3, 0.2), (0.1, 0.2, 0.3), -0.1])
def test_thresholds_that_contradict_each_other(neg):
    with pytest.raises(ValueError, match=r"neg_iou_thr must be .* within \[0, pos_iou_thr=0.5\]"):
        assigner(neg_iou_thr=neg)


def test_an_overlap_of_the_threshold_is_not_ignored():
    """Half of the first prior is in the region, and a little more of the second."""
    priors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 8, 10], [50, 50, 60, 60]])
    region = InstanceData(bboxes=torch.tensor([[0.0, 0, 5, 10]]))
    gt = InstanceData(bboxes=torch.tensor([[50.0, 50, 60, 60]]), labels=torch.tensor([0]))
    result = assigner(ignore_iof_thr=0.5).assign(InstanceData(priors=priors), gt, region)
    assert result.gt_inds.tolist() == [0, -1, 1]
