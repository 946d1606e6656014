"""What the priors of a batch learn: assignment and sampling in one piece, whatever the priors are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import BatchAssignResult, assign_batch, sample_batch

__all__ = ["PriorTargets", "assigner_inputs", "prior_targets"]


class PriorTargets(NamedTuple):
    """Targets of A priors in N images.

    Attributes:
        labels: (N, A) int64, ``num_classes`` for background.
        label_weights: (N, A), 0 where nothing is learnt.
        bboxes: (N, A, 4) of the object; the prior's own box where there is none.
        positive: (N, A) bool.
        negative: (N, A) bool.
        avg_factor: () what the losses are divided by.
        assigned: What they come from: which object is whose, and how well it fits.
    """

    labels: Tensor
    label_weights: Tensor
    bboxes: Tensor
    positive: Tensor
    negative: Tensor
    avg_factor: Tensor
    assigned: BatchAssignResult


def prior_targets(
    priors: Tensor,
    boxes: Tensor,
    ground_truth: GroundTruth,
    valid: Tensor | None,
    assigner: Any,
    sampler: Any,
    num_classes: int,
    pos_weight: float = -1,
    inputs: Mapping[str, Any] | None = None,
) -> PriorTargets:
    """Targets of all priors of all images.

    Args:
        priors: (A, P) or (N, A, P), as the assigner wants them.
        boxes: (A, 4) or (N, A, 4) of the priors, for the sampler.
        ground_truth: Objects of the N images.
        valid: (N, A) bool, which priors take part; None is all.
        assigner: Registered assigner, batched or per image.
        sampler: Registered sampler, batched or per image.
        num_classes: Label of the background.
        pos_weight: Label weight of a positive; 1 where <= 0.
        inputs: What the assigner asks for besides.

    Raises:
        ValueError: The sampler adds objects to the priors.
    """
    assigned = assign_batch(assigner, priors, ground_truth, valid, **(inputs or {}))
    sampled = sample_batch(sampler, assigned, boxes, ground_truth)
    if sampled.is_gt is not None:
        raise ValueError(
            f"train_cfg.sampler: {type(sampler).__name__} adds objects as proposals, and a dense head predicts nothing "
            "for them; set add_gt_as_proposals=False"
        )
    own_boxes, labels = ground_truth.matched(assigned.gt_inds, boxes)
    return PriorTargets(
        labels=torch.where(sampled.positive, labels, num_classes),
        label_weights=sampled.positive * (pos_weight if pos_weight > 0 else 1.0) + sampled.negative * 1.0,
        bboxes=own_boxes,
        positive=sampled.positive,
        negative=sampled.negative,
        avg_factor=sampled.avg_factor,
        assigned=assigned,
    )


def assigner_inputs(
    assigner: Any,
    needed: Collection[str],
    levels: Sequence[Tensor],
    decode: Callable[[], Tensor],
    logits: Callable[[], Tensor],
    scores: Callable[[], Tensor],
    featmap_sizes: Sequence[tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """What the assigner asks for of predictions and levels; what it does not ask for is not computed.

    An assigner that has ``takes_logits`` is given logits for scores, any other probabilities.

    Args:
        assigner: Who asks.
        needed: Names of what it asks for.
        levels: Priors (A_l, P) of each level.
        decode: Makes the predicted boxes (N, A, 4).
        logits: Makes logits (N, A, C).
        scores: Makes probabilities (N, A, C).
        featmap_sizes: Height and width of each level.
    """
    makers: dict[str, Callable[[], Any]] = {
        "num_level_priors": lambda: [len(level) for level in levels],
        "featmap_sizes": lambda: featmap_sizes,
        "bboxes": lambda: decode().detach(),
        "scores": lambda: (logits if getattr(assigner, "takes_logits", False) else scores)().detach(),
    }
    with torch.no_grad():
        return {name: makers[name]() for name in needed}
