"""Points of a mask, PointRend, Kirillov et al., https://arxiv.org/abs/1912.08193."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.models.roi_heads.mask_heads.mask_loss import mean_over_processes
from detkit.models.roi_heads.mask_heads.mask_prediction import of_own_class
from detkit.models.roi_heads.mask_heads.mask_targets import Masks
from detkit.models.roi_heads.mask_heads.mask_windows import mask_windows
from detkit.models.roi_heads.sampling import PositiveRoIs
from detkit.ops.point_sample import point_sample
from detkit.registry import MODELS

__all__ = ["MaskPointHead", "most_uncertain", "point_targets", "points_in_image", "uncertain_points"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class MaskPointHead(BaseModule):
    """The same small network at every point, on its fine features and its coarse mask (section 3.3).

    Args:
        num_classes: Classes of objects.
        num_fcs: Layers before the last.
        in_channels: Of the fine features.
        fc_channels: Of the layers.
        class_agnostic: One mask for all classes.
        coarse_pred_each_layer: Give the coarse mask to every layer, not the first alone.
        conv_cfg: Registered convolution; None is ``Conv1d``.
        norm_cfg: Registered norm after each layer.
        act_cfg: Registered activation; None is ``ReLU``.
        loss_point: Registered loss; None is ``CrossEntropyLoss`` with ``use_mask``.
        init_cfg: Initialisation; None is a normal distribution of the last layer.
    """

    def __init__(
        self,
        num_classes: int,
        num_fcs: int = 3,
        in_channels: int = 256,
        fc_channels: int = 256,
        class_agnostic: bool = False,
        coarse_pred_each_layer: bool = True,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = None,
        loss_point: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg or {"type": "Normal", "std": 0.001, "override": {"name": "fc_logits"}})
        self.num_classes = num_classes
        self.class_agnostic = class_agnostic
        self.coarse_pred_each_layer = coarse_pred_each_layer
        self.loss_point = MODELS.build(loss_point or {"type": "CrossEntropyLoss", "use_mask": True})
        further = fc_channels + (num_classes if coarse_pred_each_layer else 0)
        widths = [in_channels + num_classes] + [further] * num_fcs
        self.fcs = nn.ModuleList(
            ConvModule(
                width,
                fc_channels,
                1,
                conv_cfg=conv_cfg or {"type": "Conv1d"},
                norm_cfg=norm_cfg,
                act_cfg=act_cfg or {"type": "ReLU"},
            )
            for width in widths[:-1]
        )
        self.fc_logits = nn.Conv1d(widths[-1], 1 if class_agnostic else num_classes, 1)

    def forward(self, fine_grained_feats: Tensor, coarse_feats: Tensor) -> Tensor:
        """Logits (K, num_classes or 1, P) of features (K, in_channels, P) and coarse logits (K, num_classes, P)."""
        x = torch.cat([fine_grained_feats, coarse_feats], dim=1)
        for fc in self.fcs:
            x = fc(x)
            if self.coarse_pred_each_layer:
                x = torch.cat([x, coarse_feats.to(x.dtype)], dim=1)
        return self.fc_logits(x)

    def loss_and_target(
        self, point_pred: Tensor, rel_roi_points: Tensor, positives: PositiveRoIs, batch_masks: Masks
    ) -> dict[str, Tensor]:
        """``loss_point`` and ``point_target`` (K, P), in [0, 1].

        Args:
            point_pred: Logits (K, num_classes or 1, P).
            rel_roi_points: (K, P, 2) in [0, 1] of the RoIs.
            positives: K RoIs.
            batch_masks: Masks of the objects of each image.
        """
        targets = point_targets(positives, batch_masks, points_in_image(positives.rois, rel_roi_points))
        labels = torch.zeros_like(positives.labels) if self.class_agnostic else positives.labels
        loss = self.loss_point(point_pred.unsqueeze(2), targets.unsqueeze(1), labels)
        return {"loss_point": mean_over_processes(loss, len(labels)), "point_target": targets}


def points_in_image(rois: Tensor, points: Tensor) -> Tensor:
    """Pixels (K, P, 2) of points (K, P, 2) in [0, 1] of RoIs (K, 5)."""
    corner, opposite = rois[:, None, 1:3], rois[:, None, 3:5]
    return points * (opposite - corner) + corner


@torch.no_grad()
def uncertain_points(mask_preds: Tensor, labels: Tensor, num_points: int, oversample: float, share: float) -> Tensor:
    """Points (K, P, 2) in [0, 1]: most where the masks are least sure, the others anywhere (section 3.1).

    Args:
        mask_preds: Logits (K, C, h, w), C is 1 where all classes share a mask.
        labels: (K,).
        num_points: P.
        oversample: So many times more points are drawn to choose from.
        share: How many of the points are chosen, in [0, 1].
    """
    count, device = len(mask_preds), mask_preds.device
    drawn = torch.rand(count, int(num_points * oversample), 2, device=device)
    logits = point_sample(of_own_class(mask_preds, labels).unsqueeze(1).float(), drawn).squeeze(1)
    num_chosen = int(share * num_points)
    best = logits.abs().topk(num_chosen, dim=1, largest=False).indices
    chosen = drawn.gather(1, best.unsqueeze(2).expand(-1, -1, 2))
    if num_chosen == num_points:
        return chosen
    return torch.cat([chosen, torch.rand(count, num_points - num_chosen, 2, device=device)], dim=1)


def most_uncertain(logits: Tensor, num_points: int) -> tuple[Tensor, Tensor]:
    """The least sure cells of masks (K, h, w): which of the h * w (K, P), and where in [0, 1] (K, P, 2)."""
    _, height, width = logits.shape
    best = logits.flatten(1).abs().topk(min(num_points, height * width), dim=1, largest=False).indices
    x, y = (best % width + 0.5) / width, (best // width + 0.5) / height
    return best, torch.stack([x, y], dim=2)


@torch.no_grad()
def point_targets(positives: PositiveRoIs, batch_masks: Masks, points: Tensor) -> Tensor:
    """How much of its object, in [0, 1], each point (K, P, 2) in pixels sees; bilinear, zeros beyond the image."""
    targets = points.new_zeros(points.shape[:2])
    for windows in mask_windows(positives, [masks.to_bitmap() for masks in batch_masks], replicate=False):
        # A pixel's value stands at its centre.
        at = points[windows.rows] - windows.corner.unsqueeze(1) - 0.5
        low = at.floor()
        part = at - low
        column, row = low.long().unbind(dim=2)
        values = torch.zeros_like(part[..., 0])
        for down in (0, 1):
            for across in (0, 1):
                weight = (part if across else 1 - part)[..., 0] * (part if down else 1 - part)[..., 1]
                values += weight * _pixels(windows.masks, windows.which, row + down, column + across)
        targets[windows.rows] = values
    return targets


def _pixels(masks: Tensor, which: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Values (k, P) of masks (M, h, w) at pixels (k, P) of mask ``which`` (k,); 0 beyond them."""
    _, height, width = masks.shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    row, column = row.clamp(0, height - 1), column.clamp(0, width - 1)
    return masks[which.unsqueeze(1), row, column] * inside.float()
