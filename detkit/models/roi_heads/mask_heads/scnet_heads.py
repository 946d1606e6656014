"""Heads of SCNet, Vu et al., https://arxiv.org/abs/2012.10150: masks and semantics through residual blocks, the classes
of the whole image, and what the box branch tells the mask branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_conv_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.models.roi_heads.mask_heads.fcn_mask_head import FCNMaskHead
from detkit.models.roi_heads.mask_heads.fused_semantic_head import FusedSemanticHead
from detkit.registry import MODELS
from detkit.structures.ground_truth import GroundTruth

__all__ = ["FeatureRelayHead", "GlobalContextHead", "SCNetMaskHead", "SCNetSemanticHead"]

Cfg = Mapping[str, Any]


class ResidualConvs(nn.Module):
    """Two 3x3 convolutions beside a shortcut, without a rectifier at the end.

    Args:
        channels: Of the input and all convolutions.
        conv_cfg: Registered convolution.
        norm_cfg: Registered norm after each; None has none.
    """

    def __init__(self, channels: int, conv_cfg: Cfg | None, norm_cfg: Cfg | None) -> None:
        super().__init__()
        self.norm_names = []
        self.conv1: Any = build_conv_layer(conv_cfg, channels, channels, 3, padding=1, bias=norm_cfg is None)
        self.conv2: Any = build_conv_layer(conv_cfg, channels, channels, 3, padding=1, bias=norm_cfg is None)
        for number in (1, 2):
            if norm_cfg is not None:
                name, norm = build_norm_layer(norm_cfg, channels, postfix=number)
                self.add_module(name, norm)
                self.norm_names.append(name)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) of the same."""
        norms: list[Any] = [getattr(self, name) for name in self.norm_names] or [nn.Identity()] * 2
        out = norms[0](self.conv1(x)).relu()
        return norms[1](self.conv2(out)) + x


