"""What the heads of RTMDet share, Lyu et al., https://arxiv.org/abs/2212.07784: targets, losses and prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.losses.box_quality import weighted_box_loss
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_level, flatten_levels
from detkit.models.dense_heads.prediction.postprocess import TEST_CFG_KEYS, DenseTestCfg, detections, select_candidates
from detkit.models.dense_heads.targets.anchor_targets import valid_anchors
from detkit.models.dense_heads.targets.part_checks import (
    check_assigner,
    check_box_loss,
    check_coder,
    check_loss,
    dense_sampler,
)
from detkit.models.dense_heads.targets.point_targets import (
    POINT_KINDS,
    PointTargets,
    point_targets,
)
from detkit.models.dense_heads.targets.prior_targets import assigner_inputs
from detkit.registry import MODELS, TASK_UTILS, check_keys
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth

__all__ = ["QualityPointHead"]

Cfg = Mapping[str, Any]


class QualityPointHead(BaseModule):
    """What RTMDet's heads do with their outputs: scores learn how well the box of their point fits its object.

    A child makes the layers and ``forward``, which returns logits (N, C, H_l, W_l) and distances (N, 4, H_l, W_l) in
    pixels per level.

    Args:
        num_classes: Classes without background.
        anchor_generator: Registered generator of points.
        bbox_coder: Registered coder of distances from points.
        loss_cls: Loss over labels and qualities, such as QualityFocalLoss.
        loss_bbox: Box loss.
        train_cfg: ``assigner``, ``sampler``, ``pos_weight``, and ``box_scale``, the side in strides of the box that an
            assigner of boxes sees around each point; None at test time. ``allowed_border`` means nothing to points.
        test_cfg: See :class:`DenseTestCfg`.
        init_cfg: Initialisation.

    Raises:
        ValueError: ``num_classes`` below 1, or parts that do not fit.
    """

    train_cfg_keys = ("assigner", "sampler", "box_scale", "allowed_border", "pos_weight", "debug")
    test_cfg_keys = TEST_CFG_KEYS
    # What the head can give an assigner besides its points.
    assigner_offers = ("num_level_priors", "bboxes", "scores")

    def __init__(
        self,
        num_classes: int,
        anchor_generator: Cfg | None,
        bbox_coder: Cfg | None,
        loss_cls: Cfg | None,
        loss_bbox: Cfg | None,
        train_cfg: Cfg | None,
        test_cfg: Cfg | None,
        init_cfg: Cfg | Sequence[Cfg] | None,
    ) -> None:
        super().__init__(init_cfg)
        name = type(self).__name__
        if num_classes < 1:
            raise ValueError(f"{name}: num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.prior_generator = TASK_UTILS.build(
            anchor_generator or {"type": "MlvlPointGenerator", "offset": 0, "strides": [8, 16, 32]}
        )
        self.bbox_coder = TASK_UTILS.build(bbox_coder or {"type": "DistancePointBBoxCoder"})
        self.loss_cls = MODELS.build(loss_cls or {"type": "QualityFocalLoss"})
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "GIoULoss", "loss_weight": 2.0})

        check_coder(self.bbox_coder, "points", name)
        check_loss(self.loss_cls, ["labels with qualities"], name, "loss_cls")
        check_box_loss(self.loss_bbox, True, name)
        check_keys(train_cfg, self.train_cfg_keys, "train_cfg")
        train_cfg = train_cfg or {}
        self.assigner = TASK_UTILS.build(train_cfg.get("assigner") or {"type": "DynamicSoftLabelAssigner"})
        self.assigner_inputs = check_assigner(
            self.assigner, self.assigner_offers, name, POINT_KINDS, num_levels=self.prior_generator.num_levels
        )
        self.sampler = dense_sampler(train_cfg.get("sampler"), name)
        self.pos_weight = train_cfg.get("pos_weight", -1)
        self.box_scale = train_cfg.get("box_scale", 8)
        self.test_cfg = DenseTestCfg.of(test_cfg)

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_cls`` and ``loss_bbox`` of the levels ``x`` (N, in_channels, H_l, W_l)."""
        cls_scores, bbox_preds = self(x)
        sizes = featmap_sizes(cls_scores)
        levels = self.prior_generator.grid_priors(sizes, device=cls_scores[0].device, with_stride=True)
        points = torch.cat(levels)  # (A, 4)
        logits = flatten_levels(cls_scores, self.num_classes)  # (N, A, C)
        distances = flatten_levels(bbox_preds, 4)  # (N, A, 4)
        inputs = assigner_inputs(
            self.assigner,
            self.assigner_inputs,
            levels,
            lambda: self._boxes(points, distances),
            lambda: logits,
            lambda: logits.sigmoid(),
        )
        targets = point_targets(
            points,
            GroundTruth.from_samples(batch_data_samples),
            self.assigner,
            self.sampler,
            self.num_classes,
            self.box_scale,
            inputs,
            valid_anchors(points, self.prior_generator, sizes, [sample.metainfo for sample in batch_data_samples], -1),
            self.pos_weight,
        )
        return self._losses(logits, distances, points, targets)

    def _losses(self, logits: Tensor, distances: Tensor, points: Tensor, targets: PointTargets) -> dict[str, Tensor]:
        """Both losses of logits (N, A, C) and distances (N, A, 4) at points (A, 4), over the summed qualities."""
        quality = targets.overlaps  # (N, A)
        avg_factor = reduce_mean(quality.sum(), least=1)
        # A box that is not learnt may be infinite, and so may what its coder does with it.
        learnt = torch.where(targets.positive.unsqueeze(-1), distances, 0.0)
        both = (targets.labels.flatten(), quality.flatten())
        return {
            "loss_cls": self.loss_cls(
                logits.flatten(0, 1), both, targets.label_weights.flatten(), avg_factor=avg_factor
            ),
            "loss_bbox": weighted_box_loss(
                self.loss_bbox, self._boxes(points, learnt), targets.bboxes, quality, avg_factor
            ),
        }

    def _boxes(self, points: Tensor, distances: Tensor) -> Tensor:
        """Boxes (N, A, 4) at distances (N, A, 4) from points (A, 4)."""
        boxes: Tensor = self.bbox_coder.decode(points[:, :2].expand(*distances.shape[:2], 2), distances)
        return boxes

    def predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample], rescale: bool = False
    ) -> list[InstanceData]:
        """Detections of each image: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), best first.

        Args:
            x: Levels (N, in_channels, H_l, W_l).
            batch_data_samples: With image facts ``img_shape`` and, where resized, ``scale_factor``.
            rescale: Return boxes in the frame of the original image.
        """
        cls_scores, bbox_preds = self(x)
        metas = [sample.metainfo for sample in batch_data_samples]
        shapes = [tuple(meta["img_shape"][:2]) for meta in metas]
        candidates = select_candidates(
            [flatten_level(level, self.num_classes).sigmoid() for level in cls_scores],
            [flatten_level(level, 4) for level in bbox_preds],
            self.prior_generator.grid_priors(featmap_sizes(cls_scores), device=cls_scores[0].device),
            lambda points, distances: self.bbox_coder.decode(points, distances, max_shape=shapes),
            self.test_cfg,
        )
        return detections(candidates, metas, self.test_cfg, rescale)
