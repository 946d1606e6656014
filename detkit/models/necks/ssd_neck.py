"""Extra levels of SSD, Liu et al., https://arxiv.org/abs/1512.02325, and, with separable convolutions, of SSDLite,
https://arxiv.org/abs/1801.04381; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.models.layers.conv_style import RELU, ConvStyle
from detkit.models.layers.l2_norm import L2Norm
from detkit.registry import MODELS

__all__ = ["SSDNeck"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class SSDNeck(BaseModule):
    """The inputs, the first with pixels of one length, and further, coarser levels.

    Args:
        in_channels: Channels of each input.
        out_channels: Channels of each output; the first are ``in_channels``.
        level_strides: Stride of each further level's second convolution.
        level_paddings: Its padding.
        l2_norm_scale: Length of the first input's pixels at the start; None leaves them as they are.
        last_kernel_size: Side of the last level's second kernel; the others' is 3.
        use_depthwise: Split the second convolutions into one of each channel and one of each pixel.
        conv_cfg: Convolution layers; None is a plain convolution.
        norm_cfg: Norm layers; None has none.
        act_cfg: Activations; None has none.
        init_cfg: Initialisation; None is Xavier for convolutions and one for norms.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        level_strides: Sequence[int],
        level_paddings: Sequence[int],
        l2_norm_scale: float | None = 20.0,
        last_kernel_size: int = 3,
        use_depthwise: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = RELU,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        given, extra = out_channels[: len(in_channels)], out_channels[len(in_channels) :]
        if list(given) != list(in_channels) or not extra:
            raise ValueError(
                f"SSDNeck: out_channels must begin with in_channels {list(in_channels)} and go on, got {out_channels!r}"
            )
        if not len(extra) == len(level_strides) == len(level_paddings):
            raise ValueError(
                f"SSDNeck: {len(extra)} further levels need as many level_strides and level_paddings, got "
                f"{level_strides!r} and {level_paddings!r}"
            )
        default_init = [
            {"type": "Xavier", "layer": "Conv2d", "distribution": "uniform"},
            {"type": "Constant", "val": 1, "layer": "BatchNorm2d"},
        ]
        super().__init__(init_cfg or default_init)
        self.in_channels = list(in_channels)
        self.l2_norm = L2Norm(in_channels[0], l2_norm_scale) if l2_norm_scale else None
        style = ConvStyle(conv_cfg, norm_cfg, act_cfg)
        second = style.separable_conv if use_depthwise else style.conv
        kernels = [3] * (len(extra) - 1) + [last_kernel_size]
        before = in_channels[-1]
        self.extra_layers = nn.ModuleList()
        for channels, stride, padding, kernel in zip(extra, level_strides, level_paddings, kernels, strict=True):
            first = style.conv(before, channels // 2, 1)
            self.extra_layers.append(
                nn.Sequential(first, second(channels // 2, channels, kernel, stride=stride, padding=padding))
            )
            before = channels

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs (N, out_channels[i], H_i, W_i), fine to coarse, of inputs (N, in_channels[i], H_i, W_i)."""
        if len(inputs) != len(self.in_channels):
            raise ValueError(f"SSDNeck: {len(inputs)} feature maps for {len(self.in_channels)} in_channels")
        outs = list(inputs)
        if self.l2_norm is not None:
            outs[0] = self.l2_norm(outs[0])
        coarsest = outs[-1]
        for layer in self.extra_layers:
            coarsest = layer(coarsest)
            outs.append(coarsest)
        return tuple(outs)
