"""How well a mask fits its object, Mask Scoring R-CNN, Huang et al., https://arxiv.org/abs/1903.00241."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.models.roi_heads.mask_heads.mask_targets import Masks
from detkit.models.roi_heads.mask_heads.mask_windows import images_of
from detkit.models.roi_heads.sampling import PositiveRoIs
from detkit.ops.upload import upload
from detkit.registry import MODELS
from detkit.structures.masks import BitmapMasks, PolygonMasks

__all__ = ["MaskIoUHead", "mask_iou_targets", "share_inside"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class MaskIoUHead(BaseModule):
    """The IoU of a predicted mask with its object, for each class, from the region's features and the mask (fig. 3).

    Args:
        num_convs: Convolutions, the last of stride 2.
        num_fcs: Linear layers.
        roi_feat_size: Height and width of a region's features.
        in_channels: Their channels.
        conv_out_channels: Channels of the convolutions.
        fc_out_channels: Features of the linear layers.
        num_classes: Classes of objects.
        loss_iou: Registered loss; None is ``MSELoss`` of weight 0.5.
        init_cfg: Initialisation; None is Kaiming's of the convolutions, Xavier's of the linear layers.
    """

    def __init__(
        self,
        num_convs: int = 4,
        num_fcs: int = 2,
        roi_feat_size: int | tuple[int, int] = 14,
        in_channels: int = 256,
        conv_out_channels: int = 256,
        fc_out_channels: int = 1024,
        num_classes: int = 80,
        loss_iou: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        if init_cfg is None:
            init_cfg = [
                {"type": "Kaiming", "override": {"name": "convs"}},
                {"type": "Caffe2Xavier", "override": {"name": "fcs"}},
                {"type": "Normal", "std": 0.01, "override": {"name": "fc_mask_iou"}},
            ]
        super().__init__(init_cfg)
        self.num_classes = num_classes
        self.loss_iou = MODELS.build(loss_iou or {"type": "MSELoss", "loss_weight": 0.5})
        # The mask comes as one more channel.
        widths = [in_channels + 1] + [conv_out_channels] * num_convs
        strides = [1] * (num_convs - 1) + [2]
        self.convs = nn.ModuleList(
            nn.Conv2d(width, conv_out_channels, 3, stride=stride, padding=1)
            for width, stride in zip(widths[:-1], strides, strict=True)
        )
        rows, columns = (roi_feat_size, roi_feat_size) if isinstance(roi_feat_size, int) else roi_feat_size
        features = [conv_out_channels * ((rows + 1) // 2) * ((columns + 1) // 2)] + [fc_out_channels] * num_fcs
        self.fcs = nn.ModuleList(nn.Linear(width, fc_out_channels) for width in features[:-1])
        self.fc_mask_iou = nn.Linear(features[-1], num_classes)

    def forward(self, mask_feat: Tensor, mask_preds: Tensor) -> Tensor:
        """IoU (K, num_classes) of features (K, in_channels, h, w) and mask logits (K, 2h, 2w)."""
        mask = nn.functional.max_pool2d(mask_preds.sigmoid().unsqueeze(1), 2, 2)
        x = torch.cat([mask_feat, mask.to(mask_feat.dtype)], dim=1)
        for conv in self.convs:
            x = conv(x).relu()
        x = x.flatten(1)
        for fc in self.fcs:
            x = fc(x).relu()
        return self.fc_mask_iou(x)

    def loss_and_target(
        self,
        mask_iou_pred: Tensor,
        mask_preds: Tensor,
        mask_targets: Tensor,
        positives: PositiveRoIs,
        batch_masks: Masks,
        mask_thr_binary: float,
    ) -> dict[str, Tensor]:
        """``loss_mask_iou``, the mean over all RoIs whose mask touches its object.

        Args:
            mask_iou_pred: (K,) of each RoI's class.
            mask_preds: Logits (K, H, W) of each RoI's class.
            mask_targets: (K, H, W) zeros and ones.
            positives: K RoIs.
            batch_masks: Masks of the objects of each image.
            mask_thr_binary: Logit from which a pixel is of the object.
        """
        targets = mask_iou_targets(mask_preds, mask_targets, share_inside(positives, batch_masks), mask_thr_binary)
        learns = targets > 0
        weights = learns.float()
        predicted = torch.where(learns, mask_iou_pred.float(), targets)
        count = reduce_mean(weights.sum(), least=1)
        return {"loss_mask_iou": self.loss_iou(predicted, targets, weights, avg_factor=count)}

    def predict_by_feat(self, mask_iou_preds: Sequence[Tensor], results_list: list[InstanceData]) -> list[InstanceData]:
        """The detections with ``mask_scores`` (D,), their scores times the IoU (D, num_classes) of their masks."""
        for ious, one in zip(mask_iou_preds, results_list, strict=True):
            own = ious.float().gather(1, one.labels.unsqueeze(1)).squeeze(1)
            one.mask_scores = one.scores * own.clamp(0, 1)
        return results_list


@torch.no_grad()
def mask_iou_targets(mask_preds: Tensor, mask_targets: Tensor, inside: Tensor, threshold: float) -> Tensor:
    """IoU (K,) of masks with their whole objects (section 3.2); 0 where both are empty.

    Args:
        mask_preds: Logits (K, H, W).
        mask_targets: (K, H, W) zeros and ones, the objects within the RoIs.
        inside: (K,) which share of its object each RoI holds.
        threshold: Logit from which a pixel is of the object.
    """
    predicted = (mask_preds > threshold).float()
    overlap = (predicted * mask_targets).sum(dim=(1, 2))
    whole = mask_targets.sum(dim=(1, 2)) / (inside + 1e-7)
    union = predicted.sum(dim=(1, 2)) + whole - overlap
    return torch.where(union > 0, overlap / union.clamp(min=1e-7), 0.0)


def share_inside(positives: PositiveRoIs, batch_masks: Masks) -> Tensor:
    """Which share (K,) of its object's area each RoI holds, its corners rounded down to pixels.

    It is counted on the host, where boxes and masks are.
    """
    shares = np.zeros(len(positives.host_boxes), dtype=np.float32)
    whole: dict[tuple[int, int], float] = {}
    boxes = positives.host_boxes.astype(np.int32)
    pairs = zip(images_of(positives).tolist(), positives.host_gt_index.tolist(), strict=True)
    for number, (image, index) in enumerate(pairs):
        masks = batch_masks[image]
        if (image, index) not in whole:
            whole[image, index] = _area(masks, index, np.array([0, 0, masks.width, masks.height]))
        shares[number] = _area(masks, index, boxes[number]) / (whole[image, index] + 1e-7)
    return upload(shares, positives.rois.device)


def _area(masks: BitmapMasks | PolygonMasks, index: int, box: np.ndarray) -> float:
    """Area of a mask within a box of whole pixels."""
    if isinstance(masks, PolygonMasks):
        return float(masks[index].crop(box).areas[0])
    x1, y1, x2, y2 = box.clip(0, [masks.width, masks.height] * 2)
    return float(np.count_nonzero(masks.masks[index, y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]))
