"""Samples of masks, and of priors with several objects each."""

import pytest
import torch
from mmengine.structures import InstanceData

from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import (
    AssignResult,
    BatchAssignResult,
    MaskPseudoSampler,
    MultiInsRandomSampler,
    MultiInstanceAssigner,
    MultiInstanceSamplingResult,
)


class TestMasks:
    assigned = AssignResult(2, torch.tensor([0, 2, -1, 1]), None, torch.tensor([-1, 5, -1, 6]))

    def sample(self):
        masks, gt_masks = torch.arange(4.0).view(4, 1, 1), torch.tensor([10.0, 20]).view(2, 1, 1)
        return MaskPseudoSampler().sample(self.assigned, InstanceData(masks=masks), InstanceData(masks=gt_masks))

    def test_by_hand(self):
        result = self.sample()
        assert result.pos_masks.flatten().tolist() == [1, 3]
        assert result.neg_masks.flatten().tolist() == [0]
        assert result.masks.flatten().tolist() == [1, 3, 0]
        assert result.pos_gt_masks.flatten().tolist() == [20, 10]
        assert result.avg_factor == 2
        assert result.info["num_gts"] == 2
        assert result.to("meta").pos_masks.device.type == "meta"

    def test_batch(self):
        assigned = self.assigned
        batch = BatchAssignResult(assigned.gt_inds.repeat(2, 1), None, assigned.labels.repeat(2, 1))
        sampled = MaskPseudoSampler().sample_batch(batch)
        assert sampled.positive.tolist() == [[False, True, False, True]] * 2
        assert sampled.negative.tolist() == [[True, False, False, False]] * 2
        assert sampled.avg_factor == 4


class TestCrowds:
    def image(self, num_priors, num_gts, num_ignored, seed):
        generator = torch.Generator().manual_seed(seed)

        def boxes(count):
            corner = torch.rand(count, 2, generator=generator) * 20
            return torch.cat([corner, corner + 10 + torch.rand(count, 2, generator=generator) * 10], dim=1)

        gt = InstanceData(bboxes=boxes(num_gts), labels=torch.zeros(num_gts, dtype=torch.int64))
        return boxes(num_priors), gt, InstanceData(bboxes=boxes(num_ignored))

    def test_by_hand(self):
        # Object 0 and region 1 are the last two of four priors; the first prior sees both.
        assigned = AssignResult(
            2, torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0]]), None, torch.tensor([[1, -1], [0, 0], [1, -1], [-1, 1]])
        )
        gt, ignored = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[5.0, 5, 9, 9]])
        result = MultiInsRandomSampler(8, 0.5).sample(
            assigned,
            InstanceData(priors=torch.ones(2, 5)),
            InstanceData(bboxes=gt, labels=torch.tensor([0])),
            batch_gt_instances_ignore=InstanceData(bboxes=ignored),
        )
        assert isinstance(result, MultiInstanceSamplingResult)
        assert result.pos_inds.tolist() == [0, 2]
        assert result.neg_inds.tolist() == [1]
        assert result.pos_is_gt.tolist() == [0, 1]
        assert result.pos_assigned_gt_inds.tolist() == [[0, 1], [0, 1]]
        assert torch.equal(result.pos_gt_bboxes[0], torch.cat([gt, ignored]))
        assert torch.equal(result.neg_gt_bboxes[0], torch.cat([ignored, gt]))
        assert result.neg_gt_labels.tolist() == [[0, 0]]

    def test_a_batch_is_its_images(self):
        assigner = MultiInstanceAssigner(pos_iou_thr=0.5, neg_iou_thr=0.5)
        sampler = MultiInsRandomSampler(100, 1.0)
        images = [
            self.image(12, num_gts, num_ignored, seed) for seed, (num_gts, num_ignored) in enumerate([(4, 2), (2, 3)])
        ]
        ground_truth = GroundTruth.from_instances([one[1] for one in images], [one[2] for one in images])
        priors = torch.stack([one[0] for one in images])
        sampled = sampler.sample_batch(assigner.assign_batch(priors, ground_truth), priors, ground_truth)
        for index, (own, gt, ignored) in enumerate(images):
            alone = sampler.sample(
                assigner.assign(InstanceData(priors=own), gt, ignored),
                InstanceData(priors=own),
                gt,
                batch_gt_instances_ignore=ignored,
            )
            priors_of = [sampled.priors[index][mask[index]] for mask in (sampled.positive, sampled.negative)]
            torch.testing.assert_close(priors_of[0], alone.pos_priors)
            torch.testing.assert_close(priors_of[1], alone.neg_priors)

    def test_an_assignment_of_nothing_gives_nothing(self):
        priors, gt, ignored = self.image(6, 0, 0, seed=0)
        nothing = AssignResult(0, *(torch.zeros(0, 2, dtype=k) for k in (torch.int64, torch.float32, torch.int64)))
        result = MultiInsRandomSampler(8, 0.5).sample(
            nothing, InstanceData(priors=priors), gt, batch_gt_instances_ignore=ignored
        )
        assert len(result.pos_inds) == len(result.neg_inds) == 0

    def test_missing_regions_and_wrong_counts_are_refused(self):
        priors, gt, ignored = self.image(6, 2, 1, seed=0)
        assigned = AssignResult(3, torch.zeros(8, 2).long(), torch.zeros(8, 2), torch.zeros(8, 2).long())
        sampler = MultiInsRandomSampler(8, 0.5)
        with pytest.raises(ValueError, match="MultiInsRandomSampler: sample needs batch_gt_instances_ignore"):
            sampler.sample(assigned, InstanceData(priors=priors), gt)
        with pytest.raises(ValueError, match="8 assigned priors, but 9 priors, objects and ignored regions"):
            sampler.sample(assigned, InstanceData(priors=priors), gt, batch_gt_instances_ignore=ignored)
        with pytest.raises(ValueError, match="MultiInsRandomSampler: sample_batch needs priors and ground_truth"):
            sampler.sample_batch(BatchAssignResult(assigned.gt_inds[None], None, assigned.labels[None]))
