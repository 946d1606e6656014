"""Head of FoveaBox, Kong et al., https://arxiv.org/abs/1904.03797."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.layers.towers import conv_tower
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_level, flatten_levels
from detkit.models.dense_heads.prediction.log_size import exp_size
from detkit.models.dense_heads.prediction.postprocess import TEST_CFG_KEYS, DenseTestCfg, detections, select_candidates
from detkit.models.dense_heads.targets.part_checks import (
    check_assigner,
    check_label_loss,
    check_loss,
    dense_sampler,
)
from detkit.models.dense_heads.targets.point_targets import POINT_KINDS, point_targets
from detkit.models.dense_heads.targets.prior_targets import assigner_inputs
from detkit.ops import DeformConv2d
from detkit.registry import MODELS, TASK_UTILS, check_keys
from detkit.structures import DetDataSample
from detkit.structures.boxes import bbox2distance, distance2bbox
from detkit.structures.ground_truth import GroundTruth

__all__ = ["FeatureAlign", "FoveaHead"]

Cfg = Mapping[str, Any]
# Distances are learnt within these bounds, in base edges (3.4).
LEAST_DISTANCE, GREATEST_DISTANCE = 1 / 16, 16.0


class FeatureAlign(BaseModule):
    """A deformable convolution whose offsets follow from the predicted box (section 3.6).

    Args:
        channels: Of input and output.
        deform_groups: Groups of channels with offsets of their own.
    """

    def __init__(self, channels: int, deform_groups: int = 4) -> None:
        super().__init__(
            {
                "type": "Normal",
                "layer": "Conv2d",
                "std": 0.1,
                "override": {"type": "Normal", "name": "conv_adaption", "std": 0.01},
            }
        )
        self.conv_offset = nn.Conv2d(4, deform_groups * 3 * 3 * 2, 1, bias=False)
        self.conv_adaption = DeformConv2d(channels, channels, 3, padding=1, deform_groups=deform_groups)

    def forward(self, x: Tensor, distances: Tensor) -> Tensor:
        """Features (N, channels, H, W) of ``x``, drawn together by ``distances`` (N, 4, H, W)."""
        return self.conv_adaption(x, self.conv_offset(distances)).relu()


@MODELS.register_module()
class FoveaHead(BaseModule):
    """Each cell predicts a class and the logarithms of its distances to the four sides of an object.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        base_edge_list: Of each level, the unit of its distances in pixels.
        scale_ranges: Of each level, least and greatest square root of the area of its objects in pixels.
        sigma: Size of the middle of an object, whose cells learn it.
        with_deform: Classify by features that are aligned to the predicted box.
        deform_groups: Groups of channels of that alignment.
        init_cfg: Initialisation.
        feat_channels: Channels of the towers.
        stacked_convs: Convolutions of each tower.
        strides: Pixels per cell of each level.
        dcn_on_last_conv: Make the last convolution of each tower deformable.
        conv_bias: Whether the towers' convolutions have a bias; ``auto`` where no norm follows.
        loss_cls: Classification loss.
        loss_bbox: Loss on the logarithms of distances.
        conv_cfg: Convolution layers of the towers.
        norm_cfg: Norm layers of the towers; None has none.
        train_cfg: ``assigner`` (else FoveaBox's own) and ``sampler``.
        test_cfg: See :class:`DenseTestCfg`.

    Raises:
        ValueError: Levels differ in number, or an assigner that this head cannot serve.
    """

    train_cfg_keys = ("assigner", "sampler", "box_scale")
    test_cfg_keys = TEST_CFG_KEYS
    # What the head can give an assigner besides its points.
    assigner_offers = ("num_level_priors", "featmap_sizes", "bboxes", "scores")

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        base_edge_list: Sequence[float] = (16, 32, 64, 128, 256),
        scale_ranges: Sequence[Sequence[float]] = ((8, 32), (16, 64), (32, 128), (64, 256), (128, 512)),
        sigma: float = 0.4,
        with_deform: bool = False,
        deform_groups: int = 4,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        feat_channels: int = 256,
        stacked_convs: int = 4,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        dcn_on_last_conv: bool = False,
        conv_bias: bool | str = "auto",
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
    ) -> None:
        super().__init__(init_cfg or _default_init())
        if num_classes < 1:
            raise ValueError(f"FoveaHead: num_classes must be at least 1, got {num_classes}")
        if not len(strides) == len(base_edge_list) == len(scale_ranges):
            raise ValueError(
                f"FoveaHead: {len(strides)} strides, {len(base_edge_list)} base_edge_list and {len(scale_ranges)} "
                "scale_ranges; each level needs one of each"
            )
        self.num_classes = num_classes
        self.base_edges = tuple(float(edge) for edge in base_edge_list)
        self.prior_generator = TASK_UTILS.build({"type": "MlvlPointGenerator", "strides": list(strides)})
        self.loss_cls = MODELS.build(loss_cls or {"type": "FocalLoss"})
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "SmoothL1Loss", "beta": 0.11})

        check_label_loss(self.loss_cls, "FoveaHead")
        check_loss(self.loss_bbox, ["coordinates"], "FoveaHead", "loss_bbox")
        check_keys(train_cfg, self.train_cfg_keys, "train_cfg")
        train_cfg = train_cfg or {}
        own_rule = {"type": "FoveaAssigner", "scale_ranges": scale_ranges, "sigma": sigma}
        self.assigner = TASK_UTILS.build(train_cfg.get("assigner") or own_rule)
        self.assigner_inputs = check_assigner(
            self.assigner, self.assigner_offers, "FoveaHead", POINT_KINDS, num_levels=self.prior_generator.num_levels
        )
        self.sampler = dense_sampler(train_cfg.get("sampler"), "FoveaHead")
        self.box_scale = train_cfg.get("box_scale", 8)
        self.test_cfg = DenseTestCfg.of(test_cfg)

        last = {"type": "DCNv2"} if dcn_on_last_conv else None
        layers: dict[str, Any] = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg, "bias": conv_bias}
        self.reg_convs = conv_tower(in_channels, feat_channels, stacked_convs, last_conv_cfg=last, **layers)
        self.feature_adaption = None
        features, wide = feat_channels if stacked_convs > 0 else in_channels, 4 * feat_channels
        if with_deform:
            self.cls_convs = nn.ModuleList(
                ConvModule(channels, wide, kernel, padding=kernel // 2, **{**layers, "bias": norm_cfg is None})
                for channels, kernel in ((feat_channels, 3), (wide, 1))
            )
            self.feature_adaption = FeatureAlign(feat_channels, deform_groups)
        else:
            self.cls_convs = conv_tower(in_channels, feat_channels, stacked_convs, last_conv_cfg=last, **layers)
        self.conv_cls = nn.Conv2d(wide if with_deform else features, num_classes, 3, padding=1)
        self.conv_reg = nn.Conv2d(features, 4, 3, padding=1)

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, C, H_l, W_l) and logarithms of distances in base edges (N, 4, H_l, W_l)."""
        cls_scores, bbox_preds = [], []
        for level in x:
            cls_feat = reg_feat = level
            for reg_conv in self.reg_convs:
                reg_feat = reg_conv(reg_feat)
            bbox_pred = self.conv_reg(reg_feat)
            if self.feature_adaption is not None:
                cls_feat = self.feature_adaption(cls_feat, exp_size(bbox_pred).to(bbox_pred.dtype))
            for cls_conv in self.cls_convs:
                cls_feat = cls_conv(cls_feat)
            cls_scores.append(self.conv_cls(cls_feat))
            bbox_preds.append(bbox_pred)
        return cls_scores, bbox_preds

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_cls`` and ``loss_bbox`` of the levels ``x`` (N, in_channels, H_l, W_l)."""
        cls_scores, bbox_preds = self(x)
        sizes = featmap_sizes(cls_scores)
        levels = self._levels(sizes, cls_scores[0].device)
        points = torch.cat(levels)  # (A, 5)
        logits = flatten_levels(cls_scores, self.num_classes)  # (N, A, C)
        encoded = flatten_levels(bbox_preds, 4)  # (N, A, 4)
        inputs = assigner_inputs(
            self.assigner,
            self.assigner_inputs,
            levels,
            lambda: _decode(points.expand(*encoded.shape[:2], 5), encoded),
            lambda: logits,
            lambda: logits.sigmoid(),
            sizes,
        )
        targets = point_targets(
            points[:, :4],
            GroundTruth.from_samples(batch_data_samples),
            self.assigner,
            self.sampler,
            self.num_classes,
            self.box_scale,
            inputs,
        )
        distances = bbox2distance(points[:, :2].expand(*encoded.shape[:2], 2), targets.bboxes) / points[:, 4:]
        wanted = distances.clamp(LEAST_DISTANCE, GREATEST_DISTANCE).log()
        num_positive = reduce_mean(targets.positive.sum())
        weights = targets.positive.unsqueeze(-1).expand_as(wanted).float()
        return {
            "loss_cls": self.loss_cls(
                logits.flatten(0, 1),
                targets.labels.flatten(),
                targets.label_weights.flatten(),
                avg_factor=num_positive + len(batch_data_samples),
            ),
            "loss_bbox": self.loss_bbox(
                encoded.flatten(0, 1), wanted.flatten(0, 1), weights.flatten(0, 1), avg_factor=num_positive.clamp(min=1)
            ),
        }

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
        # MMDetection lets boxes of this head end at the centre of the last pixel.
        shapes = [(meta["img_shape"][0] - 1, meta["img_shape"][1] - 1) for meta in metas]
        candidates = select_candidates(
            [flatten_level(level, self.num_classes).sigmoid() for level in cls_scores],
            [flatten_level(level, 4) for level in bbox_preds],
            self._levels(featmap_sizes(cls_scores), cls_scores[0].device),
            lambda points, encoded: _decode(points, encoded, shapes),
            self.test_cfg,
        )
        return detections(candidates, metas, self.test_cfg, rescale)

    def _levels(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
        """Points (A_l, 5) of each level: x, y, the strides of both, and the base edge."""
        levels = self.prior_generator.grid_priors(sizes, device=device, with_stride=True)
        return [
            torch.cat([points, points.new_full((len(points), 1), edge)], dim=1)
            for points, edge in zip(levels, self.base_edges, strict=True)
        ]


def _decode(points: Tensor, encoded: Tensor, shapes: Sequence[tuple[int, int]] | None = None) -> Tensor:
    """Boxes (N, K, 4) of logarithms (N, K, 4) at points (N, K, 5)."""
    return distance2bbox(points[..., :2], points[..., 4:] * exp_size(encoded), shapes)


def _default_init() -> dict[str, Any]:
    return {
        "type": "Normal",
        "layer": "Conv2d",
        "std": 0.01,
        "override": {"type": "Normal", "name": "conv_cls", "std": 0.01, "bias_prob": 0.01},
    }
