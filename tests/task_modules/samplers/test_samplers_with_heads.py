"""Samplers that run the RoI head they belong to: hard examples, prime samples."""

import pytest
import torch
from task_modules.samplers.images import batch, image, indices
from task_modules.samplers.roi_heads import FormulaHead

from detkit.task_modules import CombinedSampler, OHEMSampler, ScoreHLRSampler
from detkit.task_modules.samplers.score_hlr_sampler import label_weights, score_hlr

FEATS = [torch.linspace(-1, 1, 3 * 2 * 4).view(3, 2, 2, 2)]


def feats_of(index):
    return [level[index : index + 1] for level in FEATS]


@pytest.fixture
def images():
    return [image(40, count, seed) for seed, count in enumerate((3, 0, 5))]


class TestOHEM:
    def losses(self, head, boxes, labels, index):
        rois = torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)
        scores = head._bbox_forward(feats_of(index), rois)["cls_score"]
        return torch.nn.functional.cross_entropy(scores, labels, reduction="none")

    def test_the_hardest_are_taken(self, images):
        head = FormulaHead()
        result = OHEMSampler(12, 0.25, context=head).sample(**images[0], feats=feats_of(0))
        assigned, gt = images[0]["assign_result"], images[0]["gt_instances"]
        boxes = torch.cat([gt.bboxes, images[0]["pred_instances"].priors])
        gt_inds = torch.cat([torch.arange(1, 4), assigned.gt_inds])
        labels = torch.where(gt_inds > 0, torch.cat([gt.labels, assigned.labels]), head.num_classes)
        losses = self.losses(head, boxes, labels, 0)
        for inds, kind, count in ((result.pos_inds, gt_inds > 0, 3), (result.neg_inds, gt_inds == 0, 9)):
            expected = torch.where(kind, losses, -torch.inf).topk(count).indices
            assert torch.equal(inds, expected.sort().values)

    def test_the_head_runs_once_and_without_gradient(self, images):
        head = FormulaHead()
        assert head.weight.requires_grad
        OHEMSampler(12, 0.25, context=head).sample_batch(*batch(images), feats=FEATS)
        assert head.calls == 1

    def test_a_batch_is_its_images(self, images):
        sampler = OHEMSampler(12, 0.25, context=FormulaHead(), neg_pos_ub=2)
        sampled = sampler.sample_batch(*batch(images), feats=FEATS)
        for index, inputs in enumerate(images):
            alone = sampler.sample(**inputs, feats=feats_of(index))
            positive, negative = indices(sampled, index, len(inputs["gt_instances"]), 5)
            assert torch.equal(positive, alone.pos_inds)
            assert torch.equal(negative, alone.neg_inds)

    def test_another_loss_may_count(self, images):
        inputs = {**images[0], "feats": feats_of(0)}
        hard = OHEMSampler(12, 0.25, context=FormulaHead()).sample(**inputs)
        soft = OHEMSampler(12, 0.25, context=FormulaHead(), loss_key="loss_other").sample(**inputs)
        assert not set(hard.neg_inds.tolist()) & set(soft.neg_inds.tolist())
        with pytest.raises(ValueError, match="OHEMSampler: the box head has no loss 'loss_box', only acc, loss_cls"):
            OHEMSampler(12, 0.25, context=FormulaHead(), loss_key="loss_box").sample(**inputs)

    def test_a_cascade_is_run_at_its_stage(self, images):
        class Cascade:
            num_stages = 2
            current_stage = 1

            def __init__(self):
                self.bbox_head = [None, FormulaHead()]

            def _bbox_forward(self, stage, feats, rois):
                return self.bbox_head[stage]._bbox_forward(feats, rois)

        alone = OHEMSampler(12, 0.25, context=FormulaHead()).sample(**images[0], feats=feats_of(0))
        staged = OHEMSampler(12, 0.25, context=Cascade()).sample(**images[0], feats=feats_of(0))
        assert torch.equal(staged.neg_inds, alone.neg_inds)

    def test_as_part_of_a_combination(self, images):
        parts = ({"type": "RandomSampler"}, {"type": "OHEMSampler"})
        combined = CombinedSampler(*parts, num=12, pos_fraction=1.0, neg_pos_ub=2, context=FormulaHead())
        inputs = {**images[1], "feats": feats_of(1)}
        hard = OHEMSampler(2, 0.0, context=FormulaHead()).sample(**inputs)
        assert torch.equal(combined.sample(**inputs).neg_inds, hard.neg_inds)

    def test_heads_without_boxes_and_with_a_loss_per_class(self, images):
        class Classifier(FormulaHead):
            def _bbox_forward(self, feats, rois):
                return {**super()._bbox_forward(feats, rois), "bbox_pred": None}

            def loss(self, labels, **inputs):
                loss = super().loss(labels=labels, **inputs)["loss_cls"]
                return {"loss_cls": loss.unsqueeze(1) * torch.tensor([0.5, 0.25, 0.25])}

        inputs = {**images[0], "feats": feats_of(0)}
        expected = OHEMSampler(12, 0.25, context=FormulaHead()).sample(**inputs)
        assert torch.equal(OHEMSampler(12, 0.25, context=Classifier()).sample(**inputs).neg_inds, expected.neg_inds)
        with pytest.raises(ValueError, match="ScoreHLRSampler: needs a box head that predicts boxes"):
            ScoreHLRSampler(12, 0.25, context=Classifier()).sample(**inputs)

    def test_nothing_at_all(self):
        inputs = {**image(0, 0, seed=0), "feats": feats_of(0)}
        result = OHEMSampler(12, 0.25, context=FormulaHead()).sample(**inputs)
        assert len(result.pos_inds) == len(result.neg_inds) == 0
        result, weights = ScoreHLRSampler(12, 0.25, context=FormulaHead()).sample(**inputs)
        assert len(result.pos_inds) == len(result.neg_inds) == 0
        assert weights is None

    def test_priors_are_needed(self, images):
        sampler = OHEMSampler(12, 0.25, context=FormulaHead(), add_gt_as_proposals=False)
        with pytest.raises(ValueError, match="OHEMSampler: needs the priors"):
            sampler.sample_batch(batch(images)[0], feats=FEATS)


