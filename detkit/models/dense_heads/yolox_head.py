"""Head of YOLOX, Ge et al., https://arxiv.org/abs/2107.08430."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule, bias_init_with_prob
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.models.dense_heads.layers.towers import conv_tower
from detkit.models.dense_heads.losses.summed_loss import build_summed_loss
from detkit.models.dense_heads.losses.yolox_loss import decode_boxes, yolox_losses
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_levels
from detkit.models.dense_heads.prediction.objectness import geometric_mean, geometric_mean_logit
from detkit.models.dense_heads.prediction.postprocess import Candidates, DenseTestCfg, detections
from detkit.models.dense_heads.targets.part_checks import (
    check_assigner,
    check_box_loss,
    check_loss,
    check_score_loss,
    dense_sampler,
)
from detkit.models.dense_heads.targets.point_targets import POINT_KINDS, point_targets
from detkit.models.dense_heads.targets.prior_targets import assigner_inputs
from detkit.registry import MODELS, TASK_UTILS, check_keys
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth

__all__ = ["YOLOXHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class YOLOXHead(BaseModule):
    """Each level has its own towers; each cell predicts classes, a box around its corner, and whether it has one.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        feat_channels: Channels of the towers.
        stacked_convs: Convolutions of each tower.
        strides: Pixels per cell of each level.
        use_depthwise: Split the towers' convolutions into one of each channel and one of each pixel.
        dcn_on_last_conv: Make the last convolution of each tower deformable.
        conv_bias: Whether the towers' convolutions have a bias; ``auto`` where no norm follows.
        conv_cfg: Convolution layers of the towers.
        norm_cfg: Norm layers of the towers.
        act_cfg: Activations of the towers.
        loss_cls: Classification loss; this and the next three must have the reduction ``sum``, as the head divides.
        loss_bbox: Box loss.
        loss_obj: Objectness loss.
        loss_l1: Loss of encoded boxes, used while the attribute ``use_l1`` is True (the last epochs, by a hook).
        train_cfg: ``assigner``, ``sampler``, and ``box_scale``, the side in strides of the box that an assigner of
            boxes sees around each point; None at test time.
        test_cfg: See :class:`DenseTestCfg`; the threshold applies to class score times objectness. ``max_per_img``
            cuts nothing off, as in MMDetection.
        init_cfg: Initialisation.

    Raises:
        ValueError: ``num_classes`` below 1, a loss that does not sum, or parts that do not fit.
    """

    train_cfg_keys = ("assigner", "sampler", "box_scale")
    test_cfg_keys = ("score_thr", "nms", "max_per_img")
    # What the head can give an assigner besides its points.
    assigner_offers = ("num_level_priors", "bboxes", "scores")

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        feat_channels: int = 256,
        stacked_convs: int = 2,
        strides: Sequence[int] = (8, 16, 32),
        use_depthwise: bool = False,
        dcn_on_last_conv: bool = False,
        conv_bias: bool | str = "auto",
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = None,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        loss_obj: Cfg | None = None,
        loss_l1: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg or _default_init())
        if num_classes < 1:
            raise ValueError(f"YOLOXHead: num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.use_l1 = False
        self.prior_generator = TASK_UTILS.build({"type": "MlvlPointGenerator", "strides": list(strides), "offset": 0})
        entropy = {"type": "CrossEntropyLoss", "use_sigmoid": True, "reduction": "sum"}
        of_boxes = {"type": "IoULoss", "mode": "square", "eps": 1e-16, "reduction": "sum", "loss_weight": 5.0}
        self.loss_cls = build_summed_loss(loss_cls or entropy, "YOLOXHead: loss_cls")
        self.loss_bbox = build_summed_loss(loss_bbox or of_boxes, "YOLOXHead: loss_bbox")
        self.loss_obj = build_summed_loss(loss_obj or entropy, "YOLOXHead: loss_obj")
        self.loss_l1 = build_summed_loss(loss_l1 or {"type": "L1Loss", "reduction": "sum"}, "YOLOXHead: loss_l1")
        check_score_loss(self.loss_cls, "YOLOXHead", "loss_cls")
        check_box_loss(self.loss_bbox, True, "YOLOXHead")
        check_score_loss(self.loss_obj, "YOLOXHead", "loss_obj")
        check_loss(self.loss_l1, ["coordinates"], "YOLOXHead", "loss_l1")

        check_keys(train_cfg, self.train_cfg_keys, "train_cfg")
        check_keys(test_cfg, self.test_cfg_keys, "test_cfg")
        train_cfg = train_cfg or {}
        self.assigner = TASK_UTILS.build(train_cfg.get("assigner") or {"type": "SimOTAAssigner"})
        self.assigner_inputs = check_assigner(
            self.assigner, self.assigner_offers, "YOLOXHead", POINT_KINDS, num_levels=self.prior_generator.num_levels
        )
        self.sampler = dense_sampler(train_cfg.get("sampler"), "YOLOXHead")
        self.box_scale = train_cfg.get("box_scale", 8)
        self.test_cfg = DenseTestCfg.of({**(test_cfg or {}), "max_per_img": -1})

        self.multi_level_cls_convs, self.multi_level_reg_convs = (
            nn.ModuleList(
                nn.Sequential(
                    *conv_tower(
                        in_channels,
                        feat_channels,
                        stacked_convs,
                        conv_cfg=conv_cfg,
                        norm_cfg=norm_cfg or {"type": "BN", "momentum": 0.03, "eps": 0.001},
                        bias=conv_bias,
                        last_conv_cfg={"type": "DCNv2"} if dcn_on_last_conv else None,
                        act_cfg=act_cfg or {"type": "Swish"},
                        depthwise=use_depthwise,
                    )
                )
                for _ in strides
            )
            for _ in ("cls", "reg")
        )
        features = feat_channels if stacked_convs > 0 else in_channels
        self.multi_level_conv_cls, self.multi_level_conv_reg, self.multi_level_conv_obj = (
            nn.ModuleList(nn.Conv2d(features, channels, 1) for _ in strides) for channels in (num_classes, 4, 1)
        )

    def init_weights(self) -> None:
        """Initialise by ``init_cfg``; each cell starts with a probability of 0.01 for each class and for an object."""
        super().init_weights()
        for conv in (*self.multi_level_conv_cls, *self.multi_level_conv_obj):
            nn.init.constant_(conv.bias, bias_init_with_prob(0.01))

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Logits (N, C, H_l, W_l), encoded boxes (N, 4, H_l, W_l) and objectness logits (N, 1, H_l, W_l)."""
        cls_feats = [convs(level) for convs, level in zip(self.multi_level_cls_convs, x, strict=True)]
        reg_feats = [convs(level) for convs, level in zip(self.multi_level_reg_convs, x, strict=True)]
        return (
            [conv(feat) for conv, feat in zip(self.multi_level_conv_cls, cls_feats, strict=True)],
            [conv(feat) for conv, feat in zip(self.multi_level_conv_reg, reg_feats, strict=True)],
            [conv(feat) for conv, feat in zip(self.multi_level_conv_obj, reg_feats, strict=True)],
        )

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_cls``, ``loss_bbox``, ``loss_obj`` of the levels ``x`` (N, in_channels, H_l, W_l).

        And ``loss_l1`` while ``use_l1`` is True.
        """
        logits, encoded, objectness, levels = self._flat_outputs(x)
        points = torch.cat(levels)  # (A, 4)
        inputs = assigner_inputs(
            self.assigner,
            self.assigner_inputs,
            levels,
            lambda: decode_boxes(points, encoded),
            lambda: geometric_mean_logit(logits, objectness.unsqueeze(-1)),
            lambda: geometric_mean(logits, objectness.unsqueeze(-1)),
        )
        targets = point_targets(
            # Boxes are relative to the cell's corner, but its centre decides whose it is.
            torch.cat([points[:, :2] + points[:, 2:] * 0.5, points[:, 2:]], dim=1),
            GroundTruth.from_samples(batch_data_samples),
            self.assigner,
            self.sampler,
            self.num_classes,
            self.box_scale,
            inputs,
        )
        loss_l1 = self.loss_l1 if self.use_l1 else None
        return yolox_losses(
            logits, encoded, objectness, points, targets, self.loss_cls, self.loss_bbox, self.loss_obj, loss_l1
        )

    def predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample], rescale: bool = False
    ) -> list[InstanceData]:
        """Detections of each image: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), best first.

        A cell has one class, its best.

        Args:
            x: Levels (N, in_channels, H_l, W_l).
            batch_data_samples: With image facts ``img_shape`` and, where resized, ``scale_factor``.
            rescale: Return boxes in the frame of the original image.
        """
        logits, encoded, objectness, levels = self._flat_outputs(x)
        # Of probabilities, as in MMDetection: where several are 1, the first class counts.
        best, labels = logits.sigmoid().max(dim=-1)  # (N, A)
        scores = best * objectness.sigmoid()
        boxes = decode_boxes(torch.cat(levels), encoded)
        candidates = Candidates(scores, labels, boxes, kept=scores >= self.test_cfg.score_thr)
        return detections(candidates, [sample.metainfo for sample in batch_data_samples], self.test_cfg, rescale)

    def _flat_outputs(self, x: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Logits (N, A, C), encoded boxes (N, A, 4), objectness logits (N, A) and the points of each level (A_l, 4)."""
        cls_scores, bbox_preds, objectnesses = self(x)
        levels = self.prior_generator.grid_priors(
            featmap_sizes(cls_scores), device=cls_scores[0].device, with_stride=True
        )
        objectness = flatten_levels(objectnesses, 1).squeeze(-1)
        return flatten_levels(cls_scores, self.num_classes), flatten_levels(bbox_preds, 4), objectness, levels


def _default_init() -> dict[str, Any]:
    return {
        "type": "Kaiming",
        "layer": "Conv2d",
        "a": math.sqrt(5),
        "distribution": "uniform",
        "mode": "fan_in",
        "nonlinearity": "leaky_relu",
    }
