"""Task modules of a user's own in a batch: which of their forms is called, and what is said of a wrong result."""

import pytest
import torch
from mmengine.structures import InstanceData
from no_sync import NoSync
from task_modules.samplers.images import batch, image

from detkit.signature import takes_batches
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import (
    AssignResult,
    ATSSAssigner,
    IoUCost,
    MatchCost,
    MaxIoUAssigner,
    PseudoSampler,
    RandomSampler,
    assign_batch,
    needed_inputs,
    sample_batch,
)
from detkit.task_modules.match_costs import costs_of_batch

PRIORS = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
IMAGES = [image(30, count, seed) for seed, count in enumerate((3, 0, 2))]
BOXES = {"bboxes": torch.tensor([[[0.0, 0, 10, 10], [5, 5, 10, 10]], [[0, 0, 10, 5], [0, 0, 1, 1]]])}
OBJECTS = {"bboxes": torch.tensor([[[0.0, 0, 10, 10]], [[0, 0, 10, 10]]])}


def truth():
    first = InstanceData(bboxes=PRIORS[:2], labels=torch.tensor([5, 7]))
    return GroundTruth.from_instances([first, InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))])


class TestWhichFormCounts:
    class Both:
        def one(self):
            """Of an image."""

        def many(self):
            """Of a batch."""

    class OneBelow(Both):
        def one(self):
            """Of an image."""

    class ManyBelow(OneBelow):
        def many(self):
            """Of a batch."""

    class Untouched(OneBelow):
        pass

    class Neither:
        pass

    @pytest.mark.parametrize(
        ("cls", "expected"), [(Both, True), (OneBelow, False), (ManyBelow, True), (Untouched, False), (Neither, False)]
    )
    def test_the_nearer_definition(self, cls, expected):
        assert takes_batches(cls(), "one", "many") is expected

    def test_a_method_of_the_instance_is_nearest(self):
        module = self.Both()
        module.one = lambda: None
        assert not takes_batches(module, "one", "many")

    def test_what_a_batched_method_is_made_of_counts_as_batched(self):
        assert takes_batches(self.ManyBelow(), "one", "other", "many")

    def test_a_wrapper_has_what_it_wraps_has(self):
        class Wrapper:
            def __init__(self, wrapped):
                self.wrapped = wrapped

            def __getattr__(self, name):
                return getattr(self.wrapped, name)

        assert takes_batches(Wrapper(self.Both()), "one", "many")
        assert not takes_batches(Wrapper(self.Neither()), "one", "many")


class TestOverrides:
    def test_assign_of_a_built_in(self):
        class Mine(MaxIoUAssigner):
            def assign(self, pred_instances, gt_instances, gt_instances_ignore=None, **kwargs):
                result = super().assign(pred_instances, gt_instances, gt_instances_ignore, **kwargs)
                result.gt_inds[-1] = -1
                return result

        result = assign_batch(Mine(pos_iou_thr=0.5, neg_iou_thr=0.4), PRIORS, truth())
        assert result.gt_inds.tolist() == [[1, 2, -1], [0, 0, -1]]

    def test_it_is_given_what_the_built_in_needs(self):
        class Mine(ATSSAssigner):
            def assign(self, pred_instances, num_level_priors, gt_instances, gt_instances_ignore=None, **kwargs):
                seen.append(num_level_priors)
                return super().assign(pred_instances, num_level_priors, gt_instances, gt_instances_ignore)

        seen = []
        assert needed_inputs(Mine(topk=1)) == ["num_level_priors"]
        assign_batch(Mine(topk=1), PRIORS, truth(), num_level_priors=[2, 1])
        assert seen == [[2, 1], [2, 1]]

    @pytest.mark.parametrize("add", [True, False])
    def test_sample_of_a_built_in(self, add):
        class Mine(RandomSampler):
            def sample(self, *args, **kwargs):
                seen.append(super().sample(*args, **kwargs))
                return seen[-1]

        seen = []
        sampled = sample_batch(Mine(12, 0.5, add_gt_as_proposals=add), *batch(IMAGES))
        assert len(seen) == len(IMAGES)
        for index, result in enumerate(seen):
            for mask, expected in ((sampled.positive, result.pos_priors), (sampled.negative, result.neg_priors)):
                assert torch.equal(sampled.priors[index][mask[index]], expected)
        assert (sampled.is_gt is not None) == add

    def test_call_of_a_built_in_cost(self):
        class Mine(IoUCost):
            def __call__(self, pred_instances, gt_instances, img_meta=None, **kwargs):
                return super().__call__(pred_instances, gt_instances, img_meta) - 10

        expected = IoUCost().cost_batch(BOXES, OBJECTS) - 10
        torch.testing.assert_close(costs_of_batch(Mine(), BOXES, OBJECTS), expected)

    def test_pairwise_of_a_cost_is_a_batched_form(self):
        class Zero(MatchCost):
            def pairwise(self, predictions, objects, img_metas):
                return torch.zeros(2, 2, 1)

        assert costs_of_batch(Zero(), BOXES, OBJECTS).shape == (2, 2, 1)

    def test_built_ins_stay_batched(self):
        with NoSync():
            assign_batch(MaxIoUAssigner(pos_iou_thr=0.5, neg_iou_thr=0.4), PRIORS, truth())
            sample_batch(PseudoSampler(), *batch(IMAGES))
            costs_of_batch(IoUCost(), BOXES, OBJECTS)

    def test_traced(self):
        def call():
            assigned = assign_batch(assigner, PRIORS, objects)
            sampled = sample_batch(sampler, assigned, PRIORS, objects)
            return sampled.positive, costs_of_batch(cost, BOXES, OBJECTS)

        assigner, sampler, cost = MaxIoUAssigner(pos_iou_thr=0.5, neg_iou_thr=0.4), PseudoSampler(), IoUCost()
        objects = truth()
        torch._dynamo.reset()
        found = torch.compile(call, fullgraph=True, backend="eager")()
        torch.testing.assert_close(found, call(), rtol=0, atol=0)


