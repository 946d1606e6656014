"""Head of RepPoints, Yang et al., https://arxiv.org/abs/1904.11490."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.layers.towers import conv_tower
from detkit.models.dense_heads.losses.box_quality import weighted_box_loss
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_level, flatten_levels
from detkit.models.dense_heads.prediction.postprocess import TEST_CFG_KEYS, DenseTestCfg, detections, select_candidates
from detkit.models.dense_heads.prediction.representative_points import TRANSFORMS, box_of_points, grid_of_boxes
from detkit.models.dense_heads.targets.anchor_targets import valid_anchors
from detkit.models.dense_heads.targets.part_checks import check_assigner, check_box_loss, check_loss, dense_sampler
from detkit.models.dense_heads.targets.point_targets import POINT_KINDS, priors_of_kind
from detkit.models.dense_heads.targets.prior_targets import prior_targets
from detkit.ops import DeformConv2d
from detkit.registry import MODELS, TASK_UTILS, check_keys, nearest
from detkit.structures import DetDataSample
from detkit.structures.boxes.clip import stack_corners
from detkit.structures.ground_truth import GroundTruth

__all__ = ["RepPointsHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class RepPointsHead(BaseModule):
    """Each cell draws an object by a set of points, twice; features at the first set classify it and refine the set.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        point_feat_channels: Channels of the hidden layers of points and classes.
        num_points: Points of a set, the square of an odd number.
        gradient_mul: Share of the gradient of the second stage that reaches the first set.
        point_strides: Pixels per cell of each level.
        point_base_scale: Side in strides of the box that a cell begins with; losses are in this unit.
        loss_cls: Classification loss.
        loss_bbox_init: Loss on the boxes of the first sets.
        loss_bbox_refine: Loss on the boxes of the refined sets.
        use_grid_points: Predict boxes and take the points of a grid in them, instead of free points.
        center_init: Let free points begin at the cell instead of in a grid.
        transform_method: The box of a set: ``minmax``, ``partial_minmax`` or ``moment``.
        moment_mul: Share of the gradient of the scale of ``moment``.
        init_cfg: Initialisation.
        feat_channels: Channels of the towers.
        stacked_convs: Convolutions of each tower.
        conv_cfg: Convolution layers of the towers.
        norm_cfg: Norm layers of the towers; None has none.
        train_cfg: ``init`` and ``refine``, each with ``assigner``; ``refine`` with ``pos_weight``, as scores are learnt
            there; and ``sampler``. ``allowed_border`` means nothing to points. None at test time.
        test_cfg: See :class:`DenseTestCfg`.

    Raises:
        ValueError: A number of points that makes no kernel, an unknown transform, or an assigner that does not fit.
    """

    stage_cfg_keys = ("assigner", "allowed_border", "pos_weight", "debug")
    train_cfg_keys: ClassVar = {"init": stage_cfg_keys, "refine": stage_cfg_keys, "sampler": None}
    test_cfg_keys = TEST_CFG_KEYS

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        point_feat_channels: int = 256,
        num_points: int = 9,
        gradient_mul: float = 0.1,
        point_strides: Sequence[int] = (8, 16, 32, 64, 128),
        point_base_scale: float = 4,
        loss_cls: Cfg | None = None,
        loss_bbox_init: Cfg | None = None,
        loss_bbox_refine: Cfg | None = None,
        use_grid_points: bool = False,
        center_init: bool = True,
        transform_method: str = "moment",
        moment_mul: float = 0.01,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        feat_channels: int = 256,
        stacked_convs: int = 4,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
    ) -> None:
        super().__init__(init_cfg or _default_init())
        if num_classes < 1:
            raise ValueError(f"RepPointsHead: num_classes must be at least 1, got {num_classes}")
        side = math.isqrt(num_points)
        if side**2 != num_points or side % 2 == 0:
            raise ValueError(f"RepPointsHead: num_points must be the square of an odd number, got {num_points}")
        if transform_method not in TRANSFORMS:
            close = nearest(transform_method, TRANSFORMS)[0]
            raise ValueError(
                f"RepPointsHead: transform_method {transform_method!r} is unknown; did you mean {close!r}?"
            )
        self.num_classes = num_classes
        self.side = side
        self.gradient_mul = gradient_mul
        self.point_base_scale = point_base_scale
        self.use_grid_points = use_grid_points
        self.center_init = center_init
        self.transform_method = transform_method
        self.moment_mul = moment_mul
        self.moment_transfer = nn.Parameter(torch.zeros(2)) if transform_method == "moment" else None
        self.prior_generator = TASK_UTILS.build(
            {"type": "MlvlPointGenerator", "strides": list(point_strides), "offset": 0.0}
        )
        self.loss_cls = MODELS.build(loss_cls or {"type": "FocalLoss"})
        smooth = {"type": "SmoothL1Loss", "beta": 1.0 / 9.0}
        self.loss_bbox_init = MODELS.build(loss_bbox_init or {**smooth, "loss_weight": 0.5})
        self.loss_bbox_refine = MODELS.build(loss_bbox_refine or {**smooth, "loss_weight": 1.0})
        check_loss(self.loss_cls, ["labels"], "RepPointsHead", "loss_cls")
        check_box_loss(self.loss_bbox_init, True, "RepPointsHead", "loss_bbox_init")
        check_box_loss(self.loss_bbox_refine, True, "RepPointsHead", "loss_bbox_refine")
        self.use_sigmoid_cls = getattr(self.loss_cls, "use_sigmoid", False)
        # A softmax has a channel for the background, the last.
        self.cls_out_channels = num_classes if self.use_sigmoid_cls else num_classes + 1
        self._build_training(train_cfg)
        self.test_cfg = DenseTestCfg.of(test_cfg)

        # Where the taps of the kernel are, (y, x) of each: what an offset is added to.
        taps = torch.arange(-(side // 2), side // 2 + 1, dtype=torch.float32)
        grid = torch.stack(torch.meshgrid(taps, taps, indexing="ij"), dim=-1).view(1, -1, 1, 1)
        self.register_buffer("taps", grid, persistent=False)

        self.cls_convs, self.reg_convs = (
            conv_tower(in_channels, feat_channels, stacked_convs, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
            for _ in ("cls", "reg")
        )
        features = feat_channels if stacked_convs > 0 else in_channels
        out = 4 if use_grid_points else 2 * num_points
        self.reppoints_cls_conv = DeformConv2d(features, point_feat_channels, side, padding=side // 2)
        self.reppoints_cls_out = nn.Conv2d(point_feat_channels, self.cls_out_channels, 1)
        self.reppoints_pts_init_conv = nn.Conv2d(features, point_feat_channels, 3, padding=1)
        self.reppoints_pts_init_out = nn.Conv2d(point_feat_channels, out, 1)
        self.reppoints_pts_refine_conv = DeformConv2d(features, point_feat_channels, side, padding=side // 2)
        self.reppoints_pts_refine_out = nn.Conv2d(point_feat_channels, out, 1)

    def _build_training(self, train_cfg: Cfg | None) -> None:
        """The assigners of both stages, and the sampler."""
        check_keys(train_cfg, self.train_cfg_keys, "train_cfg")
        train_cfg = train_cfg or {}
        stages = [train_cfg.get(name) or {} for name in ("init", "refine")]
        for name, stage in zip(("init", "refine"), stages, strict=True):
            check_keys(stage, self.stage_cfg_keys, f"train_cfg.{name}")
        first, second = (TASK_UTILS.build(stage["assigner"]) if "assigner" in stage else None for stage in stages)
        offered = ["num_level_priors"]
        self.init_assigner, self.refine_assigner = first, second
        self.init_inputs = check_assigner(
            first, offered, "RepPointsHead", POINT_KINDS, num_levels=self.prior_generator.num_levels
        )
        self.refine_inputs = check_assigner(second, offered, "RepPointsHead")
        self.pos_weight = stages[1].get("pos_weight", -1)
        self.sampler = dense_sampler(train_cfg.get("sampler"), "RepPointsHead")

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, C, H_l, W_l) and boxes (N, 4, H_l, W_l), in strides from the corner of the cell."""
        cls_scores, _, refined = self._point_sets(x)
        boxes = [self._boxes(points.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for points in refined]
        return cls_scores, boxes

    def _point_sets(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Logits, and both sets of points (N, 2 P, H_l, W_l) as (y, x) each, in strides from the corner of the cell."""
        cls_scores, initial, refined = [], [], []
        taps = self.get_buffer("taps")
        scale = self.point_base_scale / 2
        for level in x:
            cls_feat = pts_feat = level
            for cls_conv, reg_conv in zip(self.cls_convs, self.reg_convs, strict=True):
                cls_feat, pts_feat = cls_conv(cls_feat), reg_conv(pts_feat)
            first = self.reppoints_pts_init_out(self.reppoints_pts_init_conv(pts_feat).relu()).float()
            first_box = None
            if self.use_grid_points:
                first, first_box = grid_of_boxes(first, _square(first, scale), self.side)
            elif not self.center_init:
                first = first + taps / (self.side // 2) * scale
            damped = (1 - self.gradient_mul) * first.detach() + self.gradient_mul * first
            offset = damped - taps
            cls_scores.append(self.reppoints_cls_out(self.reppoints_cls_conv(cls_feat, offset).relu()))
            second = self.reppoints_pts_refine_out(self.reppoints_pts_refine_conv(pts_feat, offset).relu()).float()
            if first_box is not None:
                second, _ = grid_of_boxes(second, first_box.detach(), self.side)
            else:
                second = second + first.detach()
            initial.append(first)
            refined.append(second)
        return cls_scores, initial, refined

    def _boxes(self, points: Tensor) -> Tensor:
        """Boxes (..., 4) of sets of points (..., 2 P) as (y, x) each."""
        transfer = None
        if self.moment_transfer is not None:
            held = self.moment_transfer.detach()
            transfer = self.moment_transfer * self.moment_mul + held * (1 - self.moment_mul)
        return box_of_points(points.unflatten(-1, (-1, 2)).flip(-1), self.transform_method, transfer)

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """``loss_cls``, ``loss_pts_init`` and ``loss_pts_refine`` of the levels ``x`` (N, in_channels, H_l, W_l)."""
        if self.init_assigner is None or self.refine_assigner is None:
            raise ValueError("RepPointsHead: training needs train_cfg with init.assigner and refine.assigner")
        cls_scores, initial, refined = self._point_sets(x)
        sizes = featmap_sizes(cls_scores)
        levels = self.prior_generator.grid_priors(sizes, device=cls_scores[0].device, with_stride=True)
        points = torch.cat(levels)  # (A, 4)
        corner, stride = points[:, :2].repeat(1, 2), points[:, 2:3]
        width = 2 * self.side**2
        first, second = (self._boxes(flatten_levels(sets, width)) * stride + corner for sets in (initial, refined))

        offered = {"num_level_priors": [len(level) for level in levels]}
        truth = GroundTruth.from_samples(batch_data_samples)
        metas = [sample.metainfo for sample in batch_data_samples]
        valid = valid_anchors(points, self.prior_generator, sizes, metas, -1)
        of_first = prior_targets(
            priors_of_kind(points, getattr(self.init_assigner, "prior_kind", "boxes"), self.point_base_scale),
            priors_of_kind(points, "boxes", self.point_base_scale),
            truth,
            valid,
            self.init_assigner,
            self.sampler,
            self.num_classes,
            inputs={name: offered[name] for name in self.init_inputs},
        )
        of_second = prior_targets(
            first.detach(),
            first.detach(),
            truth,
            valid,
            self.refine_assigner,
            self.sampler,
            self.num_classes,
            self.pos_weight,
            {name: offered[name] for name in self.refine_inputs},
        )
        avg_first, avg_second = reduce_mean(of_first.avg_factor), reduce_mean(of_second.avg_factor)
        unit = stride * self.point_base_scale
        return {
            "loss_cls": self.loss_cls(
                flatten_levels(cls_scores, self.cls_out_channels).flatten(0, 1),
                of_second.labels.flatten(),
                of_second.label_weights.flatten(),
                avg_factor=avg_second,
            ),
            "loss_pts_init": weighted_box_loss(
                self.loss_bbox_init, first / unit, of_first.bboxes / unit, of_first.positive.float(), avg_first
            ),
            "loss_pts_refine": weighted_box_loss(
                self.loss_bbox_refine, second / unit, of_second.bboxes / unit, of_second.positive.float(), avg_second
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
        cls_scores, boxes = self(x)
        metas = [sample.metainfo for sample in batch_data_samples]
        shapes = [tuple(meta["img_shape"][:2]) for meta in metas]

        def decode(points: Tensor, boxes: Tensor) -> Tensor:
            corners = boxes * points[..., 2:3] + torch.cat([points[..., :2], points[..., :2]], dim=-1)
            x1, y1, x2, y2 = corners.unbind(-1)
            return stack_corners(x1, y1, x2, y2, shapes)

        candidates = select_candidates(
            [self._activate(flatten_level(level, self.cls_out_channels)) for level in cls_scores],
            [flatten_level(level, 4) for level in boxes],
            self.prior_generator.grid_priors(featmap_sizes(cls_scores), device=cls_scores[0].device, with_stride=True),
            decode,
            self.test_cfg,
        )
        return detections(candidates, metas, self.test_cfg, rescale)

    def _activate(self, logits: Tensor) -> Tensor:
        """Scores (N, A, C) of logits, background left out."""
        return logits.sigmoid() if self.use_sigmoid_cls else logits.softmax(dim=-1)[..., :-1]


def _square(like: Tensor, half: float) -> Tensor:
    """The box (1, 4, 1, 1) that reaches ``half`` to each side."""
    least = like.new_full((1, 2, 1, 1), -half)
    return torch.cat([least, -least], dim=1)


def _default_init() -> dict[str, Any]:
    return {
        "type": "Normal",
        "layer": "Conv2d",
        "std": 0.01,
        "override": {"type": "Normal", "name": "reppoints_cls_out", "std": 0.01, "bias_prob": 0.01},
    }
