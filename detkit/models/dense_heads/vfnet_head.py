"""Head of VarifocalNet, Zhang et al., https://arxiv.org/abs/2008.13367."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, Scale
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.layers.atss_layers import one_anchor_generator, one_anchor_of_a_cell
from detkit.models.dense_heads.layers.star_offsets import star_offsets
from detkit.models.dense_heads.layers.towers import conv_tower
from detkit.models.dense_heads.losses.box_quality import iou_quality, quality_box_loss
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_level, flatten_levels
from detkit.models.dense_heads.prediction.log_size import GREATEST_SIZE, exp_size
from detkit.models.dense_heads.prediction.postprocess import TEST_CFG_KEYS, DenseTestCfg, detections, select_candidates
from detkit.models.dense_heads.targets.anchor_train_cfg import ANCHOR_TRAIN_CFG_KEYS, AnchorTrainCfg
from detkit.models.dense_heads.targets.part_checks import check_box_loss, check_coder, check_label_loss, check_loss
from detkit.models.dense_heads.targets.point_targets import PointTargets, point_targets
from detkit.ops import DeformConv2d
from detkit.registry import MODELS, TASK_UTILS
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth

__all__ = ["VFNetHead"]

Cfg = Mapping[str, Any]
INFINITE = 1e8
BOX_NORMS = ("reg_denom", "stride")
# IoU that a positive's box counts by at least.
LEAST_IOU = 1e-6


@MODELS.register_module()
class VFNetHead(BaseModule):
    """Each point predicts a box, looks at nine points of it to refine it, and scores its classes by the box's IoU.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        regress_ranges: Of each level, the least and greatest distance in pixels to the farthest side of its objects;
            for FCOS's rule and for ``reg_denom``.
        center_sampling: Only points near the centre of an object learn it, by FCOS's rule.
        center_sample_radius: How near, in strides.
        sync_num_pos: Average the number of positives over the processes.
        gradient_mul: Share of the gradient that boxes get from what is refined.
        bbox_norm_type: Unit of the distances: ``reg_denom``, the greatest of the level, or ``stride``.
        loss_cls_fl: Classification loss over labels, without ``use_vfl``.
        use_vfl: Learn the IoU as score, by ``loss_cls``.
        loss_cls: Classification loss over IoU.
        loss_bbox: Loss of the first boxes.
        loss_bbox_refine: Loss of the refined boxes.
        norm_cfg: Norm layers of the towers; None is GN with 32 groups.
        use_atss: Positives are those of ``train_cfg.assigner`` by anchors; else FCOS's.
        reg_decoded_bbox: Must be True: losses are on boxes.
        anchor_generator: Registered prior generator of the anchors, one of each cell.
        init_cfg: Initialisation.
        feat_channels: Channels of the towers.
        stacked_convs: Convolutions of each tower.
        strides: Pixels per cell of each level.
        dcn_on_last_conv: Make the last convolution of each tower deformable.
        conv_bias: Whether the towers' convolutions have a bias; ``auto`` where no norm follows.
        bbox_coder: Registered coder of distances from points.
        conv_cfg: Convolution layers of the towers.
        train_cfg: ``assigner``, ``sampler``, ``allowed_border``, and for ``loss_cls_fl`` ``pos_weight``; None at test
            time.
        test_cfg: See :class:`DenseTestCfg`.

    Raises:
        ValueError: ``num_classes`` below 1, an unknown ``bbox_norm_type``, levels that do not agree, or an assigner
            that this head cannot serve.
    """

    train_cfg_keys = ANCHOR_TRAIN_CFG_KEYS
    test_cfg_keys = TEST_CFG_KEYS
    taps: Tensor

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        regress_ranges: Sequence[Sequence[float]] = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, INFINITE)),
        center_sampling: bool = False,
        center_sample_radius: float = 1.5,
        sync_num_pos: bool = True,
        gradient_mul: float = 0.1,
        bbox_norm_type: str = "reg_denom",
        loss_cls_fl: Cfg | None = None,
        use_vfl: bool = True,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        loss_bbox_refine: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        use_atss: bool = True,
        reg_decoded_bbox: bool = True,
        anchor_generator: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        feat_channels: int = 256,
        stacked_convs: int = 4,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        dcn_on_last_conv: bool = False,
        conv_bias: bool | str = "auto",
        bbox_coder: Cfg | None = None,
        conv_cfg: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
    ) -> None:
        super().__init__(init_cfg or _default_init())
        if num_classes < 1:
            raise ValueError(f"VFNetHead: num_classes must be at least 1, got {num_classes}")
        if bbox_norm_type not in BOX_NORMS:
            raise ValueError(f"VFNetHead: bbox_norm_type {bbox_norm_type!r} is neither 'reg_denom' nor 'stride'")
        if not reg_decoded_bbox:
            raise ValueError("VFNetHead: reg_decoded_bbox=False has no meaning here: losses are on boxes")
        if len(regress_ranges) != len(strides):
            raise ValueError(f"VFNetHead: {len(strides)} strides, but {len(regress_ranges)} regress_ranges")
        if bbox_norm_type == "reg_denom" and len(strides) == 1:
            raise ValueError("VFNetHead: bbox_norm_type 'reg_denom' needs more than one level; set 'stride'")
        self.num_classes = num_classes
        self.use_vfl, self.use_atss = use_vfl, use_atss
        self.sync_num_pos, self.gradient_mul = sync_num_pos, gradient_mul
        self.strides = strides
        self.units: list[float] = list(strides)
        if bbox_norm_type == "reg_denom":
            # The last level has no greatest distance of its own.
            self.units = [*(high for _, high in regress_ranges[:-1]), regress_ranges[-2][1] * 2]
        self._build_collaborators(
            anchor_generator, bbox_coder, loss_cls if use_vfl else loss_cls_fl, loss_bbox, loss_bbox_refine
        )
        self.fcos_rule = TASK_UTILS.build(
            {
                "type": "FCOSAssigner",
                "regress_ranges": regress_ranges,
                "center_sample_radius": center_sample_radius if center_sampling else None,
            }
        )
        self.train_cfg = AnchorTrainCfg.of(train_cfg, "VFNetHead")
        self.test_cfg = DenseTestCfg.of(test_cfg)

        norm_cfg = norm_cfg or {"type": "GN", "num_groups": 32, "requires_grad": True}
        tower: dict[str, Any] = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg, "bias": conv_bias}
        last = {"type": "DCNv2"} if dcn_on_last_conv else None
        self.cls_convs, self.reg_convs = (
            conv_tower(in_channels, feat_channels, stacked_convs, last_conv_cfg=last, **tower) for _ in ("cls", "reg")
        )
        features = feat_channels if stacked_convs > 0 else in_channels
        self.vfnet_reg_conv = ConvModule(features, feat_channels, 3, padding=1, **tower)
        self.vfnet_reg = nn.Conv2d(feat_channels, 4, 3, padding=1)
        self.vfnet_reg_refine_dconv = DeformConv2d(features, feat_channels, 3, padding=1)
        self.vfnet_reg_refine = nn.Conv2d(feat_channels, 4, 3, padding=1)
        self.vfnet_cls_dconv = DeformConv2d(features, feat_channels, 3, padding=1)
        self.vfnet_cls = nn.Conv2d(feat_channels, num_classes, 3, padding=1)
        self.scales = nn.ModuleList(Scale(1.0) for _ in strides)
        self.scales_refine = nn.ModuleList(Scale(1.0) for _ in strides)
        # y and x of each tap of a 3x3 kernel, by row.
        taps = torch.cartesian_prod(torch.arange(-1.0, 2), torch.arange(-1.0, 2))
        self.register_buffer("taps", taps.reshape(1, -1, 1, 1), persistent=False)

    def _build_collaborators(
        self,
        anchor_generator: Cfg | None,
        bbox_coder: Cfg | None,
        loss_cls: Cfg | None,
        first: Cfg | None,
        refined: Cfg | None,
    ) -> None:
        # As in VarifocalNet's code, the anchors' centres are the corners of their cells.
        anchors = dict(anchor_generator or {**one_anchor_of_a_cell(), "strides": self.strides, "center_offset": 0.0})
        self.atss_prior_generator = one_anchor_generator(anchors, "VFNetHead")
        if [stride for stride, _ in self.atss_prior_generator.strides] != list(self.strides):
            raise ValueError(
                f"VFNetHead: anchor_generator has strides {self.atss_prior_generator.strides}, the head {self.strides}"
            )
        offset = anchors.get("center_offset", 0.0) if self.use_atss else 0.5
        points = {"type": "MlvlPointGenerator", "strides": list(self.strides), "offset": offset}
        self.prior_generator = TASK_UTILS.build(points)
        self.bbox_coder = TASK_UTILS.build(bbox_coder or {"type": "DistancePointBBoxCoder"})
        self.loss_cls = MODELS.build(loss_cls or {"type": "VarifocalLoss" if self.use_vfl else "FocalLoss"})
        self.loss_bbox = MODELS.build(first or {"type": "GIoULoss", "loss_weight": 1.5})
        self.loss_bbox_refine = MODELS.build(refined or {"type": "GIoULoss", "loss_weight": 2.0})
        check_coder(self.bbox_coder, "points", "VFNetHead")
        if self.use_vfl:
            check_loss(self.loss_cls, ["qualities of classes"], "VFNetHead", "loss_cls")
        else:
            check_label_loss(self.loss_cls, "VFNetHead", "loss_cls_fl")
        check_box_loss(self.loss_bbox, True, "VFNetHead")
        check_box_loss(self.loss_bbox_refine, True, "VFNetHead", "loss_bbox_refine")

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """Logits (N, C, H_l, W_l), in training the first distances (N, 4, H_l, W_l) in pixels, and the refined ones."""
        cls_scores, first, refined = self._predict_levels(x)
        return (cls_scores, first, refined) if self.training else (cls_scores, refined)

    def _predict_levels(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        cls_scores, first, refined = [], [], []
        per_level = zip(x, self.scales, self.scales_refine, self.strides, self.units, strict=True)
        for level, scale, scale_refine, stride, unit in per_level:
            cls_feat = reg_feat = level
            for cls_conv, reg_conv in zip(self.cls_convs, self.reg_convs, strict=True):
                cls_feat, reg_feat = cls_conv(cls_feat), reg_conv(reg_feat)
            distances = exp_size(scale(self.vfnet_reg(self.vfnet_reg_conv(reg_feat)))) * unit
            damped = self.gradient_mul * distances + (1 - self.gradient_mul) * distances.detach()
            offsets = (star_offsets(damped / stride) - self.taps).to(reg_feat.dtype)
            reg_feat = F.relu(self.vfnet_reg_refine_dconv(reg_feat, offsets))
            factor = exp_size(scale_refine(self.vfnet_reg_refine(reg_feat)))
            cls_feat = F.relu(self.vfnet_cls_dconv(cls_feat, offsets))
            cls_scores.append(self.vfnet_cls(cls_feat))
            first.append(distances)
            refined.append((factor * distances.detach()).clamp(max=GREATEST_SIZE * unit))
        return cls_scores, first, refined

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_cls``, ``loss_bbox`` and ``loss_bbox_rf`` of the levels ``x`` (N, in_channels, H_l, W_l)."""
        cls_scores, first, refined = self._predict_levels(x)
        sizes = featmap_sizes(cls_scores)
        points = torch.cat(self.prior_generator.grid_priors(sizes, device=cls_scores[0].device, with_stride=True))
        logits = flatten_levels(cls_scores, self.num_classes)  # (N, A, C)
        centers = points[:, :2].expand(len(logits), -1, 2)
        boxes, better = (self.bbox_coder.decode(centers, flatten_levels(part, 4)) for part in (first, refined))
        targets = self._targets(logits, better, points, sizes, batch_data_samples)
        iou, better_iou = (
            iou_quality(part, targets.bboxes).clamp(min=LEAST_IOU) * targets.positive for part in (boxes, better)
        )
        num_positive = targets.positive.sum()
        num_positive = reduce_mean(num_positive, least=1) if self.sync_num_pos else num_positive.clamp(min=1)
        return {
            "loss_cls": self._classification_loss(logits, targets, better_iou, num_positive),
            "loss_bbox": quality_box_loss(self.loss_bbox, boxes, targets.bboxes, iou),
            "loss_bbox_rf": quality_box_loss(self.loss_bbox_refine, better, targets.bboxes, better_iou),
        }

    def _classification_loss(self, logits: Tensor, targets: PointTargets, iou: Tensor, avg_factor: Tensor) -> Tensor:
        if not self.use_vfl:
            labels, weights = targets.labels.flatten(), targets.label_weights.flatten()
            return self.loss_cls(logits.flatten(0, 1), labels, weights, avg_factor=avg_factor)
        # As in MMDetection, whatever is not positive is learnt as background here, what is ignored too.
        own = torch.where(targets.positive, targets.labels, 0).unsqueeze(-1)
        wanted = torch.zeros_like(logits).scatter(2, own, iou.unsqueeze(-1))
        return self.loss_cls(logits.flatten(0, 1), wanted.flatten(0, 1), avg_factor=avg_factor)

    def _targets(
        self,
        logits: Tensor,
        boxes: Tensor,
        points: Tensor,
        sizes: Sequence[tuple[int, int]],
        batch_data_samples: Sequence[DetDataSample],
    ) -> PointTargets:
        """Targets by the assigner's anchors or by FCOS's points, in one form."""
        if not self.use_atss:
            truth = GroundTruth.from_samples(batch_data_samples)
            inputs = {"num_level_priors": [height * width for height, width in sizes]}
            rule, cfg = self.fcos_rule, self.train_cfg
            return point_targets(points, truth, rule, cfg.sampler, self.num_classes, 8, inputs, None, cfg.pos_weight)
        levels = self.atss_prior_generator.grid_priors(sizes, device=logits.device)
        inputs = self.train_cfg.inputs(levels, lambda: boxes, logits)
        found = self.train_cfg.targets(
            levels, self.atss_prior_generator, sizes, batch_data_samples, self.num_classes, inputs
        )
        positive = found.bbox_weights > 0
        wanted = torch.where(positive.unsqueeze(-1), found.bbox_targets, torch.cat(levels))
        return PointTargets(found.labels, found.label_weights, wanted, positive, found.bbox_weights)

    def predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample], rescale: bool = False
    ) -> list[InstanceData]:
        """Detections of each image: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), best first.

        Args:
            x: Levels (N, in_channels, H_l, W_l).
            batch_data_samples: With image facts ``img_shape`` and, where resized, ``scale_factor``.
            rescale: Return boxes in the frame of the original image.
        """
        cls_scores, _, refined = self._predict_levels(x)
        metas = [sample.metainfo for sample in batch_data_samples]
        shapes = [tuple(meta["img_shape"][:2]) for meta in metas]
        candidates = select_candidates(
            [flatten_level(level, self.num_classes).sigmoid() for level in cls_scores],
            [flatten_level(level, 4) for level in refined],
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
        "override": {"type": "Normal", "name": "vfnet_cls", "std": 0.01, "bias_prob": 0.01},
    }
