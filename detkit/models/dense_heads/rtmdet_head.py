"""Heads of RTMDet, Lyu et al., https://arxiv.org/abs/2212.07784."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import Scale
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.anchor_targets import valid_anchors
from detkit.models.dense_heads.flatten import featmap_sizes, flatten_level, flatten_levels
from detkit.models.dense_heads.objectness import geometric_mean_logit
from detkit.models.dense_heads.part_checks import check_assigner, dense_sampler
from detkit.models.dense_heads.point_targets import (
    POINT_KINDS,
    PointTargets,
    point_targets,
    wants_logits,
)
from detkit.models.dense_heads.postprocess import TEST_CFG_KEYS, DenseTestCfg, detections, select_candidates
from detkit.models.dense_heads.towers import conv_tower
from detkit.registry import MODELS, TASK_UTILS, check_keys
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth

__all__ = ["QualityPointHead", "RTMDetHead", "RTMDetSepBNHead"]

Cfg = Mapping[str, Any]
# Greatest logarithm of a distance in strides.
GREATEST_LOG = 80.0


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
        ValueError: ``num_classes`` below 1, or an assigner that this head cannot serve.
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

        check_keys(train_cfg, self.train_cfg_keys, "train_cfg")
        train_cfg = train_cfg or {}
        self.assigner = TASK_UTILS.build(train_cfg.get("assigner") or {"type": "DynamicSoftLabelAssigner"})
        self.assigner_inputs = check_assigner(self.assigner, self.assigner_offers, name, POINT_KINDS)
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
        held = logits.detach()
        offered: dict[str, Callable[[], Any]] = {
            "num_level_priors": lambda: [len(level) for level in levels],
            "bboxes": lambda: self._boxes(points, distances.detach()),
            "scores": lambda: held if wants_logits(self.assigner) else held.sigmoid(),
        }
        targets = point_targets(
            points,
            GroundTruth.from_samples(batch_data_samples),
            self.assigner,
            self.sampler,
            self.num_classes,
            self.box_scale,
            {name: offered[name]() for name in self.assigner_inputs},
            valid_anchors(points, self.prior_generator, sizes, [sample.metainfo for sample in batch_data_samples], -1),
            self.pos_weight,
        )
        return self._losses(logits, distances, points, targets)

    def _losses(self, logits: Tensor, distances: Tensor, points: Tensor, targets: PointTargets) -> dict[str, Tensor]:
        """Both losses of logits (N, A, C) and distances (N, A, 4) at points (A, 4), over the summed qualities."""
        positive, quality = targets.positive.unsqueeze(-1), targets.overlaps.flatten()
        avg_factor = reduce_mean(quality.sum(), least=1)
        # Elsewhere the prediction is anything, infinite too, and infinity times no weight would not be 0.
        learnt = torch.where(positive, self._boxes(points, torch.where(positive, distances, 0.0)), targets.bboxes)
        labels, label_weights = targets.labels.flatten(), targets.label_weights.flatten()
        return {
            "loss_cls": self.loss_cls(logits.flatten(0, 1), (labels, quality), label_weights, avg_factor=avg_factor),
            "loss_bbox": self.loss_bbox(
                learnt.flatten(0, 1),
                targets.bboxes.flatten(0, 1),
                weight=quality.unsqueeze(-1).expand(-1, 4),
                avg_factor=avg_factor,
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


@MODELS.register_module()
class RTMDetHead(QualityPointHead):
    """The levels share towers and predictions; each scales its distances.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        with_objectness: Predict an objectness too; a score is the geometric mean of both.
        act_cfg: Activations of the towers.
        pred_kernel_size: Kernel of the predicting convolutions.
        stacked_convs: Convolutions of each tower.
        conv_cfg: Their convolution layers.
        norm_cfg: Their norm layers.
        feat_channels: Their channels.
        anchor_generator: See :class:`QualityPointHead`, as are the following.
        bbox_coder: As above.
        loss_cls: As above.
        loss_bbox: As above.
        train_cfg: As above.
        test_cfg: As above.
        init_cfg: As above.

    Raises:
        ValueError: See :class:`QualityPointHead`.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        with_objectness: bool = True,
        act_cfg: Cfg | None = None,
        pred_kernel_size: int = 3,
        stacked_convs: int = 4,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        feat_channels: int = 256,
        anchor_generator: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        init_cfg = init_cfg or _default_init(with_objectness)
        super().__init__(num_classes, anchor_generator, bbox_coder, loss_cls, loss_bbox, train_cfg, test_cfg, init_cfg)
        self.cls_convs, self.reg_convs = (
            conv_tower(
                in_channels,
                feat_channels,
                stacked_convs,
                conv_cfg=conv_cfg,
                norm_cfg=norm_cfg or {"type": "GN", "num_groups": 32, "requires_grad": True},
                act_cfg=act_cfg or {"type": "ReLU"},
            )
            for _ in ("cls", "reg")
        )
        self.rtm_cls, self.rtm_reg, rtm_obj = (
            nn.Conv2d(feat_channels, channels, pred_kernel_size, padding=pred_kernel_size // 2)
            for channels in (num_classes, 4, 1)
        )
        self.rtm_obj = rtm_obj if with_objectness else None
        self.scales = nn.ModuleList(Scale(1.0) for _ in self.prior_generator.strides)

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, C, H_l, W_l) and distances (N, 4, H_l, W_l) in pixels."""
        cls_scores, bbox_preds = [], []
        for level, scale, stride in zip(x, self.scales, self.prior_generator.strides, strict=True):
            cls_feat = reg_feat = level
            for cls_conv, reg_conv in zip(self.cls_convs, self.reg_convs, strict=True):
                cls_feat, reg_feat = cls_conv(cls_feat), reg_conv(reg_feat)
            cls_scores.append(_score(self.rtm_cls(cls_feat), self.rtm_obj, reg_feat))
            bbox_preds.append(scale(_exp(self.rtm_reg(reg_feat))) * stride[0])
        return cls_scores, bbox_preds


@MODELS.register_module()
class RTMDetSepBNHead(QualityPointHead):
    """Each level has its own norm layers and predictions; the convolutions of the towers may be one and the same.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        share_conv: Let the towers of all levels share their convolutions.
        use_depthwise: Split the towers' convolutions into one of each channel and one of each pixel; not shared.
        norm_cfg: Norm layers of the towers.
        act_cfg: Activations of the towers.
        pred_kernel_size: Kernel of the predicting convolutions.
        exp_on_reg: Predict logarithms of distances in strides, else the distances themselves.
        with_objectness: Predict an objectness too; a score is the geometric mean of both.
        stacked_convs: Convolutions of each tower.
        conv_cfg: Their convolution layers.
        feat_channels: Their channels.
        anchor_generator: See :class:`QualityPointHead`, as are the following.
        bbox_coder: As above.
        loss_cls: As above.
        loss_bbox: As above.
        train_cfg: As above.
        test_cfg: As above.
        init_cfg: As above.

    Raises:
        ValueError: See :class:`QualityPointHead`; or depthwise convolutions are to be shared.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        share_conv: bool = True,
        use_depthwise: bool = False,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = None,
        pred_kernel_size: int = 1,
        exp_on_reg: bool = False,
        with_objectness: bool = True,
        stacked_convs: int = 4,
        conv_cfg: Cfg | None = None,
        feat_channels: int = 256,
        anchor_generator: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        init_cfg = init_cfg or _default_init(with_objectness)
        super().__init__(num_classes, anchor_generator, bbox_coder, loss_cls, loss_bbox, train_cfg, test_cfg, init_cfg)
        if share_conv and use_depthwise:
            raise ValueError("RTMDetSepBNHead: use_depthwise needs share_conv=False")
        self.exp_on_reg = exp_on_reg
        levels = range(self.prior_generator.num_levels)
        self.cls_convs, self.reg_convs = (
            nn.ModuleList(
                conv_tower(
                    in_channels,
                    feat_channels,
                    stacked_convs,
                    conv_cfg=conv_cfg,
                    norm_cfg=norm_cfg or {"type": "BN", "momentum": 0.03, "eps": 0.001},
                    act_cfg=act_cfg or {"type": "SiLU"},
                    depthwise=use_depthwise,
                )
                for _ in levels
            )
            for _ in ("cls", "reg")
        )
        self.rtm_cls, self.rtm_reg, rtm_obj = (
            nn.ModuleList(
                nn.Conv2d(feat_channels, channels, pred_kernel_size, padding=pred_kernel_size // 2) for _ in levels
            )
            for channels in (num_classes, 4, 1)
        )
        self.rtm_obj = rtm_obj if with_objectness else None
        if share_conv:
            for towers in (self.cls_convs, self.reg_convs):
                for tower in towers[1:]:
                    for own, shared in zip(tower.children(), towers[0].children(), strict=True):
                        own.conv = shared.conv

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, C, H_l, W_l) and distances (N, 4, H_l, W_l) in pixels."""
        cls_scores, bbox_preds = [], []
        for index, (level, stride) in enumerate(zip(x, self.prior_generator.strides, strict=True)):
            cls_feat = reg_feat = level
            for cls_conv, reg_conv in zip(
                self.cls_convs[index].children(), self.reg_convs[index].children(), strict=True
            ):
                cls_feat, reg_feat = cls_conv(cls_feat), reg_conv(reg_feat)
            rtm_obj = None if self.rtm_obj is None else self.rtm_obj[index]
            cls_scores.append(_score(self.rtm_cls[index](cls_feat), rtm_obj, reg_feat))
            raw = self.rtm_reg[index](reg_feat)
            bbox_preds.append((_exp(raw) if self.exp_on_reg else raw.float()) * stride[0])
        return cls_scores, bbox_preds


def _score(logits: Tensor, rtm_obj: nn.Module | None, reg_feat: Tensor) -> Tensor:
    """Logits (N, C, H, W), with the objectness that ``rtm_obj`` predicts if there is one."""
    return logits if rtm_obj is None else geometric_mean_logit(logits, rtm_obj(reg_feat))


def _exp(raw: Tensor) -> Tensor:
    """Exponential (...) in float32 that does not overflow: a gradient of 0 times infinity would be none."""
    return raw.float().clamp(max=GREATEST_LOG).exp()


def _default_init(with_objectness: bool) -> dict[str, Any]:
    names = ("rtm_cls", "rtm_obj") if with_objectness else ("rtm_cls",)
    rare = [{"type": "Normal", "name": name, "std": 0.01, "bias_prob": 0.01} for name in names]
    return {"type": "Normal", "layer": "Conv2d", "std": 0.01, "override": rare}
