"""Balanced feature pyramid of Libra R-CNN, Pang et al., https://arxiv.org/abs/1904.02701; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, NonLocal2d
from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.registry import MODELS

__all__ = ["BFP"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class BFP(BaseModule):
    """Adds to each level the mean of all levels, refined at the resolution of one; comes after another neck.

    Args:
        in_channels: Channels of each level.
        num_levels: Number of levels.
        refine_level: Level, from the finest, at whose resolution the mean is taken.
        refine_type: ``conv``, ``non_local`` (https://arxiv.org/abs/1711.07971), or None, which refines nothing.
        conv_cfg: Convolution layers; None is a plain convolution.
        norm_cfg: Norm layers; None has none.
        init_cfg: Initialisation; None is Xavier.
    """

    def __init__(
        self,
        in_channels: int,
        num_levels: int,
        refine_level: int = 2,
        refine_type: str | None = None,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        if not 0 <= refine_level < num_levels:
            raise ValueError(f"BFP: refine_level must lie in [0, {num_levels}), got {refine_level}")
        super().__init__(init_cfg or {"type": "Xavier", "layer": "Conv2d", "distribution": "uniform"})
        self.num_levels = num_levels
        self.refine_level = refine_level
        layers: dict[str, Any] = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg}
        self.refine: nn.Module
        if refine_type is None:
            self.refine = nn.Identity()
        elif refine_type == "conv":
            self.refine = ConvModule(in_channels, in_channels, 3, padding=1, **layers)
        elif refine_type == "non_local":
            self.refine = NonLocal2d(in_channels, reduction=1, use_scale=False, **layers)
        else:
            raise ValueError(f"BFP: refine_type must be 'conv', 'non_local' or None, got {refine_type!r}")

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs as the inputs, (N, in_channels, H_i, W_i), fine to coarse."""
        if len(inputs) != self.num_levels:
            raise ValueError(f"BFP: {len(inputs)} feature maps for num_levels={self.num_levels}")
        middle = inputs[self.refine_level].shape[2:]
        gathered = [_resized(x, middle, coarser=level < self.refine_level) for level, x in enumerate(inputs)]
        mean = self.refine(torch.stack(gathered).mean(dim=0))
        return tuple(
            x + _resized(mean, x.shape[2:], coarser=level >= self.refine_level) for level, x in enumerate(inputs)
        )


def _resized(x: Tensor, size: Sequence[int], coarser: bool) -> Tensor:
    """Largest values of windows where the map gets coarser, else repeated pixels."""
    return F.adaptive_max_pool2d(x, list(size)) if coarser else F.interpolate(x, size=list(size))
