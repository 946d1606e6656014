"""Darknet-53, YOLOv3, Redmon and Farhadi, https://arxiv.org/abs/1804.02767; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.models.layers.conv_style import BN, LEAKY_RELU, ConvStyle
from detkit.models.layers.freezing import freeze, hold_statistics
from detkit.registry import MODELS

__all__ = ["Darknet"]

Cfg = Mapping[str, Any]
# Residual blocks and output channels of each stage.
ARCHITECTURES = {53: ((1, 64), (2, 128), (8, 256), (8, 512), (4, 1024))}


class _ResBlock(nn.Module):
    """A 1x1 convolution to half the channels and a 3x3 one back, beside a shortcut."""

    def __init__(self, channels: int, style: ConvStyle) -> None:
        super().__init__()
        self.conv1 = style.conv(channels, channels // 2, 1)
        self.conv2 = style.conv(channels // 2, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


@MODELS.register_module()
class Darknet(BaseModule):
    """A first convolution and five stages, each of which halves the resolution and doubles the channels.

    Args:
        depth: 53.
        out_indices: Whose outputs are returned: 0 is the first convolution, 1 to 5 the stages.
        frozen_stages: As many of these six do not learn; 0 and -1 freeze nothing.
        conv_cfg: Convolution layers; None is a plain convolution.
        norm_cfg: Norm layers.
        act_cfg: Activations.
        norm_eval: Keep batch statistics fixed in training.
        init_cfg: Initialisation; None is Kaiming for convolutions and one for norms.
    """

    def __init__(
        self,
        depth: int = 53,
        out_indices: Sequence[int] = (3, 4, 5),
        frozen_stages: int = -1,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = BN,
        act_cfg: Cfg | None = LEAKY_RELU,
        norm_eval: bool = True,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        if depth not in ARCHITECTURES:
            raise ValueError(f"Darknet: depth must be one of {', '.join(map(str, ARCHITECTURES))}, got {depth!r}")
        stages = ARCHITECTURES[depth]
        if not out_indices or not all(0 <= index <= len(stages) for index in out_indices):
            raise ValueError(f"Darknet: out_indices must lie in [0, {len(stages)}], got {out_indices!r}")
        if not -1 <= frozen_stages <= len(stages) + 1:
            raise ValueError(f"Darknet: frozen_stages must be -1 to {len(stages) + 1}, got {frozen_stages}")
        default_init = [
            {"type": "Kaiming", "layer": "Conv2d"},
            {"type": "Constant", "val": 1, "layer": ["_BatchNorm", "GroupNorm"]},
        ]
        super().__init__(init_cfg or default_init)
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        style = ConvStyle(conv_cfg, norm_cfg, act_cfg)
        self.conv1 = style.conv(3, 32, 3)
        self.stage_names = ["conv1"]
        in_channels = 32
        for number, (num_blocks, channels) in enumerate(stages, 1):
            stage = nn.Sequential()
            stage.add_module("conv", style.conv(in_channels, channels, 3, stride=2))
            for index in range(num_blocks):
                stage.add_module(f"res{index}", _ResBlock(channels, style))
            self.stage_names.append(f"conv_res_block{number}")
            self.add_module(self.stage_names[-1], stage)
            in_channels = channels
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (N, 32 * 2^i, H / 2^i, W / 2^i), i in ``out_indices``, of images (N, 3, H, W)."""
        outs = []
        for index, name in enumerate(self.stage_names):
            x = getattr(self, name)(x)
            if index in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def train(self, mode: bool = True) -> Darknet:
        """Training mode, in which frozen stages and (with ``norm_eval``) batch statistics stay as they are."""
        super().train(mode)
        self._freeze()
        if self.norm_eval:
            hold_statistics(self)
        return self

    def _freeze(self) -> None:
        freeze(getattr(self, name) for name in self.stage_names[: max(self.frozen_stages, 0)])
