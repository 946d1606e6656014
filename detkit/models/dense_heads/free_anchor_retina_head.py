"""FreeAnchor: anchors compete for objects by likelihood, Zhang et al., https://arxiv.org/abs/1909.02466."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_levels
from detkit.models.dense_heads.retina_head import RetinaHead
from detkit.registry import MODELS
from detkit.structures import DetDataSample
from detkit.structures.boxes import bbox_overlaps
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.chunks import chunk_slices
from detkit.task_modules.coders import encode_finite

__all__ = ["FreeAnchorRetinaHead"]

Cfg = Mapping[str, Any]
# Probabilities of negatives are kept this far from 0 and 1, and no logarithm is below that of a certain error.
EPS = 1e-12
LEAST_LOG = -100.0


@MODELS.register_module()
class FreeAnchorRetinaHead(RetinaHead):
    """RetinaHead without an assigner: each object has a bag of anchors, of which one at least shall predict it.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        stacked_convs: Convolutions of each tower.
        conv_cfg: Their convolution layers.
        norm_cfg: Their norm layers; None has none.
        pre_anchor_topk: Anchors in the bag of each object, those of highest IoU.
        bbox_thr: IoU from which a predicted box begins to count as that of an object.
        gamma: Focusing exponent of negatives.
        alpha: Weight of the positive bags; that of negatives is ``1 - alpha``.
        feat_channels: Channels of the towers.
        anchor_generator: Registered prior generator.
        bbox_coder: Registered box coder.
        loss_cls: Says whether scores are sigmoids; its value is not used.
        loss_bbox: Loss on encoded boxes, whose negative exponential is the likelihood of a box.
        train_cfg: As RetinaHead's; not used.
        test_cfg: See :class:`DenseTestCfg`.
        init_cfg: Initialisation.

    Raises:
        ValueError: Scores that are no sigmoids, or a number out of range.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        stacked_convs: int = 4,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        pre_anchor_topk: int = 50,
        bbox_thr: float = 0.6,
        gamma: float = 2.0,
        alpha: float = 0.5,
        feat_channels: int = 256,
        anchor_generator: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            stacked_convs=stacked_convs,
            feat_channels=feat_channels,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            anchor_generator=anchor_generator,
            bbox_coder=bbox_coder,
            loss_cls=loss_cls,
            loss_bbox=loss_bbox,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            init_cfg=init_cfg,
        )
        if not self.use_sigmoid_cls:
            raise ValueError("FreeAnchorRetinaHead: loss_cls must have use_sigmoid=True; scores are probabilities here")
        if pre_anchor_topk < 1 or not 0 <= bbox_thr < 1:
            raise ValueError(
                "FreeAnchorRetinaHead: pre_anchor_topk must be at least 1 and bbox_thr in [0, 1), got "
                f"{pre_anchor_topk} and {bbox_thr}"
            )
        self.pre_anchor_topk = pre_anchor_topk
        self.bbox_thr = bbox_thr
        self.gamma = gamma
        self.alpha = alpha

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``positive_bag_loss`` and ``negative_bag_loss`` of the levels ``x`` (N, in_channels, H_l, W_l)."""
        cls_scores, bbox_preds = self(x)
        levels = self.prior_generator.grid_priors(featmap_sizes(cls_scores), device=cls_scores[0].device)
        anchors = torch.cat(levels)
        probs = flatten_levels(cls_scores, self.cls_out_channels).sigmoid()  # (N, A, C)
        deltas = flatten_levels(bbox_preds, self.encode_size)  # (N, A, 4)
        truth = GroundTruth.from_samples(batch_data_samples)
        num_objects = truth.valid.sum()
        positive = torch.where(truth.valid, self._positive_bags(probs, deltas, anchors, truth), 0.0).sum()
        with torch.no_grad():
            near = self._near_objects(self.bbox_coder.decode(anchors.expand_as(deltas), deltas), truth)
        negative = (probs * (1 - near)).clamp(EPS, 1 - EPS)
        negative_loss = (1 - self.alpha) * negative**self.gamma * -_log(1 - negative)
        return {
            "positive_bag_loss": positive / reduce_mean(num_objects, least=1),
            "negative_bag_loss": negative_loss.sum() / reduce_mean(num_objects * self.pre_anchor_topk, least=1),
        }

    def _positive_bags(self, probs: Tensor, deltas: Tensor, anchors: Tensor, truth: GroundTruth) -> Tensor:
        """How unlikely it is that any anchor of an object's bag predicts it (eq. 5 and 6), (N, G)."""
        num_images, num_objects = truth.valid.shape
        size = min(self.pre_anchor_topk, len(anchors))
        bag = torch.empty(num_images, num_objects, size, dtype=torch.int64, device=anchors.device)
        for some in chunk_slices(num_objects, num_images * len(anchors), anchors.device, least=1):
            bag[:, some] = bbox_overlaps(truth.boxes[:, some], anchors).topk(size, dim=2).indices
        flat = bag.flatten(1)
        own_anchors = anchors[bag]  # (N, G, K, 4)
        own_deltas = deltas.gather(1, flat.unsqueeze(-1).expand(-1, -1, deltas.shape[2])).view(
            *bag.shape, deltas.shape[2]
        )
        class_index = flat * probs.shape[2] + truth.labels.unsqueeze(2).expand_as(bag).flatten(1)
        class_prob = probs.flatten(1).gather(1, class_index).view_as(bag)
        # Padding has no box; its anchors stand for it, so that the encoding is finite.
        valid = truth.valid[..., None, None]
        boxes = torch.where(valid, truth.boxes.unsqueeze(2), own_anchors)
        wanted = encode_finite(self.bbox_coder, own_anchors, boxes)
        loss = self.loss_bbox(own_deltas.flatten(0, 2), wanted.flatten(0, 2), reduction_override="none")
        per_box = loss.sum(dim=-1) if loss.dim() > 1 else loss
        likelihood = class_prob * (-per_box.view_as(bag)).exp()
        # Mean-max: near 0 all of a bag count alike, near 1 the best alone does.
        weight = 1 / (1 - likelihood).clamp(min=EPS)
        of_bag = (weight / weight.sum(dim=2, keepdim=True) * likelihood).sum(dim=2)
        return self.alpha * -_log(of_bag)

    def _near_objects(self, boxes: Tensor, truth: GroundTruth) -> Tensor:
        """How near each predicted box (N, A, 4) is to being that of an object of each class, (N, A, C) in [0, 1]."""
        num_images, num_boxes, _ = boxes.shape
        near = boxes.new_zeros(num_images, self.num_classes, num_boxes)
        for some in chunk_slices(truth.valid.shape[1], num_images * num_boxes, boxes.device, least=1):
            overlaps = bbox_overlaps(truth.boxes[:, some], boxes)  # (N, g, A)
            best = overlaps.amax(dim=2, keepdim=True).clamp(min=self.bbox_thr + EPS)
            share = ((overlaps - self.bbox_thr) / (best - self.bbox_thr)).clamp(0, 1)
            share = share * truth.valid[:, some].unsqueeze(2)
            near.scatter_reduce_(1, truth.labels[:, some].unsqueeze(2).expand_as(share), share, "amax")
        return near.transpose(1, 2)


def _log(probability: Tensor) -> Tensor:
    """Logarithm of probabilities; at 0 it is LEAST_LOG and does not learn."""
    return torch.where(probability > 0, probability.clamp(min=torch.finfo(probability.dtype).tiny).log(), LEAST_LOG)
