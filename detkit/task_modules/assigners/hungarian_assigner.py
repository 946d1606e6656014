"""One-to-one assignment of least total cost (DETR, https://arxiv.org/abs/2005.12872, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import AssignResult, BatchAssignResult
from detkit.task_modules.assigners.match_problem import MatchProblem
from detkit.task_modules.match_costs.match_cost import Fields, batch_of_one

__all__ = ["HungarianAssigner"]


@TASK_UTILS.register_module()
class HungarianAssigner:
    """Each object gets one prediction of its own, so that the sum of the match costs is least.

    Where there are more objects than predictions, each prediction gets one object. Predictions without
    object are background. Ignored regions do not count.

    Args:
        match_costs: Registered match costs, whose sum counts; or one of them.
    """

    prior_kind = "predictions"

    def __init__(self, match_costs: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        configs = [match_costs] if isinstance(match_costs, Mapping) else list(match_costs)
        if not configs:
            raise ValueError("HungarianAssigner: match_costs is empty, expected at least one match cost")
        self.match_costs = [TASK_UTILS.build(config) for config in configs]

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        img_meta: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> AssignResult:
        """Assign the predictions of one image.

        Args:
            pred_instances: With the fields that the match costs read: ``scores``, ``bboxes``, ``masks`` ...
            gt_instances: With ``labels`` (G,) and the fields that the match costs read.
            img_meta: Facts of the image.
            kwargs: What other assigners use of an image; unused.
        """
        labels = gt_instances.labels
        # Objects may be masks without boxes.
        boxes = gt_instances.get("bboxes", torch.zeros(len(labels), 4, device=labels.device))
        ground_truth = GroundTruth.from_instances([InstanceData(bboxes=boxes, labels=labels)])
        metas = None if img_meta is None else [img_meta]
        result = self.assign_batch(
            None,
            ground_truth,
            img_metas=metas,
            objects=batch_of_one(gt_instances),
            **batch_of_one(pred_instances),
        )
        return result.image(0, len(labels))

    @torch.no_grad()
    def assign_batch(
        self,
        priors: Tensor | None,
        ground_truth: GroundTruth,
        prior_valid: Tensor | None = None,
        *,
        img_metas: Sequence[Mapping[str, Any]] | None = None,
        objects: Fields | None = None,
        **predictions: Tensor,
    ) -> BatchAssignResult:
        """Assign the predictions of N images, or of all decoder layers of them as so many images more.

        The costs are computed on their device; see :func:`match` for the one wait of the host.

        Args:
            priors: Unused; queries have none.
            ground_truth: Objects of the N images.
            prior_valid: (N, A) bool, which predictions take part; None is all. The others are ignored.
            img_metas: Facts of the N images; errors name an image by its ``img_path`` or ``img_id``.
            objects: Further fields of the objects that the match costs read, (N, G, ...): ``masks`` ...
            predictions: The fields that the match costs read, (N, A, ...): ``scores``, ``bboxes``, ``masks`` ...

        Raises:
            ValueError: No assignment has a finite cost; names image, prediction and object.
        """
        if not predictions:
            raise ValueError(
                "HungarianAssigner: no predictions given, expected scores, bboxes or whatever the costs read"
            )
        shape = next(iter(predictions.values())).shape[:2]
        taking_part = ground_truth.valid.new_ones(shape) if prior_valid is None else prior_valid
        fields = {"bboxes": ground_truth.boxes, "labels": ground_truth.labels, **(objects or {})}
        costs = [(type(cost).__name__, cost) for cost in self.match_costs]
        problem = MatchProblem("HungarianAssigner", costs, predictions, fields, img_metas)
        gt_inds = problem.solve(ground_truth.valid, taking_part)
        return BatchAssignResult(gt_inds, None, ground_truth.labels_at(gt_inds))
