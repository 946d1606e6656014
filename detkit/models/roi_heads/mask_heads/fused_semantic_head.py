"""Semantic segmentation from all levels at once, Hybrid Task Cascade, Chen et al., https://arxiv.org/abs/1901.07518,
section 3.2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.registry import MODELS

__all__ = ["FusedSemanticHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class FusedSemanticHead(BaseModule):
    """Levels, each through a 1x1 convolution, added up at the size of one::

        level 0 -> 1x1 \\
        level 1 -> 1x1 -> + -> 3x3 convs -> 1x1 -> logits
        level 2 -> 1x1 /                 -> 1x1 -> features

    Args:
        num_ins: Number of levels.
        fusion_level: Which of them has the size that the others are brought to, in [0, num_ins).
        seg_scale_factor: Size of that level, of the images'.
        num_convs: 3x3 convolutions after the sum.
        in_channels: Channels of the levels.
        conv_out_channels: Channels of the convolutions and the features.
        num_classes: Classes of pixels.
        conv_cfg: Registered convolution.
        norm_cfg: Registered norm after each convolution.
        loss_seg: Registered loss of pixels; None is ``CrossEntropyLoss`` with ``ignore_index=255`` and
            ``loss_weight=0.2``.
        init_cfg: Initialisation; None is Kaiming's of the logits.

    Raises:
        ValueError: There is no such ``fusion_level``.
    """

    def __init__(
        self,
        num_ins: int,
        fusion_level: int,
        seg_scale_factor: float = 1 / 8,
        num_convs: int = 4,
        in_channels: int = 256,
        conv_out_channels: int = 256,
        num_classes: int = 183,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        loss_seg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg or {"type": "Kaiming", "override": {"name": "conv_logits"}})
        if not 0 <= fusion_level < num_ins:
            raise ValueError(
                f"{type(self).__name__}: fusion_level must be in [0, num_ins={num_ins}), got {fusion_level}"
            )
        self.fusion_level = fusion_level
        self.seg_scale_factor = seg_scale_factor

        def conv(channels: int, kernel_size: int, out_channels: int) -> ConvModule:
            padding = kernel_size // 2
            return ConvModule(
                channels, out_channels, kernel_size, padding=padding, conv_cfg=conv_cfg, norm_cfg=norm_cfg
            )

        self.lateral_convs = nn.ModuleList(conv(in_channels, 1, in_channels) for _ in range(num_ins))
        widths = [in_channels] + [conv_out_channels] * num_convs
        self.convs = nn.ModuleList(conv(width, 3, conv_out_channels) for width in widths[:-1])
        self.conv_embedding = conv(widths[-1], 1, conv_out_channels)
        self.conv_logits = nn.Conv2d(widths[-1], num_classes, 1)
        default = {"type": "CrossEntropyLoss", "ignore_index": 255, "loss_weight": 0.2}
        self.criterion = MODELS.build(loss_seg or default)

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (N, num_classes, H, W) and features (N, conv_out_channels, H, W), both of the fusion level's size.

        Args:
            feats: Levels (N, in_channels, H_l, W_l).
        """
        size = feats[self.fusion_level].shape[2:]
        fused = None
        for number, (feat, lateral) in enumerate(zip(feats, self.lateral_convs, strict=True)):
            if number != self.fusion_level:
                feat = F.interpolate(feat, size=size, mode="bilinear", align_corners=True)
            part = lateral(feat)
            fused = part if fused is None else fused + part
        for conv in self.convs:
            fused = conv(fused)
        return self.conv_logits(fused), self.conv_embedding(fused)

    def loss(self, mask_preds: Tensor, labels: Tensor) -> Tensor:
        """Segmentation loss ().

        Args:
            mask_preds: Logits (N, num_classes, H, W).
            labels: Classes (N, 1, H / seg_scale_factor, W / seg_scale_factor).

        Raises:
            ValueError: Another size.
        """
        labels = F.interpolate(labels.float(), scale_factor=self.seg_scale_factor, mode="nearest").squeeze(1).long()
        if labels.shape[1:] != mask_preds.shape[2:]:
            raise ValueError(
                f"{type(self).__name__}: semantic maps are {tuple(labels.shape[1:])} at seg_scale_factor="
                f"{self.seg_scale_factor}, level {self.fusion_level} is {tuple(mask_preds.shape[2:])}; are the maps "
                "padded as the images are (pad_seg=True of the data preprocessor)?"
            )
        return self.criterion(mask_preds, labels)
