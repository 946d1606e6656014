"""What makes two tasks of one tower and looks at both again (TOOD, https://arxiv.org/abs/2108.07755, 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import normal_init
from torch import Tensor, nn

from detkit.ops import deform_conv2d

__all__ = ["TaskDecomposition", "geometric_mean_of_sigmoids", "sample_boxes"]

Cfg = Mapping[str, Any]


class TaskDecomposition(nn.Module):
    """Weighs the layers of a tower for one task, image by image, and reduces them to one.

    Args:
        feat_channels: Channels of each layer.
        stacked_convs: Layers.
        la_down_rate: By how much the hidden layer of the weights is narrower than all layers together.
        conv_cfg: Layer of the reduction.
        norm_cfg: Norm layer behind it; None has none.
    """

    def __init__(
        self,
        feat_channels: int,
        stacked_convs: int,
        la_down_rate: int = 8,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
    ) -> None:
        super().__init__()
        self.feat_channels = feat_channels
        self.stacked_convs = stacked_convs
        in_channels = feat_channels * stacked_convs
        self.layer_attention = nn.Sequential(
            nn.Conv2d(in_channels, in_channels // la_down_rate, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels // la_down_rate, stacked_convs, 1),
            nn.Sigmoid(),
        )
        self.reduction_conv = ConvModule(
            in_channels, feat_channels, 1, conv_cfg=conv_cfg, norm_cfg=norm_cfg, bias=norm_cfg is None
        )

    def init_weights(self) -> None:
        """TOOD's own: small weights, so that all layers start with the same weight, 1/2."""
        for layer in self.layer_attention:
            if isinstance(layer, nn.Conv2d):
                normal_init(layer, std=0.001)
        normal_init(self.reduction_conv.conv, std=0.01)

    def forward(self, feat: Tensor, avg_feat: Tensor) -> Tensor:
        """Features (N, C, H, W) of all layers (N, L * C, H, W) and their means (N, L * C, 1, 1)."""
        weight = self.layer_attention(avg_feat).view(-1, 1, self.stacked_convs, 1)  # (N, 1, L, 1)
        # Weighing the kernel instead of the features spares a copy of these. As in MMDetection, a bias is not added.
        kernel = self.reduction_conv.conv.weight.view(1, self.feat_channels, self.stacked_convs, -1)
        reduced = (weight * kernel).flatten(2) @ feat.flatten(2)  # (N, C, H * W)
        reduced = reduced.unflatten(2, feat.shape[2:])
        if self.reduction_conv.with_norm:
            reduced = self.reduction_conv.norm(reduced)
        return self.reduction_conv.activate(reduced)


def geometric_mean_of_sigmoids(x: Tensor, y: Tensor) -> Tensor:
    """``sqrt(sigmoid(x) * sigmoid(y))`` of logits that broadcast, with a gradient where a sigmoid is as good as 0."""
    return (0.5 * (F.logsigmoid(x) + F.logsigmoid(y))).exp()


def sample_boxes(boxes: Tensor, offset: Tensor) -> Tensor:
    """Each side of a cell's box as a cell nearby predicts it (eq. 5); where that makes no box, the cell's own.

    Args:
        boxes: (N, 4, H, W).
        offset: (N, 8, H, W), where to look: y and x in cells for each side.
    """
    # With weights of one, a deformable convolution of one tap is bilinear interpolation.
    taken = deform_conv2d(boxes, offset.to(boxes.dtype), boxes.new_ones(4, 1, 1, 1))
    x1, y1, x2, y2 = taken.unbind(1)
    return torch.where(((x1 > x2) | (y1 > y2)).unsqueeze(1), boxes, taken)
