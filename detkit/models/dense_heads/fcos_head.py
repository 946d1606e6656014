"""Head of FCOS, Tian et al., https://arxiv.org/abs/1904.01355."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import Scale
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.models.dense_heads.layers.towers import conv_tower
from detkit.models.dense_heads.losses.fcos_loss import fcos_losses
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_level, flatten_levels
from detkit.models.dense_heads.prediction.log_size import exp_size
from detkit.models.dense_heads.prediction.postprocess import TEST_CFG_KEYS, DenseTestCfg, detections, select_candidates
from detkit.models.dense_heads.targets.part_checks import (
    check_assigner,
    check_box_loss,
    check_coder,
    check_label_loss,
    check_score_loss,
    dense_sampler,
)
from detkit.models.dense_heads.targets.point_targets import POINT_KINDS, point_targets
from detkit.models.dense_heads.targets.prior_targets import assigner_inputs
from detkit.models.layers import convolve_together
from detkit.registry import MODELS, TASK_UTILS, check_keys
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth

__all__ = ["FCOSHead"]

Cfg = Mapping[str, Any]
INFINITE = 1e8


@MODELS.register_module()
class FCOSHead(BaseModule):
    """Each point predicts a class, its distances to the four sides of an object, and how central in it it lies.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        regress_ranges: Of each level, the least and greatest distance in pixels to the farthest side of its objects.
        center_sampling: Only points near the centre of an object learn it.
        center_sample_radius: How near, in strides.
        norm_on_bbox: Predict distances in strides, rectified; else their logarithms, in pixels.
        centerness_on_reg: Predict centerness from the tower of the boxes.
        loss_cls: Classification loss.
        loss_bbox: Box loss.
        loss_centerness: Centerness loss.
        norm_cfg: Norm layers of the towers.
        init_cfg: Initialisation.
        feat_channels: Channels of the towers.
        stacked_convs: Convolutions of each tower.
        strides: Pixels per cell of each level.
        dcn_on_last_conv: Make the last convolution of each tower deformable.
        conv_bias: Whether the towers' convolutions have a bias; ``auto`` where no norm follows.
        bbox_coder: Registered coder of distances from points.
        conv_cfg: Convolution layers of the towers.
        train_cfg: ``assigner`` (else FCOS's own), ``sampler``, ``pos_weight``, and ``box_scale``, the side in strides
            of the box that an assigner of boxes sees around each point. ``allowed_border`` means nothing to points.
        test_cfg: See :class:`DenseTestCfg`.
        prior_generator: Registered generator of points; by default one in the middle of each cell.

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
        in_channels: int,
        regress_ranges: Sequence[Sequence[float]] = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, INFINITE)),
        center_sampling: bool = False,
        center_sample_radius: float = 1.5,
        norm_on_bbox: bool = False,
        centerness_on_reg: bool = False,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        loss_centerness: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        feat_channels: int = 256,
        stacked_convs: int = 4,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        dcn_on_last_conv: bool = False,
        conv_bias: bool | str = "auto",
        bbox_coder: Cfg | None = None,
        conv_cfg: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        prior_generator: Cfg | None = None,
    ) -> None:
        super().__init__(init_cfg or _default_init())
        if num_classes < 1:
            raise ValueError(f"FCOSHead: num_classes must be at least 1, got {num_classes}")
        if len(regress_ranges) != len(strides):
            raise ValueError(f"FCOSHead: {len(strides)} strides, but {len(regress_ranges)} regress_ranges")
        self.num_classes = num_classes
        self.norm_on_bbox = norm_on_bbox
        self.centerness_on_reg = centerness_on_reg
        points = {"type": "MlvlPointGenerator", "strides": list(strides)}
        self.prior_generator = TASK_UTILS.build({**points, **(prior_generator or {})})
        self.bbox_coder = TASK_UTILS.build(bbox_coder or {"type": "DistancePointBBoxCoder"})
        self.loss_cls = MODELS.build(loss_cls or {"type": "FocalLoss"})
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "IoULoss"})
        self.loss_centerness = MODELS.build(loss_centerness or {"type": "CrossEntropyLoss", "use_sigmoid": True})

        check_coder(self.bbox_coder, "points", "FCOSHead")
        check_label_loss(self.loss_cls, "FCOSHead")
        check_box_loss(self.loss_bbox, True, "FCOSHead")
        check_score_loss(self.loss_centerness, "FCOSHead", "loss_centerness")
        check_keys(train_cfg, self.train_cfg_keys, "train_cfg")
        train_cfg = train_cfg or {}
        own_rule = {
            "type": "FCOSAssigner",
            "regress_ranges": regress_ranges,
            "center_sample_radius": center_sample_radius if center_sampling else None,
        }
        self.assigner = TASK_UTILS.build(train_cfg.get("assigner") or own_rule)
        self.assigner_inputs = check_assigner(
            self.assigner, self.assigner_offers, "FCOSHead", POINT_KINDS, num_levels=self.prior_generator.num_levels
        )
        self.sampler = dense_sampler(train_cfg.get("sampler"), "FCOSHead")
        self.pos_weight = train_cfg.get("pos_weight", -1)
        self.box_scale = train_cfg.get("box_scale", 8)
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
        self.conv_centerness = nn.Conv2d(features, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale(1.0) for _ in strides)

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Logits (N, C, H_l, W_l), distances (N, 4, H_l, W_l) in pixels and centerness logits (N, 1, H_l, W_l)."""
        cls_feats, reg_feats = [], []
        for level in x:
            cls_feat = reg_feat = level
            for cls_conv, reg_conv in zip(self.cls_convs, self.reg_convs, strict=True):
                cls_feat, reg_feat = cls_conv(cls_feat), reg_conv(reg_feat)
            cls_feats.append(cls_feat)
            reg_feats.append(reg_feat)
        of_cls, of_reg = [self.conv_cls], [self.conv_reg]
        (of_reg if self.centerness_on_reg else of_cls).append(self.conv_centerness)
        by_cls, by_reg = convolve_together(of_cls, cls_feats), convolve_together(of_reg, reg_feats)
        bbox_preds = []
        for outs, scale, stride in zip(by_reg, self.scales, self.prior_generator.strides, strict=True):
            raw = scale(outs[0]).float()
            bbox_preds.append(raw.clamp(min=0) * stride[0] if self.norm_on_bbox else exp_size(raw))
        with_centerness = by_reg if self.centerness_on_reg else by_cls
        return [outs[0] for outs in by_cls], bbox_preds, [outs[1] for outs in with_centerness]

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_cls``, ``loss_bbox``, ``loss_centerness`` of the levels ``x`` (N, in_channels, H_l, W_l)."""
        cls_scores, bbox_preds, centernesses = self(x)
        device = cls_scores[0].device
        levels = self.prior_generator.grid_priors(featmap_sizes(cls_scores), device=device, with_stride=True)
        points = torch.cat(levels)  # (A, 4)
        logits = flatten_levels(cls_scores, self.num_classes)  # (N, A, C)
        distances = flatten_levels(bbox_preds, 4)  # (N, A, 4)
        inputs = assigner_inputs(
            self.assigner,
            self.assigner_inputs,
            levels,
            lambda: self.bbox_coder.decode(points[:, :2].expand(*distances.shape[:2], 2), distances),
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
            pos_weight=self.pos_weight,
        )
        return fcos_losses(
            logits,
            distances,
            flatten_levels(centernesses, 1).squeeze(-1),
            points,
            targets,
            self.loss_cls,
            self.loss_bbox,
            self.loss_centerness,
            self.norm_on_bbox,
        )

    def predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample], rescale: bool = False
    ) -> list[InstanceData]:
        """Detections of each image: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), best first.

        Args:
            x: Levels (N, in_channels, H_l, W_l).
            batch_data_samples: With image facts ``img_shape`` and, where resized, ``scale_factor``.
            rescale: Return boxes in the frame of the original image.
        """
        cls_scores, bbox_preds, centernesses = self(x)
        metas = [sample.metainfo for sample in batch_data_samples]
        shapes = [tuple(meta["img_shape"][:2]) for meta in metas]
        candidates = select_candidates(
            [flatten_level(level, self.num_classes) for level in cls_scores],
            [flatten_level(level, 4) for level in bbox_preds],
            self.prior_generator.grid_priors(featmap_sizes(cls_scores), device=cls_scores[0].device),
            lambda points, distances: self.bbox_coder.decode(points, distances, max_shape=shapes),
            self.test_cfg,
            [flatten_level(level, 1).squeeze(-1) for level in centernesses],
            logits=True,
        )
        return detections(candidates, metas, self.test_cfg, rescale)


def _default_init() -> dict[str, Any]:
    return {
        "type": "Normal",
        "layer": "Conv2d",
        "std": 0.01,
        "override": {"type": "Normal", "name": "conv_cls", "std": 0.01, "bias_prob": 0.01},
    }
