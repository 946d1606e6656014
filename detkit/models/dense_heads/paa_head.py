"""Head of PAA, Kim and Lee, https://arxiv.org/abs/2007.08103."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.layers.atss_layers import ATSSLayers, one_anchor_of_a_cell
from detkit.models.dense_heads.losses.box_quality import iou_quality, quality_box_loss
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_level, flatten_levels
from detkit.models.dense_heads.prediction.postprocess import TEST_CFG_KEYS, Candidates, DenseTestCfg, detections
from detkit.models.dense_heads.prediction.score_voting import vote_boxes
from detkit.models.dense_heads.targets.anchor_train_cfg import ANCHOR_TRAIN_CFG_KEYS, AnchorTrainCfg
from detkit.models.dense_heads.targets.gaussian_mixture import COVARIANCE_TYPES
from detkit.models.dense_heads.targets.paa_targets import paa_positives
from detkit.models.dense_heads.targets.part_checks import (
    check_box_loss,
    check_coder,
    check_label_loss,
    check_score_loss,
)
from detkit.registry import MODELS, TASK_UTILS
from detkit.signature import nearest, quoted
from detkit.structures import DetDataSample
from detkit.structures.boxes import scale_boxes

__all__ = ["PAAHead"]

Cfg = Mapping[str, Any]
# IoU that a positive's box counts by at least.
LEAST_IOU = 1e-12


@MODELS.register_module()
class PAAHead(ATSSLayers):
    """Each anchor predicts a class, a box, and its IoU; which are positive follows from how well they predict.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        topk: Anchors of each level that an object chooses its positives from.
        score_voting: Move detections to the mean of the boxes around them.
        covariance_type: Name of scikit-learn; ``tied`` gives both distributions of losses one variance, the others
            each its own.
        pred_kernel_size: Kernel of the layers that predict, odd.
        stacked_convs: Convolutions of each tower.
        conv_cfg: Convolution layers of the towers.
        norm_cfg: Norm layers of the towers; None is GN with 32 groups.
        reg_decoded_bbox: Must be True: the box loss is on boxes.
        loss_centerness: Loss of the IoU.
        init_cfg: Initialisation.
        feat_channels: Channels of the towers.
        anchor_generator: Registered prior generator.
        bbox_coder: Registered box coder.
        loss_cls: Classification loss, a sigmoid.
        loss_bbox: Box loss.
        train_cfg: ``assigner`` of what an object may choose from, ``sampler``, ``allowed_border``, ``pos_weight``.
        test_cfg: See :class:`DenseTestCfg`; ``nms_pre`` chooses priors by their best class, and ``min_bbox_size``
            drops nothing, as in MMDetection.

    Raises:
        ValueError: A number below 1, an unknown ``covariance_type``, or an assigner that this head cannot serve.
    """

    train_cfg_keys = ANCHOR_TRAIN_CFG_KEYS
    test_cfg_keys = TEST_CFG_KEYS

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        topk: int = 9,
        score_voting: bool = True,
        covariance_type: str = "diag",
        pred_kernel_size: int = 3,
        stacked_convs: int = 4,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        reg_decoded_bbox: bool = True,
        loss_centerness: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        feat_channels: int = 256,
        anchor_generator: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
    ) -> None:
        for name, number in (("num_classes", num_classes), ("topk", topk)):
            if number < 1:
                raise ValueError(f"PAAHead: {name} must be at least 1, got {number}")
        if covariance_type not in COVARIANCE_TYPES:
            close = quoted(nearest(str(covariance_type), COVARIANCE_TYPES))
            raise ValueError(
                f"PAAHead: covariance_type {covariance_type!r} is not one of {quoted(COVARIANCE_TYPES)}; did you mean "
                f"{close}?"
            )
        if not reg_decoded_bbox:
            raise ValueError("PAAHead: reg_decoded_bbox=False has no meaning here: the box loss is on boxes")
        generator = TASK_UTILS.build(anchor_generator or one_anchor_of_a_cell())
        coder = TASK_UTILS.build(bbox_coder or {"type": "DeltaXYWHBBoxCoder", "target_stds": (0.1, 0.1, 0.2, 0.2)})
        encode_size = getattr(coder, "encode_size", 4)
        super().__init__(
            num_classes,
            encode_size,
            generator.num_base_priors[0],
            len(generator.strides),
            in_channels,
            feat_channels,
            stacked_convs,
            pred_kernel_size,
            conv_cfg,
            norm_cfg,
            init_cfg,
        )
        self.num_classes, self.encode_size = num_classes, encode_size
        self.topk = topk
        self.tied = covariance_type == "tied"
        self.with_score_voting = score_voting
        self.prior_generator, self.bbox_coder = generator, coder
        self.loss_cls = MODELS.build(loss_cls or {"type": "FocalLoss"})
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "GIoULoss", "loss_weight": 1.3})
        self.loss_centerness = MODELS.build(
            loss_centerness or {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 0.5}
        )
        check_coder(coder, "boxes", "PAAHead")
        check_label_loss(self.loss_cls, "PAAHead")
        check_box_loss(self.loss_bbox, True, "PAAHead")
        check_score_loss(self.loss_centerness, "PAAHead", "loss_centerness")
        self.train_cfg = AnchorTrainCfg.of(train_cfg, "PAAHead")
        self.test_cfg = dataclasses.replace(DenseTestCfg.of(test_cfg), min_bbox_size=-1)

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_cls``, ``loss_bbox`` and ``loss_iou`` of the levels ``x`` (N, in_channels, H_l, W_l)."""
        cls_scores, bbox_preds, iou_preds = self(x)
        sizes = featmap_sizes(cls_scores)
        levels = self.prior_generator.grid_priors(sizes, device=cls_scores[0].device)
        logits = flatten_levels(cls_scores, self.num_classes)  # (N, A, C)
        deltas = flatten_levels(bbox_preds, self.encode_size)  # (N, A, 4)
        anchors = torch.cat(levels).expand(len(deltas), -1, -1)  # (N, A, 4)
        inputs = self.train_cfg.inputs(levels, lambda: self.bbox_coder.decode(anchors, deltas), logits)
        targets = self.train_cfg.targets(
            levels, self.prior_generator, sizes, batch_data_samples, self.num_classes, inputs
        )
        possible = targets.bbox_weights > 0
        predicted = self.bbox_coder.decode(anchors, deltas)
        wanted = torch.where(possible.unsqueeze(-1), targets.bbox_targets, anchors)
        assert targets.assigned is not None
        positive = paa_positives(
            self._losses_of_each(logits, predicted, wanted, targets.labels, targets.label_weights),
            targets.assigned.gt_inds * possible,
            max(len(sample.gt_instances) for sample in batch_data_samples),
            [len(level) for level in levels],
            self.topk,
            self.tied,
        )
        iou = iou_quality(predicted, wanted)
        num_positive = positive.sum()
        return {
            "loss_cls": self.loss_cls(
                logits.flatten(0, 1),
                torch.where(positive, targets.labels, self.num_classes).flatten(),
                targets.label_weights.flatten(),
                avg_factor=reduce_mean(num_positive).clamp(min=len(logits)),
            ),
            "loss_bbox": quality_box_loss(
                self.loss_bbox, predicted, wanted, iou.clamp(min=LEAST_IOU) * positive, least=0
            ),
            "loss_iou": self.loss_centerness(
                flatten_levels(iou_preds, 1).flatten(),
                torch.where(positive, iou, 0.0).flatten(),
                positive.float().flatten(),
                avg_factor=reduce_mean(num_positive, least=1),
            ),
        }

    @torch.no_grad()
    def _losses_of_each(
        self, logits: Tensor, predicted: Tensor, wanted: Tensor, labels: Tensor, label_weights: Tensor
    ) -> Tensor:
        """What each anchor (N, A) would cost as a positive: eq. 5, the score of an anchor, as a loss."""
        of_labels = self.loss_cls(
            logits.flatten(0, 1), labels.flatten(), label_weights.flatten(), reduction_override="none"
        )
        of_boxes = self.loss_bbox(predicted.flatten(0, 1), wanted.flatten(0, 1), reduction_override="none")
        # Some losses have a value for each class or side.
        of_labels, of_boxes = (part.reshape(labels.numel(), -1).sum(dim=1) for part in (of_labels, of_boxes))
        return (of_labels + of_boxes).view_as(labels)

    def predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample], rescale: bool = False
    ) -> list[InstanceData]:
        """Detections of each image: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), best first.

        Args:
            x: Levels (N, in_channels, H_l, W_l).
            batch_data_samples: With image facts ``img_shape`` and, where resized, ``scale_factor``.
            rescale: Return boxes in the frame of the original image.
        """
        metas = [sample.metainfo for sample in batch_data_samples]
        candidates = self._candidates(x, metas)
        results = detections(candidates, metas, self.test_cfg, rescale=False)
        for index, (result, meta) in enumerate(zip(results, metas, strict=True)):
            if self.with_score_voting:
                kept = candidates.kept[index]
                voters = (part[index][kept] for part in (candidates.boxes, candidates.labels, candidates.scores))
                result.bboxes = vote_boxes(result.bboxes, result.labels, *voters)
            if rescale:
                result.bboxes = scale_boxes(
                    result.bboxes, [1 / factor for factor in meta.get("scale_factor", (1.0, 1.0))]
                )
        return results

    def _candidates(self, x: Sequence[Tensor], metas: Sequence[Mapping[str, Any]]) -> Candidates:
        """All classes of the best priors of each level; the score is the geometric mean of class and IoU."""
        levels = self(x)
        priors = self.prior_generator.grid_priors(featmap_sizes(levels[0]), device=x[0].device)
        scores, deltas, anchors = [], [], []
        for cls_score, bbox_pred, iou_pred, own in zip(*levels, priors, strict=True):
            iou = flatten_level(iou_pred, 1).sigmoid()
            score = (flatten_level(cls_score, self.num_classes).sigmoid() * iou).sqrt()
            limit = self.test_cfg.nms_pre
            count = len(own) if limit is None or limit < 0 else min(limit, len(own))
            best = score.amax(dim=2).topk(count, dim=1).indices.unsqueeze(-1)  # (N, K_l, 1)
            scores.append(score.gather(1, best.expand(-1, -1, self.num_classes)))
            delta = flatten_level(bbox_pred, self.encode_size)
            deltas.append(delta.gather(1, best.expand(-1, -1, self.encode_size)))
            anchors.append(own[best.squeeze(-1)])
        shapes = [tuple(meta["img_shape"][:2]) for meta in metas]
        boxes = self.bbox_coder.decode(torch.cat(anchors, dim=1), torch.cat(deltas, dim=1), max_shape=shapes)
        score = torch.cat(scores, dim=1)  # (N, K, C)
        labels = torch.arange(self.num_classes, device=score.device).expand_as(score)
        of_each = boxes.unsqueeze(2).expand(*score.shape, 4)
        flat = score.flatten(1)
        return Candidates(flat, labels.flatten(1), of_each.flatten(1, 2), flat > self.test_cfg.score_thr)
