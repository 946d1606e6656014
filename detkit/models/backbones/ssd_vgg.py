"""VGG of SSD, Liu et al., https://arxiv.org/abs/1512.02325, after Simonyan and Zisserman,
https://arxiv.org/abs/1409.1556; keys as in torchvision and MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.registry import MODELS

__all__ = ["SSDVGG"]

Cfg = Mapping[str, Any]
# 3x3 convolutions of each of the five stages.
STAGE_CONVS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
STAGE_CHANNELS = (64, 128, 256, 512, 512)


@MODELS.register_module()
class SSDVGG(BaseModule):
    """VGG whose fully connected layers are a dilated and a 1x1 convolution.

    Args:
        depth: 11, 13, 16 or 19.
        with_last_pool: Halve the resolution after the fifth stage too.
        ceil_mode: Round up where a resolution is halved.
        out_indices: Taken for MMDetection's configs; ``out_feature_indices`` says what is returned.
        out_feature_indices: Layers (convolutions, activations, poolings) whose outputs are returned, by number.
        init_cfg: Initialisation; ``dict(type='Pretrained', checkpoint='open-mmlab://vgg16_caffe')`` or a file loads
            weights. None is Kaiming.
    """

    def __init__(
        self,
        depth: int,
        with_last_pool: bool = False,
        ceil_mode: bool = True,
        out_indices: Sequence[int] = (3, 4),
        out_feature_indices: Sequence[int] = (22, 34),
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        if depth not in STAGE_CONVS:
            raise ValueError(f"SSDVGG: depth must be one of {', '.join(map(str, STAGE_CONVS))}, got {depth!r}")
        if not all(0 <= index < len(STAGE_CHANNELS) for index in out_indices):
            raise ValueError(f"SSDVGG: out_indices must lie in [0, {len(STAGE_CHANNELS)}), got {out_indices!r}")
        super().__init__(init_cfg or {"type": "Kaiming", "layer": "Conv2d"})
        layers: list[nn.Module] = []
        before = 3
        for channels, num_convs in zip(STAGE_CHANNELS, STAGE_CONVS[depth], strict=True):
            for _ in range(num_convs):
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU(inplace=True)]
                before = channels
            layers.append(nn.MaxPool2d(2, stride=2, ceil_mode=ceil_mode))
        if not with_last_pool:
            layers.pop()
        layers += [
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(before, 1024, 3, padding=6, dilation=6),
            nn.ReLU(inplace=True),
            nn.Conv2d(1024, 1024, 1),
            nn.ReLU(inplace=True),
        ]
        self.features = nn.Sequential(*layers)
        if not out_feature_indices or not all(0 <= index < len(layers) for index in out_feature_indices):
            raise ValueError(
                f"SSDVGG: out_feature_indices must lie in [0, {len(layers)}), got "
                f"{out_feature_indices!r} at depth {depth}"
            )
        self.out_feature_indices = tuple(out_feature_indices)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of ``out_feature_indices``, fine to coarse, of images (N, 3, H, W)."""
        outs = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.out_feature_indices:
                outs.append(x)
        return tuple(outs)
