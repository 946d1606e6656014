"""The second stage of PISA, prime sample attention, Cao et al., https://arxiv.org/abs/1904.04821."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from detkit.losses.pisa_loss import carl_loss, per_sample, prime_weights
from detkit.losses.reduction import check_number, reduce_mean
from detkit.models.roi_heads.bbox_heads.box_targets import of_own_class
from detkit.models.roi_heads.sampling import SampledRoIs
from detkit.models.roi_heads.standard_roi_head import StandardRoIHead
from detkit.models.roi_heads.train_cfg import ROI_TRAIN_CFG_KEYS
from detkit.registry import MODELS, check_keys
from detkit.structures.boxes import bbox_overlaps
from detkit.task_modules.samplers.roi_outputs import statistics_kept

__all__ = ["PISARoIHead", "PrimeCfg"]

Cfg = Mapping[str, Any]


@dataclass(frozen=True)
class PrimeCfg:
    """``isr`` or ``carl`` of ``train_cfg.rcnn``: importance u in [0, 1] becomes ``((1 - bias) * u + bias) ** k``.

    Attributes:
        k: Exponent, >= 0.
        bias: Weight of the least important before it, in [0, 1].
    """

    k: float
    bias: float

    @classmethod
    def of(cls, cfg: Cfg | None, defaults: PrimeCfg, place: str) -> PrimeCfg | None:
        """Read the dict at ``place``; None stays None."""
        if cfg is None:
            return None
        check_keys(cfg, [field.name for field in fields(cls)], place)
        found = cls(**{"k": defaults.k, "bias": defaults.bias, **cfg})
        check_number(place, "k", found.k, low=0)
        check_number(place, "bias", found.bias, low=0, high=1)
        return found


@MODELS.register_module()
class PISARoIHead(StandardRoIHead):
    """What decides the detector's quality weighs more: ISR-P for the classes of positives, CARL for their boxes.

    A positive weighs the more, the better its predicted box is among those of its object and of its class
    (:func:`prime_weights`); a box the more, the higher its class scores (:func:`carl_loss`). The negatives' part,
    ISR-N, is the sampler's: ScoreHLRSampler.

    Args:
        bbox_roi_extractor: See :class:`StandardRoIHead`, as all that follows.
        bbox_head: Registered box head, with a coder of boxes by four numbers.
        mask_roi_extractor: Registered RoI extractor of masks.
        mask_head: Registered mask head.
        shared_head: Registered layers between the extractor and both heads.
        train_cfg: As there, and ``isr`` and ``carl``, each with ``k`` and ``bias`` or left out.
        test_cfg: ``score_thr``, ``nms``, ``max_per_img`` and ``mask_thr_binary``.
        init_cfg: Initialisation.

    Raises:
        ValueError: A number out of range, or parts that do not fit.
    """

    train_cfg_keys = (*ROI_TRAIN_CFG_KEYS, "isr", "carl")

    def __init__(
        self,
        bbox_roi_extractor: Cfg,
        bbox_head: Cfg,
        mask_roi_extractor: Cfg | None = None,
        mask_head: Cfg | None = None,
        shared_head: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(
            bbox_roi_extractor, bbox_head, mask_roi_extractor, mask_head, shared_head, train_cfg, test_cfg, init_cfg
        )
        extra, place = self.train_cfg.extra, "PISARoIHead: train_cfg"
        self.isr = PrimeCfg.of(extra.get("isr"), PrimeCfg(2, 0), f"{place}.isr")
        self.carl = PrimeCfg.of(extra.get("carl"), PrimeCfg(1, 0.2), f"{place}.carl")
        kind = getattr(self.bbox_head.bbox_coder, "prior_kind", "boxes")
        if kind != "boxes":
            name = type(self.bbox_head.bbox_coder).__name__
            raise ValueError(f"PISARoIHead: bbox_head: its boxes must be encoded by four numbers; {name} codes {kind}")
        loss = self.bbox_head.loss_cls
        if self.isr is not None and getattr(loss, "return_dict", False):
            raise ValueError(
                f"PISARoIHead: train_cfg.isr needs one classification loss for each region, and {type(loss).__name__} "
                "gives several; set return_dict=False of the loss"
            )
        if self.carl is not None and getattr(self.bbox_head, "reg_decoded_bbox", False):
            raise ValueError("PISARoIHead: train_cfg.carl weighs encoded boxes; set reg_decoded_bbox=False")

    def _bbox_loss(self, outputs: Mapping[str, Tensor], sampled: SampledRoIs) -> dict[str, Tensor]:
        cls_score, bbox_pred = outputs["cls_score"], outputs["bbox_pred"]
        targets = self.bbox_head.get_targets(sampled, self.train_cfg)
        if self.isr is not None:
            weights = self._prime_weights(cls_score, bbox_pred, sampled, targets.label_weights, self.isr)
            targets = targets._replace(label_weights=weights)
        num_rois = reduce_mean(sampled.valid.sum().float(), least=1)
        losses = self.bbox_head.loss(cls_score, bbox_pred, sampled.rois, *targets, num_rois=num_rois)
        if self.carl is not None:
            losses |= carl_loss(
                cls_score,
                targets.labels,
                bbox_pred,
                targets.bbox_targets,
                self.bbox_head.loss_bbox,
                self.carl.k,
                self.carl.bias,
                avg_factor=num_rois,
                num_class=self.bbox_head.num_classes,
            )
        return losses

    @torch.no_grad()
    def _prime_weights(
        self, cls_score: Tensor, bbox_pred: Tensor, sampled: SampledRoIs, old: Tensor, cfg: PrimeCfg
    ) -> Tensor:
        """Label weights (N * R,) of all regions, those of positives by their importance."""
        head, labels, positive = self.bbox_head, sampled.labels.flatten(), sampled.positive.flatten()
        own = of_own_class(bbox_pred, labels, head.encode_size).float().view_as(sampled.boxes)
        predicted = head.bbox_coder.decode(sampled.boxes, own)
        ious = bbox_overlaps(predicted.flatten(0, 1), sampled.gt_boxes.flatten(0, 1), is_aligned=True)
        # Objects are numbered through the batch; an image has fewer of them than there are regions and objects.
        image = torch.arange(len(labels), device=labels.device) // max(sampled.boxes.shape[1], 1)
        objects = sampled.gt_index.flatten() + image * (sampled.gt_index.max() + 1 if len(labels) > 0 else 1)
        with statistics_kept(head):
            loss = per_sample(head.loss_cls(cls_score, labels, reduction_override="none"))
        return prime_weights(ious, objects, labels, positive, old, loss.float(), cfg.k, cfg.bias)
