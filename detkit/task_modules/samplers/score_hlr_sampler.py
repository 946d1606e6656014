"""Prime samples: negatives by how much they hurt (PISA, Cao et al., https://arxiv.org/abs/1904.04821)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.ops.nms_match import nms_heads
from detkit.registry import TASK_UTILS
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import AssignResult, BatchAssignResult
from detkit.task_modules.samplers.pool import (
    Pool,
    batch_of_one,
    image_result,
    make_pool,
    rank_within,
    take_best,
)
from detkit.task_modules.samplers.quota import Quota
from detkit.task_modules.samplers.roi_outputs import RUNS_ROI_HEAD, RoIOutputs, bbox_head_of, roi_outputs
from detkit.task_modules.samplers.sampling_result import BatchSamplingResult, SamplingResult

__all__ = ["ScoreHLRSampler", "label_weights", "score_hlr"]


class RankedNegatives(NamedTuple):
    """Negatives of N images, the most important first.

    Attributes:
        indices: (N, R) int64.
        taken: (N, R) bool, which of these rows are in the sample.
        weights: (N, R) label weights, 0 where not taken.
    """

    indices: Tensor
    taken: Tensor
    weights: Tensor


def score_hlr(boxes: Tensor, scores: Tensor, confident: Tensor, iou_thr: float) -> Tensor:
    """Score hierarchical local rank, as whole numbers (N, A) that are at least 1 and higher for a higher rank.

    Boxes that look at the same thing form a group. The best of every group come before all second ones, and so
    on; among equals the higher score comes first, and of equal scores the earlier box.

    Args:
        boxes: (N, A, 4) predictions.
        scores: (N, A) in [0, 1].
        confident: (N, A) bool, which of them are ranked; numbers of the others have no meaning.
        iou_thr: IoU from which two boxes look at the same thing.
    """
    heads = nms_heads(boxes, scores, iou_thr, confident)
    # The others are a group of their own.
    count = heads.shape[1]
    group = torch.where(confident, heads, count)
    rank = torch.where(confident, rank_within(group, scores), count)
    # Two sorts, for in a sum of rank and score the rank would take the score's last digits.
    by_score = scores.argsort(dim=1, descending=True, stable=True)
    order = by_score.gather(1, rank.gather(1, by_score).argsort(dim=1, stable=True))
    numbers = torch.arange(count, 0, -1, device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, numbers)


def label_weights(place: Tensor, num_taken: Tensor, num_ranked: Tensor, loss: Tensor, k: float, bias: float) -> Tensor:
    """Importance-based reweighting: ``((1 - bias) * u + bias) ** k`` where u falls linearly with the rank.

    The weights are scaled so that the sum of the weighted losses is the sum of the losses.

    Args:
        place: (R,) position in the order of importance.
        num_taken: (N, 1) samples of each image.
        num_ranked: (N, 1) of how many the rank is known; the others weigh as much as the last of them.
        loss: (N, R).
        k: Exponent.
        bias: Least weight before the exponent.

    Returns:
        (N, R), 0 from ``num_taken`` on.
    """
    taken = place < num_taken
    last = torch.minimum(num_ranked, num_taken) - 1
    linear = 1 - torch.minimum(place, last) / torch.maximum(num_ranked, num_taken).clamp(min=1)
    weights = torch.where(num_ranked > 0, (bias + (1 - bias) * linear.clamp(min=0)) ** k, 1.0) * taken
    before, after = (loss * taken).sum(dim=1, keepdim=True), (loss * weights).sum(dim=1, keepdim=True)
    # Without any loss there is nothing to keep constant.
    return weights * torch.where(after > 0, before / after, 1.0)


@TASK_UTILS.register_module()
class ScoreHLRSampler:
    """Positives at random; the negatives with the highest score rank, with weights for their classification loss.

    1. The score of a negative is the highest probability of any class but background.
    2. Those above ``score_thr`` are ranked by :func:`score_hlr` of their predicted boxes, and drawn in order.
    3. Where these do not fill the quota, others are drawn at random.

    ``sample`` and ``sample_batch`` need ``feats``, what the RoI head extracts its features from.

    Args:
        num: Priors per image.
        pos_fraction: Share of them that may be positive, in [0, 1].
        context: The RoI head.
        neg_pos_ub: Negatives per positive, at most; any number where negative.
        add_gt_as_proposals: Whether objects are priors of their own.
        k: Exponent of the weights.
        bias: Least weight before the exponent.
        score_thr: Probability above which a negative is ranked.
        iou_thr: IoU from which predicted boxes are of one group.
    """

    only_for = RUNS_ROI_HEAD

    def __init__(
        self,
        num: int,
        pos_fraction: float,
        context: Any,
        neg_pos_ub: float = -1,
        add_gt_as_proposals: bool = True,
        k: float = 0.5,
        bias: float = 0,
        score_thr: float = 0.05,
        iou_thr: float = 0.5,
    ) -> None:
        self.quota = Quota.of(self, num, pos_fraction, neg_pos_ub)
        self.num = num
        self.pos_fraction = pos_fraction
        self.neg_pos_ub = neg_pos_ub
        self.add_gt_as_proposals = add_gt_as_proposals
        self.context = context
        self.bbox_head = bbox_head_of(context, "ScoreHLRSampler")
        coder = getattr(self.bbox_head, "bbox_coder", None)
        kind = getattr(coder, "prior_kind", "boxes")
        if kind != "boxes":
            raise ValueError(
                f"{type(context).__name__}: train_cfg.sampler: ScoreHLRSampler groups predicted boxes, each encoded by "
                f"four numbers; {type(coder).__name__} codes {kind}"
            )
        self.k = k
        self.bias = bias
        self.score_thr = score_thr
        self.iou_thr = iou_thr

    def sample(
        self, assign_result: AssignResult, pred_instances: InstanceData, gt_instances: InstanceData, **kwargs: Any
    ) -> tuple[SamplingResult, Tensor | None]:
        """Sample the priors of one image.

        Args:
            assign_result: Assignment of the A priors; stays as it is.
            pred_instances: With ``priors`` (A, 4).
            gt_instances: With ``bboxes`` (G, 4) and ``labels`` (G,).
            kwargs: ``feats`` for the RoI head.

        Returns:
            The sample, its negatives in the order of importance, and their label weights (Q,); None instead
            where the image has no negatives at all.
        """
        batch, priors, ground_truth = batch_of_one(assign_result, pred_instances, gt_instances)
        sampled, negatives = self._draw(batch, priors, ground_truth, kwargs)
        taken = negatives.taken[0]
        result = image_result(sampled, gt_instances.bboxes, negatives.indices[0][taken])
        has_negatives = bool((assign_result.gt_inds == 0).any())
        return result, negatives.weights[0][taken] if has_negatives else None

    def sample_batch(
        self,
        assign_result: BatchAssignResult,
        priors: Tensor | None = None,
        ground_truth: GroundTruth | None = None,
        **kwargs: Any,
    ) -> tuple[BatchSamplingResult, Tensor]:
        """Sample the priors of N images.

        Args:
            assign_result: Assignment of the A priors of each.
            priors: (A, 4) or (N, A, 4).
            ground_truth: Their objects.
            kwargs: ``feats`` for the RoI head.

        Returns:
            The sample, and label weights (N, A) of its negatives, 0 elsewhere.
        """
        sampled, negatives = self._draw(assign_result, priors, ground_truth, kwargs)
        weights = negatives.weights.new_zeros(sampled.negative.shape)
        return sampled, weights.scatter_(1, negatives.indices, negatives.weights)

    def _draw(
        self, assign_result: BatchAssignResult, priors: Tensor | None, ground_truth: GroundTruth | None, inputs: Any
    ) -> tuple[BatchSamplingResult, RankedNegatives]:
        pool = make_pool(self, assign_result, priors, ground_truth, self.add_gt_as_proposals, inputs)
        most = self.quota.num_positive
        allowed = torch.full(pool.gt_inds.shape[:1], most, device=pool.gt_inds.device)
        positive = take_best(pool.gt_inds > 0, pool.uniform(), allowed, most)
        num_positive = positive.sum(dim=1)
        negatives = self._negatives(pool, self.quota.num_negative(num_positive))
        negative = torch.zeros_like(positive).scatter_(1, negatives.indices, negatives.taken)
        avg_factor = num_positive.clamp(min=1) + negatives.taken.sum(dim=1).clamp(min=1)
        return pool.result(positive, negative, avg_factor.sum()), negatives

    @torch.no_grad()
    def _negatives(self, pool: Pool, allowed: Tensor) -> RankedNegatives:
        """The most important negatives, at most so many (N,)."""
        outputs = roi_outputs(self.context, self.bbox_head, pool, "loss_cls", "ScoreHLRSampler")
        scores, label = outputs.scores.max(dim=-1)
        candidates = pool.gt_inds == 0
        confident = candidates & (scores > self.score_thr)
        rank = score_hlr(self._boxes(pool, outputs, label), scores, confident, self.iou_thr)
        # Random numbers are below 1, so that these come after all ranks.
        keys = torch.where(confident, rank, pool.uniform())
        keys = torch.where(candidates, keys, -torch.inf)
        index = keys.topk(min(self.num, keys.shape[1]), dim=1).indices
        place = torch.arange(index.shape[1], device=index.device)
        num_taken = torch.minimum(allowed, candidates.sum(dim=1)).unsqueeze(1)
        num_ranked = confident.sum(dim=1, keepdim=True)
        loss = outputs.loss.float().gather(1, index)
        weights = label_weights(place, num_taken, num_ranked, loss, self.k, self.bias)
        return RankedNegatives(index, place < num_taken, weights)

    def _boxes(self, pool: Pool, outputs: RoIOutputs, label: Tensor) -> Tensor:
        """Boxes (N, A, 4) predicted for the classes (N, A); a head may predict one for all."""
        assert pool.priors is not None
        if outputs.bbox_pred is None:
            raise ValueError("ScoreHLRSampler: needs a box head that predicts boxes")
        encoded = outputs.bbox_pred.unflatten(-1, (-1, 4)).flatten(0, 1)
        own = label.flatten() if encoded.shape[1] > 1 else torch.zeros_like(label).flatten()
        chosen = encoded.gather(1, own.view(-1, 1, 1).expand(-1, 1, 4)).squeeze(1)
        return self.bbox_head.bbox_coder.decode(pool.priors.flatten(0, 1), chosen).view_as(pool.priors)
