"""Loss of the auxiliary dense head of DDQ, Zhang et al., https://arxiv.org/abs/2303.12776."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.losses.reduction import check_number, reduce_mean
from detkit.registry import MODELS, TASK_UTILS, check_keys
from detkit.signature import takes_batches
from detkit.structures.ground_truth import GroundTruth
from detkit.structures.precision import full_precision

__all__ = ["DDQAuxLoss", "aligned_quality"]


def aligned_quality(metrics: Tensor, overlaps: Tensor, gt_inds: Tensor, num_gts: int) -> Tensor:
    """Target score of each prediction: its metric, scaled so that the best of an object gets the object's best IoU.

    The normalisation of TOOD, https://arxiv.org/abs/2108.07755, section 3.2.1.

    Args:
        metrics: (N, A) alignment of score and box, 0 where not positive.
        overlaps: (N, A) IoU with the own object, 0 where not positive.
        gt_inds: (N, A), ``i + 1`` for the i-th object.
        num_gts: G, the largest count of the batch.

    Returns:
        (N, A) in [0, 1], 0 where not positive.
    """
    index = gt_inds.clamp(min=0)
    best_metric, best_overlap = (
        values.new_zeros(len(values), num_gts + 1).scatter_reduce(1, index, values, "amax").gather(1, index)
        for values in (metrics, overlaps)
    )
    return metrics / (best_metric + 1e-7) * best_overlap


@MODELS.register_module()
class DDQAuxLoss(nn.Module):
    """Scores and boxes of all dense predictions against a one-to-many assignment.

    Args:
        loss_cls: Config of the classification loss, called with labels and qualities; None is a quality focal
            loss of probabilities.
        loss_bbox: Config of the box loss, with a value per box; None is GIoU of weight 2.
        train_cfg: ``assigner`` (config), ``alpha`` and ``beta`` (exponents of score and IoU in the metric, 1 and
            6); None is TopkHungarianAssigner with 8 predictions per object.

    Raises:
        KeyError: ``train_cfg`` has an unknown key, or a config has no type.
        ValueError: ``train_cfg`` has no assigner, or an exponent is negative.
    """

    learns = "queries"

    def __init__(
        self,
        loss_cls: Mapping[str, Any] | None = None,
        loss_bbox: Mapping[str, Any] | None = None,
        train_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if train_cfg is None:
            train_cfg = {"assigner": {"type": "TopkHungarianAssigner", "topk": 8}}
        if loss_cls is None:
            loss_cls = {"type": "QualityFocalLoss", "activated": True}
        if loss_bbox is None:
            loss_bbox = {"type": "GIoULoss", "loss_weight": 2.0}
        check_keys(train_cfg, {"assigner", "alpha", "beta"}, "train_cfg")
        if "assigner" not in train_cfg:
            raise ValueError(f"DDQAuxLoss: train_cfg needs an assigner, got {dict(train_cfg)}")
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_bbox = MODELS.build(loss_bbox)
        self.assigner = TASK_UTILS.build(train_cfg["assigner"])
        self.alpha = train_cfg.get("alpha", 1)
        self.beta = train_cfg.get("beta", 6)
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            check_number("DDQAuxLoss", f"train_cfg.{name}", value, low=0)

    def loss(
        self,
        cls_scores: Tensor,
        bbox_preds: Tensor,
        gt_bboxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        img_metas: Sequence[Mapping[str, Any]],
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        An image without objects costs nothing, not even its background scores. The assignment is where the host
        waits for the device.

        Args:
            cls_scores: Probabilities (N, A, C), or what ``loss_cls`` takes.
            bbox_preds: Boxes (N, A, 4) in pixels.
            gt_bboxes: (G, 4) of each image.
            gt_labels: (G,) of each image.
            img_metas: Facts of each image, with ``img_shape``.

        Returns:
            ``aux_loss_cls`` and ``aux_loss_bbox``, 0-d.

        Raises:
            ValueError: Shapes or numbers of images that do not fit.
        """
        _check_batch(cls_scores, bbox_preds, len(gt_bboxes), len(gt_labels), len(img_metas))
        cls_scores, bbox_preds = full_precision(cls_scores, bbox_preds)
        ground_truth = GroundTruth.from_instances(
            [InstanceData(bboxes=boxes, labels=labels) for boxes, labels in zip(gt_bboxes, gt_labels, strict=True)]
        )
        gt_inds, overlaps, metrics = self._assign(cls_scores.detach(), bbox_preds.detach(), ground_truth, img_metas)
        positive = gt_inds > 0
        targets, labels = ground_truth.matched(gt_inds, bbox_preds.detach())
        labels = torch.where(positive, labels, cls_scores.shape[-1])
        quality = aligned_quality(metrics, overlaps, gt_inds, ground_truth.valid.shape[1])
        weight = ((gt_inds >= 0) & ground_truth.valid.any(dim=1, keepdim=True)).to(quality.dtype)
        avg_factor = reduce_mean(quality.sum(), least=1)
        loss_cls = self.loss_cls(
            cls_scores.flatten(0, 1), (labels.flatten(), quality.flatten()), weight.flatten(), avg_factor=avg_factor
        )
        loss_bbox = self.loss_bbox(
            bbox_preds.flatten(0, 1), targets.flatten(0, 1), weight=quality.flatten(), avg_factor=avg_factor
        )
        return {"aux_loss_cls": loss_cls, "aux_loss_bbox": loss_bbox}

    def _assign(
        self, scores: Tensor, boxes: Tensor, ground_truth: GroundTruth, img_metas: Sequence[Mapping[str, Any]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Object of each prediction, its IoU and its metric, (N, A) each."""
        if takes_batches(self.assigner, "assign", "assign_batch"):
            result = self.assigner.assign_batch(
                None,
                ground_truth,
                scores=scores,
                bboxes=boxes,
                img_metas=img_metas,
                alpha=self.alpha,
                beta=self.beta,
            )
            return result.gt_inds, result.max_overlaps, result.metrics
        rows = []
        for index, img_meta in enumerate(img_metas):
            valid = ground_truth.valid[index]
            own = ground_truth.boxes[index][valid], ground_truth.labels[index][valid]
            result = self.assigner.assign(scores[index], boxes[index], *own, img_meta, self.alpha, self.beta)
            values = (result.max_overlaps, result.assign_metrics)
            rows.append((result.gt_inds, *(_dense(v, result.gt_inds, scores.dtype) for v in values)))
        gt_inds, overlaps, metrics = (torch.stack(column) for column in zip(*rows, strict=True))
        return gt_inds, overlaps, metrics


def _check_batch(cls_scores: Tensor, bbox_preds: Tensor, *num_images: int) -> None:
    if cls_scores.dim() != 3 or bbox_preds.shape != (*cls_scores.shape[:2], 4):
        raise ValueError(
            f"DDQAuxLoss: cls_scores {tuple(cls_scores.shape)} and bbox_preds {tuple(bbox_preds.shape)}; "
            "expected (N, A, C) and (N, A, 4)"
        )
    if set(num_images) != {len(cls_scores)}:
        raise ValueError(
            f"DDQAuxLoss: cls_scores of {len(cls_scores)} images, but gt_bboxes, gt_labels and img_metas of "
            f"{', '.join(map(str, num_images))}"
        )


def _dense(values: Tensor | None, gt_inds: Tensor, dtype: torch.dtype) -> Tensor:
    """Values per prediction (A,) of values per positive (P,); None where there is no positive."""
    dense = torch.zeros(gt_inds.shape, device=gt_inds.device, dtype=dtype)
    return dense if values is None else dense.masked_scatter(gt_inds > 0, values.to(dtype))
