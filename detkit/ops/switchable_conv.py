"""Switchable atrous convolution of DetectoRS, Qiao et al., https://arxiv.org/abs/2006.02334; keys as MMCV's."""

from __future__ import annotations

import importlib.util

import mmengine.registry
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.conv_ws import ConvAWS2d
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from detkit.ops.deform_conv import deform_conv2d
from detkit.registry import MODELS

__all__ = ["SAConv2d"]

Size = int | tuple[int, int]


@MODELS.register_module("SAC")
class SAConv2d(ConvAWS2d):
    """A convolution with two dilations, one thrice the other, between which each place switches.

    The weights are standardised; those of the wider one differ by ``weight_diff``. The mean of the image is added
    before and after.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: As of a convolution.
        stride: As of a convolution.
        padding: As of a convolution.
        dilation: Of the narrower one.
        groups: As of a convolution.
        bias: Kept for MMCV's checkpoints; not used, as there.
        use_deform: Let taps move by offsets, of a 3x3 kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        use_deform: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.use_deform = use_deform
        self.switch = nn.Conv2d(in_channels, 1, 1, stride=stride)
        self.weight_diff = nn.Parameter(torch.zeros_like(self.weight))
        self.pre_context = nn.Conv2d(in_channels, in_channels, 1)
        self.post_context = nn.Conv2d(out_channels, out_channels, 1)
        added = [self.switch, self.pre_context, self.post_context]
        if use_deform:
            self.offset_s = nn.Conv2d(in_channels, 18, 3, padding=1, stride=stride)
            self.offset_l = nn.Conv2d(in_channels, 18, 3, padding=1, stride=stride)
            added += [self.offset_s, self.offset_l]
        # A convolution of the narrower kind at the start.
        for layer in added:
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, 1.0 if layer is self.switch else 0.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C', H', W') of ``x`` (N, C, H, W), whose sides are longer than 2."""
        x = x + self.pre_context(F.adaptive_avg_pool2d(x, 1))
        around = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
        switch = self.switch(around)
        weight = self._get_weight(self.weight)
        narrow = self._convolve(x, weight, self.offset_s(around) if self.use_deform else None, 1)
        weight = weight + self.weight_diff
        wide = self._convolve(x, weight, self.offset_l(around) if self.use_deform else None, 3)
        out = switch * narrow + (1 - switch) * wide
        return out + self.post_context(F.adaptive_avg_pool2d(out, 1))

    def _convolve(self, x: Tensor, weight: Tensor, offset: Tensor | None, factor: int) -> Tensor:
        padding, dilation = (tuple(factor * size for size in _pair(pair)) for pair in (self.padding, self.dilation))
        if offset is None:
            return F.conv2d(x, weight, None, self.stride, padding, dilation, self.groups)
        return deform_conv2d(x, offset, weight, None, self.stride, padding, dilation)


# MMCV's build_conv_layer asks mmengine's own registry where no default scope is in force; the full mmcv registers its
# layers there itself.
if importlib.util.find_spec("mmcv._ext") is None:
    mmengine.registry.MODELS.register_module("SAC", module=SAConv2d)
