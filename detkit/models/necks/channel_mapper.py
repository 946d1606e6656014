"""Feature maps of one width, as DETR and its descendants read them; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.models.layers.conv_style import RELU, ConvStyle
from detkit.registry import MODELS

__all__ = ["ChannelMapper"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class ChannelMapper(BaseModule):
    """A convolution of each input and, from the last, strided ones for further levels.

    Args:
        in_channels: Channels of each input.
        out_channels: Channels of each output.
        kernel_size: Side of the kernels, odd; 3 for further levels.
        conv_cfg: Convolution layers; None is a plain convolution.
        norm_cfg: Norm layers; None has none.
        act_cfg: Activations; None has none.
        bias: Whether convolutions have a bias; ``auto`` where no norm follows.
        num_outs: Number of outputs; None is that of the inputs.
        init_cfg: Initialisation; None is Xavier.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        kernel_size: int = 3,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = RELU,
        bias: bool | str = "auto",
        num_outs: int | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"ChannelMapper: kernel_size must be odd, got {kernel_size}")
        num_extra = 0 if num_outs is None else num_outs - len(in_channels)
        if num_extra < 0:
            raise ValueError(f"ChannelMapper: num_outs={num_outs} is less than the {len(in_channels)} in_channels")
        super().__init__(init_cfg or {"type": "Xavier", "layer": "Conv2d", "distribution": "uniform"})
        style = ConvStyle(conv_cfg, norm_cfg, act_cfg)
        self.convs = nn.ModuleList(
            style.conv(channels, out_channels, kernel_size, bias=bias) for channels in in_channels
        )
        self.extra_convs = nn.ModuleList(
            style.conv(out_channels if index else in_channels[-1], out_channels, 3, stride=2, bias=bias)
            for index in range(num_extra)
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs (N, out_channels, H_i, W_i), fine to coarse, of inputs (N, in_channels[i], H_i, W_i)."""
        if len(inputs) != len(self.convs):
            raise ValueError(f"ChannelMapper: {len(inputs)} feature maps for {len(self.convs)} in_channels")
        outs = [conv(x) for conv, x in zip(self.convs, inputs, strict=True)]
        source = inputs[-1]
        for conv in self.extra_convs:
            source = conv(source)
            outs.append(source)
        return tuple(outs)
