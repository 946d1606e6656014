"""Neck of CenterNet on a ResNet, Zhou et al., https://arxiv.org/abs/1904.07850; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

import detkit.ops.deform_conv  # noqa: F401  registers DCNv2
from detkit.registry import MODELS

__all__ = ["CTResNetNeck"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class CTResNetNeck(BaseModule):
    """The last input, made finer in steps of a convolution and a transposed one.

    Args:
        in_channels: Channels of the last input.
        num_deconv_filters: Channels of each step.
        num_deconv_kernels: Side of each transposed convolution's kernel, even; 4 doubles the resolution.
        use_dcn: Whether the convolutions are deformable (DCNv2).
        init_cfg: Initialisation; None is bilinear interpolation for transposed convolutions, torch's for others.
    """

    def __init__(
        self,
        in_channels: int,
        num_deconv_filters: Sequence[int],
        num_deconv_kernels: Sequence[int],
        use_dcn: bool = True,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        if len(num_deconv_filters) != len(num_deconv_kernels):
            raise ValueError(
                f"CTResNetNeck: num_deconv_filters {num_deconv_filters!r} need as many num_deconv_kernels, got "
                f"{num_deconv_kernels!r}"
            )
        super().__init__(init_cfg)
        conv_cfg = {"type": "DCNv2"} if use_dcn else None
        layers: list[nn.Module] = []
        for channels, kernel in zip(num_deconv_filters, num_deconv_kernels, strict=True):
            conv = ConvModule(in_channels, channels, 3, padding=1, conv_cfg=conv_cfg, norm_cfg={"type": "BN"})
            deconv = {"type": "deconv"}
            upsample = ConvModule(
                channels, channels, kernel, stride=2, padding=1, conv_cfg=deconv, norm_cfg={"type": "BN"}
            )
            layers += [conv, upsample]
            in_channels = channels
        self.deconv_layers = nn.Sequential(*layers)

    def init_weights(self) -> None:
        """Transposed convolutions start as bilinear interpolation to their first output channel."""
        if self.init_cfg:
            super().init_weights()
            return
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d):
                module.reset_parameters()
                with torch.no_grad():
                    # As published: of each input channel the weights of the first output channel; the others'
                    # stay random.
                    module.weight[:, 0] = _bilinear(module.kernel_size[0], module.kernel_size[1]).to(module.weight)
            elif type(module) is nn.Conv2d:
                module.reset_parameters()

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One output (N, num_deconv_filters[-1], H', W') of the last of ``inputs``, (N, in_channels, H, W)."""
        return (self.deconv_layers(inputs[-1]),)


def _bilinear(height: int, width: int) -> Tensor:
    """Weights (height, width) of a pixel for those around it."""
    half = (height + 1) // 2
    center = (2 * half - 1 - half % 2) / (2 * half)
    rows = 1 - (torch.arange(height) / half - center).abs()
    columns = 1 - (torch.arange(width) / half - center).abs()
    return rows[:, None] * columns
