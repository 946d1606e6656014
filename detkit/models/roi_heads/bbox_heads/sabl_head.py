"""Side-aware boundary localisation of a region, Wang et al., https://arxiv.org/abs/1912.04260.

Shape letters: R regions, C channels, S buckets of a side, B buckets along the region (2 S or 2 S - 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.targets.part_checks import check_coder, check_loss, check_score_loss
from detkit.models.roi_heads.bbox_heads.box_targets import encoded_objects, label_targets
from detkit.models.roi_heads.bbox_heads.class_losses import class_channels, class_losses, class_scores
from detkit.models.roi_heads.bbox_heads.conv_fc import fc_branch
from detkit.models.roi_heads.prediction import RoITestCfg, roi_detections
from detkit.models.roi_heads.sampling import SampledRoIs
from detkit.registry import MODELS, TASK_UTILS
from detkit.structures.proposals import Proposals

__all__ = ["BucketRoITargets", "SABLHead"]

Cfg = Mapping[str, Any]
# Logits of the buckets and offsets from them, each (R, 4 * S): left, right, top and bottom side, outermost first.
Buckets = tuple[Tensor, Tensor]


class BucketRoITargets(NamedTuple):
    """Targets of all R sampled regions of all N images.

    Attributes:
        labels: (N * R,) int64, the number of classes for background and padding.
        label_weights: (N * R,), 0 in padding.
        bbox_targets: Which buckets, and offsets, each (N * R, 4 * S).
        bbox_weights: Of both, 0 where there is no object.
    """

    labels: Tensor
    label_weights: Tensor
    bbox_targets: Buckets
    bbox_weights: Buckets


@MODELS.register_module()
class SABLHead(BaseModule):
    """Finds each side of a box among buckets, then moves it; classes are found by linear layers.

    The features of a region are summed up along each axis, where an attention says, to features of its columns (for
    the left and the right side) and rows (for top and bottom), a number for each bucket.

    Args:
        num_classes: Classes of objects; background is one more.
        cls_in_channels: Channels of a region's features.
        reg_in_channels: The same number.
        roi_feat_size: Height and width of a region's features.
        reg_feat_up_ratio: Buckets for each column and row, at least 2.
        reg_pre_kernel: Kernel of the convolutions before the attention.
        reg_post_kernel: Kernel of those after it, along the axis.
        reg_pre_num: Convolutions before.
        reg_post_num: Convolutions after.
        cls_out_channels: Features of the linear layers of classes.
        reg_offset_out_channels: Features of the linear layers of offsets.
        reg_cls_out_channels: Features of the linear layers of buckets.
        num_cls_fcs: Linear layers of classes.
        num_reg_fcs: Linear layers of buckets, and of offsets.
        reg_class_agnostic: Must be True: one box for all classes.
        norm_cfg: Registered norm after each convolution.
        bbox_coder: Registered coder of buckets and offsets.
        loss_cls: Registered loss of labels in [0, C], C is background.
        loss_bbox_cls: Registered loss over buckets.
        loss_bbox_reg: Registered loss over offsets.
        init_cfg: Initialisation.

    Raises:
        ValueError: Sizes that do not fit the coder's buckets, or parts that do not fit.
    """

    def __init__(
        self,
        num_classes: int,
        cls_in_channels: int = 256,
        reg_in_channels: int = 256,
        roi_feat_size: int = 7,
        reg_feat_up_ratio: int = 2,
        reg_pre_kernel: int = 3,
        reg_post_kernel: int = 3,
        reg_pre_num: int = 2,
        reg_post_num: int = 1,
        cls_out_channels: int = 1024,
        reg_offset_out_channels: int = 256,
        reg_cls_out_channels: int = 256,
        num_cls_fcs: int = 1,
        num_reg_fcs: int = 0,
        reg_class_agnostic: bool = True,
        norm_cfg: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        loss_cls: Cfg | None = None,
        loss_bbox_cls: Cfg | None = None,
        loss_bbox_reg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg or _default_init())
        self.num_classes = num_classes
        self.bbox_coder = TASK_UTILS.build(
            bbox_coder or {"type": "BucketingBBoxCoder", "num_buckets": 14, "scale_factor": 1.7}
        )
        self.loss_cls = MODELS.build(loss_cls or {"type": "CrossEntropyLoss"})
        self.loss_bbox_cls = MODELS.build(loss_bbox_cls or {"type": "CrossEntropyLoss", "use_sigmoid": True})
        self.loss_bbox_reg = MODELS.build(loss_bbox_reg or {"type": "SmoothL1Loss", "beta": 0.1})
        check_coder(self.bbox_coder, "boxes, as buckets and offsets", "SABLHead")
        check_loss(self.loss_cls, ["labels", "labels with channels of its own"], "SABLHead", "loss_cls")
        check_score_loss(self.loss_bbox_cls, "SABLHead", "loss_bbox_cls")
        check_loss(self.loss_bbox_reg, ["coordinates"], "SABLHead", "loss_bbox_reg")
        self.num_buckets = self.bbox_coder.num_buckets
        if reg_feat_up_ratio < 2 or roi_feat_size * reg_feat_up_ratio != self.num_buckets:
            raise ValueError(
                f"SABLHead: roi_feat_size {roi_feat_size} times reg_feat_up_ratio {reg_feat_up_ratio} (at least 2) "
                f"must be num_buckets {self.num_buckets} of the coder"
            )
        if not reg_class_agnostic:
            raise ValueError(
                "SABLHead: reg_class_agnostic=False has no definition; it predicts one box for all classes"
            )

        self.cls_fcs, width = fc_branch(num_cls_fcs, cls_in_channels * roi_feat_size**2, cls_out_channels)
        self.fc_cls = nn.Linear(width, class_channels(self.loss_cls, num_classes))

        channels = reg_in_channels
        self.upsample_x, self.upsample_y = (
            nn.ConvTranspose1d(channels, channels, reg_feat_up_ratio, stride=reg_feat_up_ratio) for _ in "xy"
        )
        square, (along_x, along_y) = (reg_pre_kernel,) * 2, ((1, reg_post_kernel), (reg_post_kernel, 1))
        self.reg_pre_convs = _convs(reg_pre_num, channels, square, norm_cfg)
        self.reg_post_conv_xs = _convs(reg_post_num, channels, along_x, norm_cfg)
        self.reg_post_conv_ys = _convs(reg_post_num, channels, along_y, norm_cfg)
        self.reg_conv_att_x = nn.Conv2d(channels, 1, 1)
        self.reg_conv_att_y = nn.Conv2d(channels, 1, 1)
        self.reg_cls_fcs, width = fc_branch(num_reg_fcs, channels, reg_cls_out_channels)
        self.fc_reg_cls = nn.Linear(width, 1)
        self.reg_offset_fcs, width = fc_branch(num_reg_fcs, channels, reg_offset_out_channels)
        self.fc_reg_offset = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Buckets]:
        """Logits of classes (R, C + 1), and of buckets with offsets, of features (R, channels, rows, columns)."""
        return self.cls_forward(x), self.reg_forward(x)

    def cls_forward(self, x: Tensor) -> Tensor:
        """Logits of classes (R, C + 1) of features (R, channels, rows, columns)."""
        x = x.flatten(1)
        for fc in self.cls_fcs:
            x = fc(x).relu()
        return self.fc_cls(x)

    def reg_forward(self, x: Tensor) -> Buckets:
        """Logits of buckets and offsets, each (R, 4 * S), of features (R, channels, rows, columns)."""
        for conv in self.reg_pre_convs:
            x = conv(x)
        of_axes = []
        # Columns, which the rows are summed up to, hold left and right; rows hold top and bottom.
        for dim, attention, convs, upsample in (
            (2, self.reg_conv_att_x, self.reg_post_conv_xs, self.upsample_x),
            (3, self.reg_conv_att_y, self.reg_post_conv_ys, self.upsample_y),
        ):
            share = attention(x).float().sigmoid()
            line = (x * (share / share.sum(dim=dim, keepdim=True))).sum(dim=dim, keepdim=True).to(x.dtype)
            for conv in convs:
                line = conv(line)
            of_axes.append(upsample(line.squeeze(dim)).relu().transpose(1, 2))  # (R, B, channels)
        lines = torch.cat(of_axes, dim=1)
        buckets = offsets = lines
        for fc in self.reg_cls_fcs:
            buckets = fc(buckets).relu()
        for fc in self.reg_offset_fcs:
            offsets = fc(offsets).relu()
        return self._of_sides(self.fc_reg_cls(buckets)), self._of_sides(self.fc_reg_offset(offsets))

    def _of_sides(self, lines: Tensor) -> Tensor:
        """Numbers (R, 2 B, 1) along both axes as those of each side (R, 4 * S), from outside to the middle."""
        axes = lines.unflatten(1, (2, self.num_buckets)).squeeze(-1)  # (R, 2, B)
        per_side = (self.num_buckets + 1) // 2
        return torch.cat([axes[..., :per_side], axes.flip(-1)[..., :per_side]], dim=-1).flatten(1)

    def get_targets(self, sampled: SampledRoIs, rcnn_train_cfg: Any) -> BucketRoITargets:
        """Targets of sampled regions."""
        labels, label_weights, positive = label_targets(sampled, rcnn_train_cfg.pos_weight)
        found = encoded_objects(sampled, self.bbox_coder)
        learnt = positive.unsqueeze(1)
        weights = (found.label_weights * learnt, found.offset_weights * learnt)
        return BucketRoITargets(labels, label_weights, (found.labels, found.offsets), weights)

    def loss_and_target(
        self, cls_score: Tensor, bbox_pred: Buckets, sampled: SampledRoIs, rcnn_train_cfg: Any
    ) -> dict[str, Any]:
        """Losses of sampled regions, ``loss_bbox``, and what they were to learn, ``bbox_targets``.

        Args:
            cls_score: Logits (N * R, C + 1).
            bbox_pred: Logits of buckets and offsets, each (N * R, 4 * S).
            sampled: R regions of each of N images.
            rcnn_train_cfg: With ``pos_weight``.
        """
        targets = self.get_targets(sampled, rcnn_train_cfg)
        num_rois = reduce_mean(sampled.valid.sum().float(), least=1)
        losses = self.loss(cls_score, bbox_pred, sampled.rois, *targets, num_rois=num_rois)
        return {"loss_bbox": losses, "bbox_targets": targets}

    def loss(
        self,
        cls_score: Tensor | None,
        bbox_pred: Buckets | None,
        rois: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        bbox_targets: Buckets | None,
        bbox_weights: Buckets | None,
        reduction_override: str | None = None,
        num_rois: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``loss_cls``, ``loss_bbox_cls`` and ``loss_bbox_reg``, and the accuracy ``acc`` in percent (1,).

        Args:
            cls_score: Logits (R, C + 1).
            bbox_pred: Logits of buckets and offsets, each (R, 4 * S).
            rois: (R, 5).
            labels: (R,) int64 in [0, C], C is background.
            label_weights: (R,), 0 where a region is not to be learnt.
            bbox_targets: See :class:`BucketRoITargets`.
            bbox_weights: Likewise.
            reduction_override: Used instead of the losses' own.
            num_rois: What the box losses are divided by, once for each side's buckets; None is R.
        """
        losses: dict[str, Tensor] = {}
        if cls_score is not None:
            losses |= class_losses(self.loss_cls, cls_score, labels, label_weights, reduction_override)
        if bbox_pred is not None and bbox_targets is not None and bbox_weights is not None:
            count = len(labels) if num_rois is None else num_rois
            losses["loss_bbox_cls"] = self.loss_bbox_cls(
                bbox_pred[0],
                bbox_targets[0].long(),
                bbox_weights[0],
                avg_factor=count * 4,
                reduction_override=reduction_override,
            )
            losses["loss_bbox_reg"] = self.loss_bbox_reg(
                bbox_pred[1],
                bbox_targets[1],
                bbox_weights[1],
                avg_factor=count,
                reduction_override=reduction_override,
            )
        return losses

    def scores(self, cls_score: Tensor) -> Tensor:
        """Scores (..., C) of logits (..., C + 1); the background has none."""
        return class_scores(self.loss_cls, cls_score, self.num_classes)

    def predict(
        self,
        proposals: Proposals,
        scores: Tensor,
        bbox_pred: Buckets,
        metas: Sequence[Mapping[str, Any]],
        cfg: RoITestCfg,
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Detections of each image: ``bboxes`` (D, 4), ``scores`` (D,) and ``labels`` (D,), best first.

        How sure the buckets are multiplies the score.

        Args:
            proposals: P of each of N images.
            scores: (N * P, C), see :meth:`scores`.
            bbox_pred: Logits of buckets and offsets, each (N * P, 4 * S).
            metas: Image facts.
            cfg: Thresholds.
            rescale: Return boxes in the frame of the original image.
        """
        boxes, confidence = (part.flatten(0, 1) for part in self._decode(proposals.boxes, bbox_pred, metas))

        def of_rows(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
            return boxes[rows], confidence[rows]

        per_image = scores.unflatten(0, proposals.valid.shape)
        return roi_detections(per_image, proposals.valid, of_rows, metas, cfg, rescale)

    def _decode(self, boxes: Tensor, bbox_pred: Buckets, metas: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
        """Boxes (N, P, 4), clipped to the images, and how sure their buckets are (N, P), of regions (N, P, 4)."""
        shapes = [tuple(meta["img_shape"][:2]) for meta in metas]
        predicted = tuple(part.unflatten(0, boxes.shape[:2]) for part in bbox_pred)
        return self.bbox_coder.decode(boxes, predicted, max_shape=shapes)

    @torch.no_grad()
    def refine(
        self, sampled: SampledRoIs, cls_score: Tensor, bbox_pred: Buckets, metas: Sequence[Mapping[str, Any]]
    ) -> Proposals:
        """The sampled regions as proposals for a next stage, moved to their predicted boxes.

        Objects that were added as proposals are left out.

        Args:
            sampled: R regions of each of N images.
            cls_score: Unused: there is one box for all classes.
            bbox_pred: Logits of buckets and offsets, each (N * R, 4 * S).
            metas: Image facts.
        """
        boxes, _ = self._decode(sampled.boxes, bbox_pred, metas)
        valid = sampled.valid & ~sampled.is_gt
        return Proposals(torch.where(valid.unsqueeze(-1), boxes, 0.0), torch.zeros_like(boxes[..., 0]), valid)


def _convs(count: int, channels: int, kernel: tuple[int, int], norm_cfg: Cfg | None) -> nn.ModuleList:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.ModuleList(
        ConvModule(channels, channels, kernel, padding=padding, norm_cfg=norm_cfg) for _ in range(count)
    )


def _default_init() -> list[dict[str, Any]]:
    small = {"fc_reg_offset": 0.001}
    names = ("reg_conv_att_x", "reg_conv_att_y", "fc_reg_cls", "fc_cls", "fc_reg_offset")
    normal = [{"type": "Normal", "name": name, "std": small.get(name, 0.01)} for name in names]
    return [
        {"type": "Xavier", "layer": "Linear", "distribution": "uniform", "override": normal},
        {"type": "Kaiming", "distribution": "normal", "override": [{"name": "upsample_x"}, {"name": "upsample_y"}]},
    ]