class Neither:
    """No task module at all."""


class TestWrongResults:
    """Each message names the user's class and what it returned."""

    def assign(self, gt_inds, labels=None, overlaps=None):
        class Mine:
            def assign(self, pred_instances, gt_instances, gt_instances_ignore=None):
                return AssignResult(2, gt_inds, overlaps, torch.zeros(3) if labels is None else labels)

        return assign_batch(Mine(), PRIORS, truth())

    @pytest.mark.parametrize(("result", "given"), [(None, "NoneType"), ((1, 2), "tuple")])
    def test_no_assignment(self, result, given):
        class Mine:
            def assign(self, pred_instances, gt_instances, gt_instances_ignore=None):
                return result

        with pytest.raises(TypeError, match=rf"Mine.assign must return an AssignResult .*, got {given}"):
            assign_batch(Mine(), PRIORS, truth())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
    def test_objects_that_are_no_integers(self, dtype):
        with pytest.raises(TypeError, match=rf"Mine.assign: gt_inds must be integers, got {dtype}"):
            self.assign(torch.ones(3, dtype=dtype))

    def test_lengths(self):
        good = torch.zeros(3, dtype=torch.int64)
        with pytest.raises(ValueError, match=r"Mine.assign: gt_inds has shape \(2,\), expected \(3,\)"):
            self.assign(good[:2])
        with pytest.raises(ValueError, match=r"Mine.assign: labels has shape \(1,\), expected \(3,\)"):
            self.assign(good, labels=good[:1])
        with pytest.raises(ValueError, match=r"Mine.assign: max_overlaps has shape \(3, 2\), expected \(3,\)"):
            self.assign(good, overlaps=torch.zeros(3, 2))

    @pytest.mark.parametrize("wrong", [[0, 3, 1], [0, -2, 1]])
    def test_objects_that_do_not_exist(self, wrong):
        with pytest.raises(ValueError, match=rf"from {min(wrong)} to {max(wrong)}; .* of 2 objects"):
            self.assign(torch.tensor(wrong))

    def test_values_are_looked_at_on_a_cpu_only(self):
        # No host can read what is on the meta device.
        assert self.assign(torch.zeros(3, dtype=torch.int64, device="meta")).gt_inds.shape == (2, 3)

    @pytest.mark.parametrize("result", [None, (torch.zeros(1), torch.zeros(1))])
    def test_no_sample(self, result):
        with pytest.raises(TypeError, match=r"Mine.sample must return a SamplingResult"):
            sample_batch(sampler_of(result), *batch(IMAGES))

    def test_masks_instead_of_indices(self):
        mask = torch.ones(30, dtype=torch.bool)
        with pytest.raises(TypeError, match=r"Mine.sample: neg_inds must be indices.*, got torch.bool \(30,\)"):
            sample_batch(sampler_of(InstanceData(pos_inds=mask.nonzero().squeeze(1), neg_inds=mask)), *batch(IMAGES))

    def test_indices_beyond_the_priors(self):
        result = InstanceData(pos_inds=torch.tensor([0, 30]), neg_inds=torch.tensor([1, 2]))
        with pytest.raises(ValueError, match=r"Mine.sample: pos_inds from 0 to 30, but there are 30 priors"):
            sample_batch(sampler_of(result), *batch(IMAGES))

    def test_neither_form(self):
        with pytest.raises(TypeError, match=r"Neither has neither assign nor assign_batch"):
            assign_batch(Neither(), PRIORS, truth())
        with pytest.raises(TypeError, match=r"Neither has neither sample nor sample_batch"):
            sample_batch(Neither(), *batch(IMAGES))
        with pytest.raises(TypeError, match="Neither: a match cost must be callable or a MatchCost"):
            costs_of_batch(Neither(), BOXES, OBJECTS)

    def test_costs(self):
        def mine(pred_instances, gt_instances, img_meta):
            return result

        result = torch.zeros(1, 2)
        with pytest.raises(ValueError, match=r"mine returned costs of shape \(1, 2\), expected \(A, G\) = \(2, 1\)"):
            costs_of_batch(mine, BOXES, OBJECTS)
        result = [[0.0], [0.0]]
        with pytest.raises(TypeError, match=r"mine must return a tensor \(A, G\) of costs, got list"):
            costs_of_batch(mine, BOXES, OBJECTS)


def sampler_of(result):
    class Mine:
        def sample(self, assign_result, pred_instances, gt_instances, **kwargs):
            return result

    return Mine()
