"""How the convolutions of a network are made: what its config says to all of them, and its usual values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from torch import nn

__all__ = ["BN", "FAST_BN", "KAIMING_UNIFORM", "LEAKY_RELU", "RELU", "RELU6", "SILU", "SWISH", "ConvStyle"]

Cfg = Mapping[str, Any]
BN: Cfg = MappingProxyType({"type": "BN", "requires_grad": True})
FAST_BN: Cfg = MappingProxyType({"type": "BN", "momentum": 0.03, "eps": 0.001})
LEAKY_RELU: Cfg = MappingProxyType({"type": "LeakyReLU", "negative_slope": 0.1})
RELU: Cfg = MappingProxyType({"type": "ReLU"})
RELU6: Cfg = MappingProxyType({"type": "ReLU6"})
SILU: Cfg = MappingProxyType({"type": "SiLU"})
SWISH: Cfg = MappingProxyType({"type": "Swish"})
# torch's own initialisation of convolutions.
KAIMING_UNIFORM: Cfg = MappingProxyType(
    {
        "type": "Kaiming",
        "layer": "Conv2d",
        "a": math.sqrt(5),
        "distribution": "uniform",
        "mode": "fan_in",
        "nonlinearity": "leaky_relu",
    }
)


class ConvStyle(NamedTuple):
    """Layers of one kind.

    Attributes:
        conv_cfg: Convolution layers; None is a plain convolution.
        norm_cfg: Norm layers; None has none.
        act_cfg: Activations; None has none.
    """

    conv_cfg: Cfg | None
    norm_cfg: Cfg | None
    act_cfg: Cfg | None

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        padding: int | None = None,
        groups: int = 1,
        bias: bool | str = "auto",
    ) -> nn.Module:
        """A convolution with norm and activation.

        Args:
            in_channels: Channels of the input.
            out_channels: Channels of the output.
            kernel_size: Side of the kernel.
            stride: Of the convolution.
            padding: Zeros around the input; None keeps the size but for the stride.
            groups: Of the convolution.
            bias: Whether it has a bias; ``auto`` where no norm follows.
        """
        return ConvModule(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2 if padding is None else padding,
            groups=groups,
            bias=bias,
            **self._layers(),
        )

    def separable_conv(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, *, padding: int | None = None
    ) -> nn.Module:
        """A convolution of each channel, then one of each pixel, each with norm and activation; see :meth:`conv`."""
        padding = kernel_size // 2 if padding is None else padding
        return DepthwiseSeparableConvModule(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding, **self._layers()
        )

    def _layers(self) -> dict[str, Any]:
        # mmcv takes nothing but dicts, and fills them in.
        return {name: None if cfg is None else dict(cfg) for name, cfg in self._asdict().items()}
