"""Head of generalized focal loss, Li et al., https://arxiv.org/abs/2006.04388."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import Scale
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.layers.atss_layers import one_anchor_generator
from detkit.models.dense_heads.layers.towers import conv_tower
from detkit.models.dense_heads.losses.box_quality import box_centers, iou_quality, quality_box_loss
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_level, flatten_levels
from detkit.models.dense_heads.prediction.postprocess import TEST_CFG_KEYS, DenseTestCfg, detections, select_candidates
from detkit.models.dense_heads.targets.anchor_train_cfg import ANCHOR_TRAIN_CFG_KEYS, AnchorTrainCfg
from detkit.models.dense_heads.targets.part_checks import check_box_loss, check_coder, check_loss
from detkit.registry import MODELS, TASK_UTILS
from detkit.structures import DetDataSample

__all__ = ["GFLHead", "Integral"]

Cfg = Mapping[str, Any]


class Integral(nn.Module):
    """Expected distance of a distribution over 0 ... ``reg_max`` (eq. 4)."""

    project: Tensor

    def __init__(self, reg_max: int = 16) -> None:
        super().__init__()
        self.reg_max = reg_max
        self.register_buffer("project", torch.linspace(0, reg_max, reg_max + 1))

    def forward(self, x: Tensor) -> Tensor:
        """Distances (..., 4) of logits (..., 4 * (reg_max + 1))."""
        shares = x.unflatten(-1, (4, self.reg_max + 1)).softmax(dim=-1)
        return shares @ self.project.to(shares.dtype)


@MODELS.register_module()
class GFLHead(BaseModule):
    """Each cell scores its classes by the quality of its box, and predicts the box's sides as distributions.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        stacked_convs: Convolutions of each tower.
        conv_cfg: Convolution layers of the towers.
        norm_cfg: Norm layers of the towers; None is GN with 32 groups.
        loss_dfl: Loss of the distributions.
        bbox_coder: Registered coder of distances from points.
        reg_max: Greatest distance of a side, in strides.
        init_cfg: Initialisation.
        feat_channels: Channels of the towers.
        anchor_generator: Registered prior generator, one anchor of each cell.
        loss_cls: Classification loss, over labels and qualities.
        loss_bbox: Box loss, on boxes in strides.
        train_cfg: ``assigner``, ``sampler``, ``allowed_border``, ``pos_weight``; None at test time.
        test_cfg: See :class:`DenseTestCfg`.

    Raises:
        ValueError: ``num_classes`` or ``reg_max`` below 1, several anchors of a cell, or an assigner that this head
            cannot serve.
    """

    train_cfg_keys = ANCHOR_TRAIN_CFG_KEYS
    test_cfg_keys = TEST_CFG_KEYS

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        stacked_convs: int = 4,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        loss_dfl: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        reg_max: int = 16,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        feat_channels: int = 256,
        anchor_generator: Cfg | None = None,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
    ) -> None:
        super().__init__(init_cfg or _default_init())
        for name, number in (("num_classes", num_classes), ("reg_max", reg_max)):
            if number < 1:
                raise ValueError(f"GFLHead: {name} must be at least 1, got {number}")
        self.num_classes = num_classes
        self.prior_generator = one_anchor_generator(anchor_generator, "GFLHead")
        self.bbox_coder = TASK_UTILS.build(bbox_coder or {"type": "DistancePointBBoxCoder"})
        self.loss_cls = MODELS.build(loss_cls or {"type": "QualityFocalLoss"})
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "GIoULoss", "loss_weight": 2.0})
        self.loss_dfl = MODELS.build(loss_dfl or {"type": "DistributionFocalLoss", "loss_weight": 0.25})
        check_coder(self.bbox_coder, "points", "GFLHead")
        check_loss(self.loss_cls, ["labels with qualities"], "GFLHead", "loss_cls")
        check_loss(self.loss_dfl, ["distributions of distances"], "GFLHead", "loss_dfl")
        check_box_loss(self.loss_bbox, True, "GFLHead")
        self.train_cfg = AnchorTrainCfg.of(train_cfg, "GFLHead")
        self.test_cfg = DenseTestCfg.of(test_cfg)

        self.cls_convs, self.reg_convs = (
            conv_tower(
                in_channels,
                feat_channels,
                stacked_convs,
                conv_cfg=conv_cfg,
                norm_cfg=norm_cfg or {"type": "GN", "num_groups": 32, "requires_grad": True},
            )
            for _ in ("cls", "reg")
        )
        features = feat_channels if stacked_convs > 0 else in_channels
        self.encode_size = 4 * (reg_max + 1)
        self.gfl_cls = nn.Conv2d(features, num_classes, 3, padding=1)
        self.gfl_reg = nn.Conv2d(features, self.encode_size, 3, padding=1)
        self.scales = nn.ModuleList(Scale(1.0) for _ in self.prior_generator.strides)
        self.integral = Integral(reg_max)

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, C, H_l, W_l) and those of the distributions (N, 4 * (reg_max + 1), H_l, W_l)."""
        cls_scores, bbox_preds = [], []
        for level, scale in zip(x, self.scales, strict=True):
            cls_feat = reg_feat = level
            for cls_conv, reg_conv in zip(self.cls_convs, self.reg_convs, strict=True):
                cls_feat, reg_feat = cls_conv(cls_feat), reg_conv(reg_feat)
            cls_scores.append(self.gfl_cls(cls_feat))
            bbox_preds.append(scale(self.gfl_reg(reg_feat)).float())
        return cls_scores, bbox_preds

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_cls``, ``loss_bbox`` and ``loss_dfl`` of the levels ``x`` (N, in_channels, H_l, W_l)."""
        return self.losses(*self.flat(x), batch_data_samples)[0]

    def flat(self, x: Sequence[Tensor]) -> tuple[list[tuple[int, int]], Tensor, Tensor]:
        """Sizes of the levels, logits (N, A, C) and those of the distributions (N, A, 4 * (reg_max + 1))."""
        cls_scores, bbox_preds = self(x)
        logits = flatten_levels(cls_scores, self.num_classes)
        return featmap_sizes(cls_scores), logits, flatten_levels(bbox_preds, self.encode_size)

    def losses(
        self,
        sizes: list[tuple[int, int]],
        logits: Tensor,
        sides: Tensor,
        batch_data_samples: Sequence[DetDataSample],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of what :meth:`flat` gives, and how sure of its class each anchor with an object is (N, A), else 0."""
        levels = self.prior_generator.grid_priors(sizes, device=logits.device)
        points = torch.cat(self._points(levels)).expand(len(sides), -1, -1)  # (N, A, 3)
        inputs = self.train_cfg.inputs(levels, lambda: self._decode(points, sides), logits)
        targets = self.train_cfg.targets(
            levels, self.prior_generator, sizes, batch_data_samples, self.num_classes, inputs
        )
        # Boxes in strides; priors without object want their own.
        centers, strides = points[..., :2] / points[..., 2:], points[..., 2:]
        positive = targets.bbox_weights
        anchors = torch.cat(levels).expand(len(sides), -1, -1)
        wanted = torch.where(positive.unsqueeze(-1) > 0, targets.bbox_targets, anchors) / strides
        predicted = self.bbox_coder.decode(centers, self.integral(sides))
        iou = iou_quality(predicted, wanted) * positive
        certainty = logits.detach().sigmoid().amax(dim=2) * positive
        distances = self.bbox_coder.encode(centers, wanted, self.integral.reg_max)
        losses = {
            "loss_cls": self.loss_cls(
                logits.flatten(0, 1),
                (targets.labels.flatten(), iou.flatten()),
                weight=targets.label_weights.flatten(),
                avg_factor=reduce_mean(targets.avg_factor),
            ),
            "loss_bbox": quality_box_loss(self.loss_bbox, predicted, wanted, certainty),
            "loss_dfl": self.loss_dfl(
                sides.reshape(-1, self.integral.reg_max + 1),
                distances.flatten(),
                weight=certainty.unsqueeze(-1).expand_as(distances).flatten(),
                avg_factor=4 * reduce_mean(certainty.sum(), least=1),
            ),
        }
        return losses, certainty

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
        levels = self.prior_generator.grid_priors(featmap_sizes(cls_scores), device=cls_scores[0].device)
        candidates = select_candidates(
            [flatten_level(level, self.num_classes).sigmoid() for level in cls_scores],
            [flatten_level(level, self.encode_size) for level in bbox_preds],
            self._points(levels),
            lambda points, sides: self._decode(points, sides, shapes),
            self.test_cfg,
        )
        return detections(candidates, metas, self.test_cfg, rescale)

    def _points(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Centres and stride (A_l, 3) of the anchors (A_l, 4) of each level."""
        pairs = zip(levels, self.prior_generator.strides, strict=True)
        return [torch.cat([box_centers(level), level.new_full((len(level), 1), s[0])], dim=1) for level, s in pairs]

    def _decode(self, points: Tensor, sides: Tensor, shapes: Sequence[tuple[int, ...]] | None = None) -> Tensor:
        """Boxes (N, K, 4) of distributions ``sides`` (N, K, 4 * (reg_max + 1)) around ``points`` (N, K, 3)."""
        return self.bbox_coder.decode(points[..., :2], self.integral(sides) * points[..., 2:], max_shape=shapes)


def _default_init() -> dict[str, Any]:
    return {
        "type": "Normal",
        "layer": "Conv2d",
        "std": 0.01,
        "override": {"type": "Normal", "name": "gfl_cls", "std": 0.01, "bias_prob": 0.01},
    }
