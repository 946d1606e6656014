import pytest
import torch
from assigner_laws import (
    Scene,
    assert_absent_priors_change_nothing,
    assert_batch_is_its_images,
    assert_chunks_change_nothing,
    assert_no_sync_and_traceable,
    assert_reference,
    assert_regions_add_no_positive,
    boxes,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.structures import InstanceData
from reference import cases

from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import UniformAssigner


def scene(seed, counts=(4, 0, 2)):
    generator = torch.Generator().manual_seed(seed)
    priors = boxes(60, seed + 1)
    predicted = priors + 3 * torch.randn(len(counts), 60, 4, generator=generator)
    return Scene.random(priors, list(counts), seed, inputs={"decoder_priors": predicted})


def assigner(**changes):
    return UniformAssigner(**{"pos_ignore_thr": 0.15, "neg_ignore_thr": 0.5, "match_times": 2, **changes})


@pytest.mark.parametrize("case", cases("assigners/UniformAssigner"))
def test_reference(case):
    assert_reference(case)


def by_hand():
    priors = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]])
    predicted = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 10], [40, 0, 50, 10], [2, 0, 12, 10]])
    pred = InstanceData(priors=priors, decoder_priors=predicted.requires_grad_())
    return pred, InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10]]), labels=torch.tensor([3]))


def test_by_hand():
    pred, gt = by_hand()
    result = assigner(match_times=1).assign(pred, gt)
    # Candidates: the second, by its prediction, whose prior does not overlap: ignored; the first, by its prior.
    # The fourth's prediction overlaps by 2/3, too much for background.
    assert result.gt_inds.tolist() == [1, -1, 0, -1]
    assert result.labels.tolist() == [3, -1, -1, -1]
    assert result.get_extra_property("pos_idx").tolist() == [False, True]
    assert result.get_extra_property("pos_predicted_boxes").tolist() == [[0, 0, 10, 10], [0, 0, 10, 9]]
    assert result.get_extra_property("target_boxes").tolist() == [[0, 0, 10, 10]] * 2
    assert result.max_overlaps.tolist() == [1.0]


def test_the_predicted_boxes_of_candidates_carry_gradient():
    pred, gt = by_hand()
    assigner(match_times=1).assign(pred, gt).get_extra_property("pos_predicted_boxes").sum().backward()
    assert pred.decoder_priors.grad[:, 0].tolist() == [1, 1, 0, 0]


def test_fewer_priors_than_match_times():
    """MMDetection raises an error there."""
    pred, gt = by_hand()
    result = assigner(match_times=8).assign(pred, gt)
    assert result.get_extra_property("pos_idx").shape == (8,)
    assert result.gt_inds.tolist() == [1, -1, -1, -1]


def test_of_claims_on_a_prior_the_last_counts():
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]]), labels=torch.arange(2))
    pred = InstanceData(priors=gt.bboxes[:1], decoder_priors=gt.bboxes[:1])
    assert assigner().assign(pred, gt).gt_inds.tolist() == [2]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), size=st.integers(1, 40))
def test_laws(seed, size, monkeypatch):
    use, images = assigner(), scene(seed)
    assert_batch_is_its_images(use, images)
    assert_chunks_change_nothing(use, images, size, monkeypatch)
    assert_regions_add_no_positive(use, images)
    assert_absent_priors_change_nothing(use, images, seed)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_permuting_objects_permutes_the_assignment(seed):
    """Where no prior is claimed twice; there the last object wins."""
    images = scene(seed, (4,))
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    truth = images.objects[0]
    pred = InstanceData(priors=images.priors, decoder_priors=images.inputs["decoder_priors"][0])
    first, second = assigner().assign(pred, truth), assigner().assign(pred, truth[order])
    rows = {tuple(row) for row in first.get_extra_property("pos_predicted_boxes").tolist()}
    if len(rows) == len(first.get_extra_property("pos_idx")):
        assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.gt_inds == 0, second.gt_inds == 0)
    torch.testing.assert_close(first.max_overlaps[order], second.max_overlaps, rtol=0, atol=0)


@pytest.mark.parametrize("counts", [(0,), (1,), (90,), (0, 0)])
def test_nothing_one_and_more_objects_than_priors(counts):
    result = scene(3, counts).assign(assigner(pos_ignore_thr=0.0))
    assert result.gt_inds.shape == result.labels.shape == (len(counts), 60)
    assert result.extra["pos_idx"].shape == (len(counts), 4 * counts[0])
    assert (result.gt_inds > 0).any() == (counts[0] > 0)


def test_no_priors():
    pred = InstanceData(priors=torch.zeros(0, 4), decoder_priors=torch.zeros(0, 4))
    gt = InstanceData(bboxes=boxes(2, 0), labels=torch.arange(2))
    assert assigner().assign(pred, gt).gt_inds.shape == (0,)


def test_no_sync():
    assert_no_sync_and_traceable(assigner(), scene(0))


def test_wrong_count():
    with pytest.raises(ValueError, match="match_times must be at least 1, got 0"):
        assigner(match_times=0)


def test_absent_priors_are_no_candidates_where_there_are_too_few():
    box = torch.tensor([[0.0, 0, 10, 10]])
    truth = GroundTruth.from_instances([InstanceData(bboxes=box, labels=torch.tensor([3]))])
    priors, present = box.expand(2, 4), torch.tensor([[True, False]])
    result = assigner().assign_batch(priors, truth, present, decoder_priors=priors.unsqueeze(0))
    assert result.gt_inds.tolist() == [[1, -1]]
    assert result.extra["pos_idx"].sum() == 2  # the first, by its prediction and by its prior
