"""Deformable convolution on torchvision's kernel, or by sampling on a CPU; layers, names and keys as MMCV's.

Deformable ConvNets, Dai et al., https://arxiv.org/abs/1703.06211, and v2, Zhu et al.,
https://arxiv.org/abs/1811.11168. An offset has two channels (y, x) for each tap of the kernel, in pixels, for each of
``deform_groups`` groups of input channels in turn.
"""

from __future__ import annotations

import importlib.util
import math

import mmengine.registry
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from detkit.ops.sampled_conv import sampled_conv2d
from detkit.registry import MODELS

__all__ = [
    "DeformConv2d",
    "DeformConv2dPack",
    "ModulatedDeformConv2d",
    "ModulatedDeformConv2dPack",
    "deform_conv2d",
]

Size = int | tuple[int, int]


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Convolution whose taps are moved by ``offset`` and, in v2, weighed by ``mask``.

    The groups of the convolution follow from ``weight``, those of the offsets from ``offset``. Half precision is
    computed in float32: an offset is a place in the image.

    Args:
        x: (N, C, H, W).
        offset: (N, 2 * deform_groups * kh * kw, H', W'), pixels.
        weight: (C', C / groups, kh, kw).
        bias: (C',).
        stride: As of a convolution.
        padding: As of a convolution.
        dilation: As of a convolution.
        mask: (N, deform_groups * kh * kw, H', W'), in [0, 1].

    Returns:
        (N, C', H', W') in the type of ``x``.

    Raises:
        ValueError: The channels of ``offset`` or ``mask`` do not fit the kernel.
    """
    taps = weight.shape[-2] * weight.shape[-1]
    groups, rest = divmod(offset.shape[1], 2 * taps)
    if groups == 0 or rest:
        raise ValueError(
            f"deform_conv2d: a kernel of {weight.shape[-2]} x {weight.shape[-1]} needs a multiple of {2 * taps} offset "
            f"channels, got {offset.shape[1]}"
        )
    if mask is not None and mask.shape[1] != groups * taps:
        raise ValueError(f"deform_conv2d: the mask needs {groups * taps} channels, got {mask.shape[1]}")
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    # An empty result needs a kernel that knows of no places.
    by_sampling = x.device.type == "cpu" and offset.numel() > 0 and x.numel() > 0
    convolve = sampled_conv2d if by_sampling else torchvision.ops.deform_conv2d
    out = convolve(
        x.to(kind),
        offset.to(kind),
        weight.to(kind),
        None if bias is None else bias.to(kind),
        _pair(stride),
        _pair(padding),
        _pair(dilation),
        None if mask is None else mask.to(kind),
    )
    return out.to(x.dtype)


class _ZeroConv2d(nn.Conv2d):
    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class _OffsetConv2d(_ZeroConv2d):
    # Two steps from nn.Conv2d: mmengine's initialisers go by the name of a class and of its direct bases, and
    # those of 'Conv2d' would move the taps at the start.
    """Predicts offsets, all zero at the start: a plain convolution."""


class _DeformConvLayer(nn.Module):
    """Weights and shape of a deformable convolution, with the attributes of ``nn.Conv2d`` that ConvModule reads.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: As of a convolution.
        stride: As of a convolution.
        padding: As of a convolution.
        dilation: As of a convolution.
        groups: As of a convolution.
        deform_groups: Groups of input channels with offsets of their own.
        bias: Add a learnt constant; None is False in the first version, True in the second, as MMCV's.
    """

    transposed = False
    output_padding = (0,)
    modulated = False
    # A layer that predicts its own offsets has a convolution ``conv_offset`` for them.
    predicts_offsets = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        for name, channels, parts in (
            ("groups", in_channels, groups),
            ("groups", out_channels, groups),
            ("deform_groups", in_channels, deform_groups),
        ):
            if channels % parts:
                raise ValueError(f"{type(self).__name__}: {channels} channels do not divide into {name}={parts}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups
        self.deform_groups = deform_groups
        self.taps = self.kernel_size[0] * self.kernel_size[1]
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if (self.modulated if bias is None else bias) else None
        if self.modulated:
            bound = 1 / math.sqrt(in_channels * self.taps)
            nn.init.uniform_(self.weight, -bound, bound)
        else:
            nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        if self.predicts_offsets:
            channels = (3 if self.modulated else 2) * deform_groups * self.taps
            self.conv_offset = _OffsetConv2d(in_channels, channels, kernel_size, stride, padding, dilation)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"deform_groups={self.deform_groups}, bias={self.bias is not None}"
        )

    def _convolve(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        expected = 2 * self.deform_groups * self.taps
        if offset.shape[1] != expected:
            raise ValueError(f"{type(self).__name__}: {expected} offset channels were expected, got {offset.shape[1]}")
        return deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)


class DeformConv2d(_DeformConvLayer):
    """Deformable convolution with offsets from outside."""

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """(N, C', H', W') of ``x`` (N, C, H, W) and ``offset`` (N, 2 * deform_groups * taps, H', W')."""
        return self._convolve(x, offset)


class ModulatedDeformConv2d(_DeformConvLayer):
    """Deformable convolution v2 with offsets and weights of the taps from outside."""

    modulated = True

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """(N, C', H', W') of ``x``, ``offset`` and ``mask`` (N, deform_groups * taps, H', W')."""
        return self._convolve(x, offset, mask)


@MODELS.register_module("DCN")
class DeformConv2dPack(_DeformConvLayer):
    """Deformable convolution that predicts its own offsets: takes the place of a convolution."""

    predicts_offsets = True

    def forward(self, x: Tensor) -> Tensor:
        """(N, C', H', W') of ``x`` (N, C, H, W)."""
        return self._convolve(x, self.conv_offset(x))


@MODELS.register_module("DCNv2")
class ModulatedDeformConv2dPack(_DeformConvLayer):
    """Deformable convolution v2 that predicts its own offsets and weights of the taps; these start at 1/2."""

    modulated = True
    predicts_offsets = True

    def forward(self, x: Tensor) -> Tensor:
        """(N, C', H', W') of ``x`` (N, C, H, W)."""
        offset, mask = self.conv_offset(x).tensor_split((2 * self.deform_groups * self.taps,), dim=1)
        return self._convolve(x, offset, mask.sigmoid())


def _register_where_no_scope_is_set() -> None:
    """MMCV's ``build_conv_layer`` asks mmengine's own registry where no default scope is in force.

    The full mmcv registers its layers there itself, and fails where they are already.
    """
    if importlib.util.find_spec("mmcv._ext") is None:
        mmengine.registry.MODELS.register_module("DCN", module=DeformConv2dPack)
        mmengine.registry.MODELS.register_module("DCNv2", module=ModulatedDeformConv2dPack)


_register_where_no_scope_is_set()