class TestScoreHLR:
    def test_rank_by_hand(self):
        # Two groups at 0 and at 50; the best of both come before their second ones, a box that is not confident
        # has no part in it.
        boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 0, 60, 10], [51, 0, 61, 10], [0, 0, 10, 10]]])
        scores = torch.tensor([[0.5, 0.9, 0.4, 0.3, 0.95]])
        confident = torch.tensor([[True, True, True, True, False]])
        rank = score_hlr(boxes, scores, confident, iou_thr=0.5)
        assert rank[0, :4].tolist() == [3, 5, 4, 2]

    def test_scores_that_differ_in_the_last_digit_are_told_apart(self):
        # Far apart, all are the best of their groups.
        left = torch.arange(30.0) * 20
        boxes = torch.stack([left, torch.zeros(30), left + 10, torch.full((30,), 10.0)], dim=1).unsqueeze(0)
        scores = torch.full((1, 30), 0.999)
        scores[0, 0] = torch.nextafter(scores[0, 0], torch.tensor(0.0))
        rank = score_hlr(boxes, scores, torch.ones(1, 30, dtype=torch.bool), iou_thr=0.5)
        assert rank[0].tolist() == [1, *range(30, 1, -1)]

    def test_what_is_not_confident_joins_no_groups(self):
        # The last overlaps the others by 6 / 14, which share 2 of 18: both are the best of their groups.
        boxes = torch.tensor([[[0.0, 0, 10, 10], [8, 0, 18, 10], [4, 0, 14, 10]]])
        scores = torch.tensor([[0.5, 0.9, 0.95]])
        rank = score_hlr(boxes, scores, torch.tensor([[True, True, False]]), iou_thr=0.4)
        assert rank[0, :2].tolist() == [2, 3]

    def test_weights_by_hand(self):
        # Of 4 samples 2 are ranked: u = 1, 3/4 and, as the last ranked, 3/4; squared 1, 9/16, 9/16, 9/16, and
        # scaled by 4 / (43 / 16) as all losses are 1.
        ones = torch.ones(1, 5)
        weights = label_weights(torch.arange(5), torch.tensor([[4]]), torch.tensor([[2]]), ones, k=2, bias=0)
        expected = torch.tensor([[1.0, 9 / 16, 9 / 16, 9 / 16, 0]]) * 64 / 43
        torch.testing.assert_close(weights, expected)

    def test_the_sum_of_the_losses_stays(self):
        loss = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
        counts = torch.tensor([[6], [4]])
        weights = label_weights(torch.arange(6), counts, torch.tensor([[6], [3]]), loss, k=0.5, bias=0.2)
        taken = torch.arange(6) < counts
        torch.testing.assert_close((weights * loss).sum(dim=1), (taken * loss).sum(dim=1))

    def test_without_any_loss_weights_are_finite(self):
        """MMDetection divides 0 by 0."""
        zeros = torch.zeros(1, 4)
        weights = label_weights(torch.arange(4), torch.tensor([[4]]), torch.tensor([[4]]), zeros, k=1, bias=0)
        torch.testing.assert_close(weights, torch.tensor([[1.0, 0.75, 0.5, 0.25]]))

    def test_a_batch_is_its_images(self, images):
        sampler = ScoreHLRSampler(16, 0.5, context=FormulaHead(), score_thr=0.0)
        sampled, weights = sampler.sample_batch(*batch(images), feats=FEATS)
        total = 0
        for index, inputs in enumerate(images):
            num_gts = len(inputs["gt_instances"])
            torch.manual_seed(0)
            alone, own_weights = sampler.sample(**inputs, feats=feats_of(index))
            positive, negative = indices(sampled, index, num_gts, 5)
            assert len(positive) == len(alone.pos_inds)
            if len(positive) < 8:
                assert torch.equal(negative, alone.neg_inds.sort().values)
                padded = torch.where(alone.neg_inds < num_gts, alone.neg_inds, alone.neg_inds + 5 - num_gts)
                torch.testing.assert_close(weights[index, padded], own_weights)
            total += alone.avg_factor
        assert sampled.avg_factor == total
        assert (weights[~sampled.negative] == 0).all()

    def test_without_confident_ones_negatives_are_random_and_weigh_one(self, images):
        sampler = ScoreHLRSampler(16, 0.5, context=FormulaHead(), score_thr=1.0)
        seen = set()
        for seed in range(8):
            torch.manual_seed(seed)
            result, weights = sampler.sample(**images[0], feats=feats_of(0))
            assert (images[0]["assign_result"].gt_inds[result.neg_inds - 3] == 0).all()
            torch.testing.assert_close(weights, torch.ones(len(result.neg_inds)))
            seen |= set(result.neg_inds.tolist())
        assert len(seen) > 16

    def test_random_ones_come_after_all_confident_ones(self, images):
        head, inputs = FormulaHead(), {**images[0], "feats": feats_of(0)}
        rois = torch.cat([torch.zeros(40, 1), inputs["pred_instances"].priors], dim=1)
        scores = head._bbox_forward(inputs["feats"], rois)["cls_score"].softmax(dim=1)[:, :-1].amax(dim=1)
        confident = (scores > 0.8) & (inputs["assign_result"].gt_inds == 0)
        num_confident = int(confident.sum())
        sampler = ScoreHLRSampler(20, 0.0, context=head, score_thr=0.8, add_gt_as_proposals=False)
        assert 0 < num_confident < 20
        for seed in range(8):
            torch.manual_seed(seed)
            result, weights = sampler.sample(**inputs)
            assert confident[result.neg_inds].tolist() == [True] * num_confident + [False] * (20 - num_confident)
            torch.testing.assert_close(weights[num_confident:], weights[num_confident - 1].expand(20 - num_confident))

    def test_one_box_for_all_classes(self, images):
        """MMDetection looks for the box of the class and fails."""

        class Agnostic(FormulaHead):
            def _bbox_forward(self, feats, rois):
                found = super()._bbox_forward(feats, rois)
                return {**found, "bbox_pred": torch.zeros(len(rois), 4)}

        class Specific(FormulaHead):
            def _bbox_forward(self, feats, rois):
                found = super()._bbox_forward(feats, rois)
                return {**found, "bbox_pred": torch.zeros(len(rois), 12)}

        results = [
            ScoreHLRSampler(16, 0.5, context=head, score_thr=0.0).sample(**images[0], feats=feats_of(0))[0]
            for head in (Agnostic(), Specific())
        ]
        assert torch.equal(results[0].neg_inds, results[1].neg_inds)

    def test_a_quota_of_nothing(self, images):
        """MMDetection takes the least of no weights and fails."""
        result, weights = ScoreHLRSampler(0, 0.5, context=FormulaHead()).sample(**images[0], feats=feats_of(0))
        assert len(result.pos_inds) == len(result.neg_inds) == len(weights) == 0

    def test_an_image_without_priors(self):
        sampler = ScoreHLRSampler(4, 0.5, context=FormulaHead())
        result, weights = sampler.sample(**image(0, 2, seed=0), feats=feats_of(0))
        assert result.pos_inds.tolist() == [0, 1]
        assert weights is None
