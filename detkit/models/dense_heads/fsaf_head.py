"""FSAF: each object learns on the level that predicts it best, Zhu et al., https://arxiv.org/abs/1903.00621."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_levels
from detkit.models.dense_heads.retina_head import RetinaHead
from detkit.models.dense_heads.targets.anchor_targets import valid_anchors
from detkit.models.dense_heads.targets.part_checks import check_label_loss
from detkit.models.dense_heads.targets.prior_targets import prior_targets
from detkit.registry import MODELS
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import BatchAssignResult
from detkit.task_modules.coders import encode_finite

__all__ = ["FSAFHead"]

Cfg = Mapping[str, Any]
# Sides nearer than this to the cell do not learn, so that boxes have an area.
LEAST_DISTANCE = 1e-4
# Loss of an object on a level where it has no cells.
NO_CELLS = 1e6


@MODELS.register_module()
class FSAFHead(RetinaHead):
    """The anchor-free branch: one square per cell, and online selection of the level for each object.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        stacked_convs: Convolutions of each tower.
        feat_channels: Their channels.
        conv_cfg: Their convolution layers.
        norm_cfg: Their norm layers; None has none.
        anchor_generator: Registered prior generator, of one square per cell.
        bbox_coder: Registered box coder of distances, such as TBLRBBoxCoder.
        reg_decoded_bbox: Compute the box loss on boxes instead of their encoding (IoU losses).
        loss_cls: Classification loss, one value per class and cell.
        loss_bbox: Box loss, one value per box or coordinate.
        train_cfg: ``assigner``, ``sampler``, ``allowed_border``, ``pos_weight``.
        test_cfg: See :class:`DenseTestCfg`.
        init_cfg: Initialisation.
        score_threshold: Score from which a cell counts for ``pos_recall``; None counts all.

    Raises:
        ValueError: Parts that do not fit.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        stacked_convs: int = 4,
        feat_channels: int = 256,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        anchor_generator: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        reg_decoded_bbox: bool = False,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        score_threshold: float | None = None,
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
            reg_decoded_bbox=reg_decoded_bbox,
            loss_cls=loss_cls,
            loss_bbox=loss_bbox,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            init_cfg=init_cfg or _default_init(),
        )
        check_label_loss(self.loss_cls, "FSAFHead")
        if getattr(self.loss_cls, "counts_itself", False):
            raise ValueError(
                f"FSAFHead: loss_cls: {type(self.loss_cls).__name__} divides by a number of its own; here each score "
                "has a weight, and the head divides the sum of the losses"
            )
        self.score_threshold = score_threshold

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, C, H_l, W_l) and distances (N, 4, H_l, W_l), of levels (N, in_channels, H_l, W_l)."""
        cls_scores, bbox_preds = super().forward(x)
        return cls_scores, [level.relu() for level in bbox_preds]

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_cls`` and ``loss_bbox`` of the levels ``x`` (N, in_channels, H_l, W_l).

        Beside them, to be logged: ``num_pos``, the positives per image, and ``pos_recall``, the percentage of these
        whose class has the highest score.
        """
        cfg = self.train_cfg
        if cfg.assigner is None:
            raise ValueError("FSAFHead: training needs train_cfg with an assigner")
        cls_scores, bbox_preds = self(x)
        sizes = featmap_sizes(cls_scores)
        levels = self.prior_generator.grid_priors(sizes, device=cls_scores[0].device)
        anchors = torch.cat(levels)
        logits = flatten_levels(cls_scores, self.cls_out_channels)  # (N, A, C)
        encoded = flatten_levels(bbox_preds, self.encode_size).clamp(min=LEAST_DISTANCE)  # (N, A, 4)
        truth = GroundTruth.from_samples(batch_data_samples)
        metas = [sample.metainfo for sample in batch_data_samples]
        valid = valid_anchors(anchors, self.prior_generator, sizes, metas, cfg.allowed_border)
        inputs = cfg.inputs(
            levels, lambda: self.bbox_coder.decode(anchors.expand_as(encoded), encoded), logits, self._activate
        )
        found = prior_targets(
            anchors, anchors, truth, valid, cfg.assigner, cfg.sampler, self.num_classes, cfg.pos_weight, inputs
        )
        positive, labels = found.positive, found.labels
        cls_weight = found.label_weights.unsqueeze(-1) * ~self._shadowed(found.assigned, truth, logits)
        of_class = self.loss_cls(
            logits.flatten(0, 1), labels.flatten(), cls_weight.flatten(0, 1), reduction_override="none"
        ).view_as(logits)
        of_box = self._box_losses(encoded, anchors, found.bboxes, positive)

        gt_inds = torch.where(positive, found.assigned.gt_inds, 0)
        level_of = torch.cat([torch.full((len(level),), i, device=anchors.device) for i, level in enumerate(levels)])
        with torch.no_grad():
            best = self._best_levels(
                of_class.sum(dim=-1) + of_box, gt_inds, level_of, truth.valid.shape[1], len(levels)
            )
        # A positive on another level than its object's does not learn, neither its box nor the score of its class.
        kept = positive & (best.gather(1, gt_inds) == level_of)
        dropped = (positive & ~kept).unsqueeze(-1) & (labels.unsqueeze(-1) == self._classes(logits))
        num_positive = kept.sum()
        # Negatives count where no process has a positive; there are far more of them.
        of_all = reduce_mean(num_positive)
        num_negative = reduce_mean(found.negative.sum(dim=1).clamp(min=1).sum())
        avg_factor = torch.where(of_all > 0, of_all, num_negative)
        return {
            "loss_cls": torch.where(dropped, 0.0, of_class).sum() / avg_factor,
            "loss_bbox": torch.where(kept, of_box, 0.0).sum() / avg_factor,
            "num_pos": num_positive / len(batch_data_samples),
            "pos_recall": self._recall(logits.detach(), labels, kept),
        }

    def _classes(self, logits: Tensor) -> Tensor:
        return torch.arange(logits.shape[-1], device=logits.device)

    def _shadowed(self, assigned: BatchAssignResult, truth: GroundTruth, logits: Tensor) -> Tensor:
        """Scores that have no loss, (N, A, C) bool: of an object's class in its shadow."""
        none = torch.zeros_like(logits, dtype=torch.bool)
        if assigned.extra is None or "shadowed" not in assigned.extra:
            return none
        shadowed = (assigned.extra["shadowed"] > 0).float()
        index = truth.labels.unsqueeze(1).expand_as(shadowed)
        return torch.zeros_like(logits).scatter_reduce(2, index, shadowed, "amax") > 0

    def _box_losses(self, encoded: Tensor, anchors: Tensor, boxes: Tensor, positive: Tensor) -> Tensor:
        """Box loss (N, A) of each positive, 0 elsewhere."""
        own = anchors.expand_as(boxes)
        if self.reg_decoded_bbox:
            predicted, wanted = self.bbox_coder.decode(own, encoded), boxes
        else:
            predicted, wanted = encoded, encode_finite(self.bbox_coder, own, boxes)
        # Elsewhere the prediction may be infinite, and infinity times no weight would not be 0.
        predicted = torch.where(positive.unsqueeze(-1), predicted, wanted)
        weight = positive.float().flatten().unsqueeze(-1).expand(-1, predicted.shape[-1])
        loss = self.loss_bbox(predicted.flatten(0, 1), wanted.flatten(0, 1), weight, reduction_override="none")
        per_box = loss.sum(dim=-1) if loss.dim() > 1 else loss
        return per_box.view_as(positive)

    def _best_levels(
        self, loss: Tensor, gt_inds: Tensor, level_of: Tensor, num_objects: int, num_levels: int
    ) -> Tensor:
        """Level (N, 1 + G) on which the mean loss (N, A) of an object's cells is least; column 0 is no object."""
        key = gt_inds * num_levels + level_of  # (N, A)
        empty = loss.new_zeros(len(loss), (1 + num_objects) * num_levels)
        count = empty.scatter_add(1, key, torch.ones_like(loss))
        mean = empty.scatter_add(1, key, loss) / count.clamp(min=1)
        return torch.where(count > 0, mean, NO_CELLS).view(len(loss), 1 + num_objects, num_levels).argmin(dim=2)

    def _recall(self, logits: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
        """Percentage of the cells ``kept`` (N, A) whose own class has the highest score, above the threshold."""
        scores, predicted = logits.sigmoid().max(dim=-1)
        hit = kept & (predicted == labels)
        if self.score_threshold is not None:
            hit = hit & (scores > self.score_threshold)
        return 100.0 * hit.sum() / kept.sum().clamp(min=1)


def _default_init() -> dict[str, Any]:
    # Boxes start as large as the square of the cell, and scores at 0.01.
    return {
        "type": "Normal",
        "layer": "Conv2d",
        "std": 0.01,
        "override": [
            {"type": "Normal", "name": "retina_cls", "std": 0.01, "bias_prob": 0.01},
            {"type": "Normal", "name": "retina_reg", "std": 0.01, "bias": 0.25},
        ],
    }
