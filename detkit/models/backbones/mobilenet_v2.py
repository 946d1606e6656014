"""MobileNetV2, Sandler et al., https://arxiv.org/abs/1801.04381; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.models.layers.conv_style import BN, RELU6, ConvStyle
from detkit.models.layers.freezing import freeze, hold_statistics
from detkit.recompute import recomputed
from detkit.registry import MODELS

__all__ = ["MobileNetV2"]

Cfg = Mapping[str, Any]
# Of each layer: how much wider its blocks are inside, channels, blocks, stride.
LAYERS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
NUM_STAGES = len(LAYERS) + 1


class InvertedResidual(nn.Module):
    """A wider 1x1 convolution, a 3x3 one of each channel, a narrow 1x1 one without activation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; a shortcut goes around where nothing changes.
        expand_ratio: How many times wider it is inside; 1 leaves the first convolution out.
        stride: Of the 3x3 convolution.
        style: Of the convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int, expand_ratio: int, stride: int, style: ConvStyle) -> None:
        super().__init__()
        channels = in_channels * expand_ratio
        self.with_shortcut = stride == 1 and in_channels == out_channels
        self.expand_conv = style.conv(in_channels, channels, 1) if expand_ratio != 1 else nn.Identity()
        self.depthwise_conv = style.conv(channels, channels, 3, stride=stride, groups=channels)
        self.linear_conv = style._replace(act_cfg=None).conv(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear_conv(self.depthwise_conv(self.expand_conv(x)))
        return x + out if self.with_shortcut else out


@MODELS.register_module()
class MobileNetV2(BaseModule):
    """A first convolution, seven layers of inverted residual blocks, a last convolution.

    Args:
        widen_factor: Multiplies the channels, which stay multiples of 8.
        out_indices: Whose outputs are returned: 0 to 6 are the layers, 7 is the last convolution.
        frozen_stages: The first convolution (0) and layers up to this number, counted from 1, do not learn; -1 freezes
            nothing.
        conv_cfg: Convolution layers; None is a plain convolution.
        norm_cfg: Norm layers.
        act_cfg: Activations.
        norm_eval: Keep batch statistics fixed in training.
        with_cp: Recompute activations in the backward pass to save memory.
        init_cfg: Initialisation; None is Kaiming for convolutions and one for norms.
    """

    def __init__(
        self,
        widen_factor: float = 1.0,
        out_indices: Sequence[int] = (1, 2, 4, 7),
        frozen_stages: int = -1,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = BN,
        act_cfg: Cfg | None = RELU6,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        if not out_indices or not all(0 <= index < NUM_STAGES for index in out_indices):
            raise ValueError(f"MobileNetV2: out_indices must lie in [0, {NUM_STAGES}), got {out_indices!r}")
        if not -1 <= frozen_stages < NUM_STAGES:
            raise ValueError(f"MobileNetV2: frozen_stages must be -1 to {NUM_STAGES - 1}, got {frozen_stages}")
        default_init = [
            {"type": "Kaiming", "layer": "Conv2d"},
            {"type": "Constant", "val": 1, "layer": ["_BatchNorm", "GroupNorm"]},
        ]
        super().__init__(init_cfg or default_init)
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        style = ConvStyle(conv_cfg, norm_cfg, act_cfg)
        channels = _divisible(32 * widen_factor)
        self.conv1 = style.conv(3, channels, 3, stride=2)
        self.stage_names = []
        for number, (expand_ratio, width, num_blocks, stride) in enumerate(LAYERS, 1):
            blocks = nn.Sequential()
            for index in range(num_blocks):
                before, channels = channels, _divisible(width * widen_factor)
                blocks.append(InvertedResidual(before, channels, expand_ratio, stride if index == 0 else 1, style))
            self.stage_names.append(f"layer{number}")
            self.add_module(self.stage_names[-1], blocks)
        self.conv2 = style.conv(channels, int(1280 * max(widen_factor, 1.0)), 1)
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of ``out_indices``, of images (N, 3, H, W); strides 2, 4, 8, 16, 16, 32, 32, 32."""
        x = self.conv1(x)
        outs = []
        for name in self.stage_names:
            for block in getattr(self, name):
                x = recomputed(nn.Module.__call__, block, x) if self.with_cp and x.requires_grad else block(x)
            outs.append(x)
        if len(self.stage_names) in self.out_indices:
            outs.append(self.conv2(x))
        return tuple(out for index, out in enumerate(outs) if index in self.out_indices)

    def train(self, mode: bool = True) -> MobileNetV2:
        """Training mode, in which frozen layers and (with ``norm_eval``) batch statistics stay as they are."""
        super().train(mode)
        self._freeze()
        if self.norm_eval:
            hold_statistics(self)
        return self

    def _freeze(self) -> None:
        names = ["conv1", *self.stage_names]
        freeze(getattr(self, name) for name in names[: self.frozen_stages + 1])


def _divisible(channels: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` nearest to ``channels``, or the next where that takes more than a tenth away."""
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest
