"""First stage of CenterNet2, a CenterNet over a pyramid, Zhou et al., https://arxiv.org/abs/2103.07461."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import Scale
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.layers.towers import conv_tower
from detkit.models.dense_heads.losses.box_quality import weighted_box_loss
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_level, flatten_levels
from detkit.models.dense_heads.prediction.postprocess import TEST_CFG_KEYS, DenseTestCfg, detections, select_candidates
from detkit.models.dense_heads.targets.centernet_update_targets import center_heat_targets, near_points, well_predicted
from detkit.models.dense_heads.targets.part_checks import check_loss
from detkit.models.dense_heads.targets.point_targets import boxes_around_origin
from detkit.registry import MODELS, TASK_UTILS, check_keys
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth

__all__ = ["CenterNetUpdateHead"]

Cfg = Mapping[str, Any]
INFINITE = 1e8
# Probabilities are kept this far from 0 and 1.
MARGIN = 1e-4


@MODELS.register_module()
class CenterNetUpdateHead(BaseModule):
    """Each point of each level predicts how central in an object of each class it is, and its distances to the sides.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        regress_ranges: Of each level, least and greatest half diagonal of its objects in pixels.
        hm_min_radius: Least radius of a peak in pixels.
        hm_min_overlap: IoU that a box keeps whose centre is off by the radius of its peak.
        more_pos_thresh: Cells beside a centre are positive too if their box loss is below this,
        more_pos_topk: and they are among so many of their object.
        soft_weight_on_reg: Weigh box losses by the heat of their points.
        loss_cls: Loss over heat, of GaussianFocalLoss's arguments.
        loss_bbox: Box loss.
        norm_cfg: Norm layers of the towers.
        train_cfg: Nothing is read from it.
        test_cfg: See :class:`DenseTestCfg`.
        init_cfg: Initialisation.
        feat_channels: Channels of the towers.
        stacked_convs: Convolutions of each tower.
        strides: Pixels per cell of each level.
        conv_bias: Whether the towers' convolutions have a bias; ``auto`` where no norm follows.
        dcn_on_last_conv: Make the last convolution of each tower deformable.
        conv_cfg: Convolution layers of the towers.

    Raises:
        ValueError: ``num_classes`` below 1, levels that differ in number, or losses that do not fit.
    """

    train_cfg_keys = ()
    test_cfg_keys = TEST_CFG_KEYS

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        regress_ranges: Sequence[Sequence[float]] = ((0, 80), (64, 160), (128, 320), (256, 640), (512, INFINITE)),
        hm_min_radius: float = 4,
        hm_min_overlap: float = 0.8,
        more_pos_thresh: float = 0.2,
        more_pos_topk: int = 9,
        soft_weight_on_reg: bool = False,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        feat_channels: int = 256,
        stacked_convs: int = 4,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        conv_bias: bool | str = "auto",
        dcn_on_last_conv: bool = False,
        conv_cfg: Cfg | None = None,
    ) -> None:
        super().__init__(init_cfg or _default_init())
        if num_classes < 1:
            raise ValueError(f"CenterNetUpdateHead: num_classes must be at least 1, got {num_classes}")
        if len(regress_ranges) != len(strides):
            raise ValueError(f"CenterNetUpdateHead: {len(strides)} strides, but {len(regress_ranges)} regress_ranges")
        self.num_classes = num_classes
        self.regress_ranges = tuple((float(least), float(most)) for least, most in regress_ranges)
        self.hm_min_radius = hm_min_radius
        self.delta = (1 - hm_min_overlap) / (1 + hm_min_overlap)
        self.more_pos_thresh = more_pos_thresh
        self.more_pos_topk = more_pos_topk
        self.soft_weight_on_reg = soft_weight_on_reg
        self.prior_generator = TASK_UTILS.build({"type": "MlvlPointGenerator", "strides": list(strides)})
        self.bbox_coder = TASK_UTILS.build({"type": "DistancePointBBoxCoder"})
        self.loss_cls = MODELS.build(
            loss_cls or {"type": "GaussianFocalLoss", "pos_weight": 0.25, "neg_weight": 0.75, "loss_weight": 1.0}
        )
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "GIoULoss", "loss_weight": 2.0})
        check_loss(self.loss_cls, ["heatmaps"], "CenterNetUpdateHead", "loss_cls")
        # One value per box chooses the points near a centre.
        check_loss(self.loss_bbox, ["boxes"], "CenterNetUpdateHead", "loss_bbox")
        check_keys(train_cfg, self.train_cfg_keys, "train_cfg")
        self.test_cfg = DenseTestCfg.of(test_cfg)

        self.cls_convs, self.reg_convs = (
            conv_tower(
                in_channels,
                feat_channels,
                stacked_convs,
                conv_cfg=conv_cfg,
                norm_cfg=norm_cfg or {"type": "GN", "num_groups": 32, "requires_grad": True},
                bias=conv_bias,
                last_conv_cfg={"type": "DCNv2"} if dcn_on_last_conv else None,
            )
            for _ in ("cls", "reg")
        )
        features = feat_channels if stacked_convs > 0 else in_channels
        self.conv_cls = nn.Conv2d(features, num_classes, 3, padding=1)
        self.conv_reg = nn.Conv2d(features, 4, 3, padding=1)
        self.scales = nn.ModuleList(Scale(1.0) for _ in strides)

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, C, H_l, W_l) and distances (N, 4, H_l, W_l) in pixels."""
        cls_scores, bbox_preds = [], []
        for level, scale, stride in zip(x, self.scales, self.prior_generator.strides, strict=True):
            cls_feat = reg_feat = level
            for cls_conv, reg_conv in zip(self.cls_convs, self.reg_convs, strict=True):
                cls_feat, reg_feat = cls_conv(cls_feat), reg_conv(reg_feat)
            cls_scores.append(self.conv_cls(cls_feat))
            bbox_preds.append(scale(self.conv_reg(reg_feat)).float().clamp(min=0) * stride[0])
        return cls_scores, bbox_preds

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_cls`` and ``loss_bbox`` of the levels ``x`` (N, in_channels, H_l, W_l)."""
        cls_scores, bbox_preds = self(x)
        sizes = featmap_sizes(cls_scores)
        levels = self.prior_generator.grid_priors(sizes, device=cls_scores[0].device, with_stride=True)
        points = torch.cat(levels)  # (A, 4)
        ranges = torch.cat(
            [
                torch.stack([level.new_full((len(level),), end) for end in ends], dim=1)
                for level, ends in zip(levels, self.regress_ranges, strict=True)
            ]
        )
        scores = flatten_levels(cls_scores, self.num_classes).sigmoid().clamp(MARGIN, 1 - MARGIN)  # (N, A, C)
        distances = flatten_levels(bbox_preds, 4) / points[:, 2:].repeat(1, 2)  # (N, A, 4)
        truth = GroundTruth.from_samples(batch_data_samples)
        targets = center_heat_targets(points, ranges, truth, self.num_classes, self.delta, self.hm_min_radius)

        positive = targets.positive.float()
        weight = positive * targets.heat.amax(dim=-1) if self.soft_weight_on_reg else positive
        predicted, wanted = boxes_around_origin(distances), boxes_around_origin(targets.distances)
        loss_bbox = weighted_box_loss(self.loss_bbox, predicted, wanted, weight, reduce_mean(weight.sum(), least=1))
        return {"loss_cls": self._heat_loss(scores, targets.heat, distances, sizes, truth), "loss_bbox": loss_bbox}

    def _heat_loss(
        self,
        scores: Tensor,
        heat: Tensor,
        distances: Tensor,
        sizes: Sequence[tuple[int, int]],
        truth: GroundTruth,
    ) -> Tensor:
        """Loss over heat; positive are the centres, and points near them that predict the box well."""
        near = near_points(sizes, self.prior_generator.strides, self.regress_ranges, truth)
        with torch.no_grad():
            chosen = well_predicted(near, distances, self._box_loss, self.more_pos_topk, self.more_pos_thresh)
        num_images, num_points, num_classes = scores.shape
        # A certain score where 1 is wanted has no loss of either kind: the row that stands for "none".
        certain = scores.new_ones(1, num_classes)
        first = torch.arange(0, num_images * num_points, num_points, device=scores.device).view(-1, 1, 1)
        rows = torch.where(chosen, first + near.point, num_images * num_points)
        labels = truth.labels.unsqueeze(2).expand_as(rows)
        return self.loss_cls(
            torch.cat([scores.flatten(0, 1), certain]),
            torch.cat([heat.flatten(0, 1), certain]),
            pos_inds=rows.flatten(),
            pos_labels=labels.flatten(),
            avg_factor=reduce_mean(chosen.sum(), least=1),
        )

    def _box_loss(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        """Box loss (P,) of distances (P, 4), before its weight."""
        loss = self.loss_bbox(boxes_around_origin(predicted), boxes_around_origin(wanted), reduction_override="none")
        return loss / self.loss_bbox.loss_weight

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


def _default_init() -> dict[str, Any]:
    return {
        "type": "Normal",
        "layer": "Conv2d",
        "std": 0.01,
        "override": {"type": "Normal", "name": "conv_cls", "std": 0.01, "bias_prob": 0.01},
    }