def residual_convs(
    num_convs: int, in_channels: int, out_channels: int, conv_cfg: Cfg | None, norm_cfg: Cfg | None, name: str
) -> nn.ModuleList:
    """Half as many blocks of two convolutions each.

    Raises:
        ValueError: The channels differ; ``name`` is whose they are.
    """
    if in_channels != out_channels:
        raise ValueError(
            f"{name}: conv_to_res needs in_channels={in_channels} and conv_out_channels={out_channels} to be equal"
        )
    return nn.ModuleList(ResidualConvs(out_channels, conv_cfg, norm_cfg) for _ in range(num_convs // 2))


@MODELS.register_module()
class SCNetMaskHead(FCNMaskHead):
    """A mask head whose convolutions are residual; further arguments as those of ``FCNMaskHead``.

    Args:
        conv_to_res: Put each two convolutions beside a shortcut.

    Raises:
        ValueError: Then channels change, or ``conv_kernel_size`` is not 3.
    """

    def __init__(
        self,
        conv_to_res: bool = True,
        num_convs: int = 4,
        roi_feat_size: int | tuple[int, int] = 14,
        in_channels: int = 256,
        conv_kernel_size: int = 3,
        conv_out_channels: int = 256,
        num_classes: int = 80,
        class_agnostic: bool = False,
        upsample_cfg: Cfg | None = None,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        predictor_cfg: Cfg | None = None,
        loss_mask: Cfg | None = None,
        init_cfg: None = None,
    ) -> None:
        super().__init__(
            num_convs=num_convs,
            roi_feat_size=roi_feat_size,
            in_channels=in_channels,
            conv_kernel_size=conv_kernel_size,
            conv_out_channels=conv_out_channels,
            num_classes=num_classes,
            class_agnostic=class_agnostic,
            upsample_cfg=upsample_cfg,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            predictor_cfg=predictor_cfg,
            loss_mask=loss_mask,
            init_cfg=init_cfg,
        )
        if conv_to_res:
            name = type(self).__name__
            if conv_kernel_size != 3:
                raise ValueError(f"{name}: conv_to_res needs conv_kernel_size=3, got {conv_kernel_size}")
            self.convs = residual_convs(num_convs, in_channels, conv_out_channels, conv_cfg, norm_cfg, name)


@MODELS.register_module()
class SCNetSemanticHead(FusedSemanticHead):
    """A semantic head whose convolutions are residual; further arguments as those of ``FusedSemanticHead``.

    Args:
        conv_to_res: Put each two convolutions beside a shortcut.

    Raises:
        ValueError: Then channels change.
    """

    def __init__(
        self,
        conv_to_res: bool = True,
        *,
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
        super().__init__(
            num_ins,
            fusion_level,
            seg_scale_factor=seg_scale_factor,
            num_convs=num_convs,
            in_channels=in_channels,
            conv_out_channels=conv_out_channels,
            num_classes=num_classes,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            loss_seg=loss_seg,
            init_cfg=init_cfg,
        )
        if conv_to_res:
            name = type(self).__name__
            self.convs = residual_convs(num_convs, in_channels, conv_out_channels, conv_cfg, norm_cfg, name)


@MODELS.register_module()
class GlobalContextHead(BaseModule):
    """Which classes are anywhere in the image (section 3.4), from the coarsest level.

    Args:
        num_convs: 3x3 convolutions before the average over the image.
        in_channels: Channels of the level.
        conv_out_channels: Channels of the convolutions, and of the features that regions get.
        num_classes: Classes of objects.
        loss_weight: Factor on the loss.
        conv_cfg: Registered convolution.
        norm_cfg: Registered norm after each convolution.
        conv_to_res: Put each two convolutions beside a shortcut.
        init_cfg: Initialisation; None is a normal one of the last layer.

    Raises:
        ValueError: ``conv_to_res``, and channels change.
    """

    def __init__(
        self,
        num_convs: int = 4,
        in_channels: int = 256,
        conv_out_channels: int = 256,
        num_classes: int = 80,
        loss_weight: float = 1.0,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        conv_to_res: bool = False,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg or {"type": "Normal", "std": 0.01, "override": {"name": "fc"}})
        self.loss_weight = loss_weight
        if conv_to_res:
            name = type(self).__name__
            self.convs = residual_convs(num_convs, in_channels, conv_out_channels, conv_cfg, norm_cfg, name)
        else:
            widths = [in_channels] + [conv_out_channels] * num_convs
            self.convs = nn.ModuleList(
                ConvModule(width, conv_out_channels, 3, padding=1, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
                for width in widths[:-1]
            )
        self.fc = nn.Linear(conv_out_channels, num_classes)

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (N, num_classes) and features (N, conv_out_channels, 1, 1) of levels, of which the last is used."""
        x = feats[-1]
        for conv in self.convs:
            x = conv(x)
        x = x.mean(dim=(2, 3), keepdim=True)
        return self.fc(x.flatten(1)), x

    def loss(self, pred: Tensor, truth: GroundTruth) -> Tensor:
        """Cross entropy () of logits (N, num_classes) and which classes the images' objects have."""
        num_classes = pred.shape[1]
        labels = torch.where(truth.valid, truth.labels, num_classes)
        targets = pred.new_zeros(len(pred), num_classes + 1, dtype=torch.float32).scatter(1, labels, 1.0)
        return self.loss_weight * F.binary_cross_entropy_with_logits(pred.float(), targets[:, :num_classes])


@MODELS.register_module()
class FeatureRelayHead(BaseModule):
    """What the box branch knows of a region, as a map for its mask branch (section 3.3).

    Args:
        in_channels: Features that the box branch has of a region.
        out_conv_channels: Channels of the map.
        roi_feat_size: Height and width of the map before it is enlarged.
        scale_factor: How much it is enlarged.
        init_cfg: Initialisation; None is Kaiming's.
    """

    def __init__(
        self,
        in_channels: int = 1024,
        out_conv_channels: int = 256,
        roi_feat_size: int = 7,
        scale_factor: int = 2,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg or {"type": "Kaiming", "layer": "Linear"})
        self.shape = (out_conv_channels, roi_feat_size, roi_feat_size)
        self.scale_factor = scale_factor
        self.fc = nn.Linear(in_channels, out_conv_channels * roi_feat_size**2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (K, out_conv_channels, H, W), H = W = roi_feat_size * scale_factor, of features (K, in_channels)."""
        maps = self.fc(x).unflatten(1, self.shape)
        return F.interpolate(maps, scale_factor=self.scale_factor, mode="bilinear", align_corners=True)
