"""From feature levels to the features of regions, without waiting for the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detkit.registry import MODELS

__all__ = ["build_roi_layers", "pool_by_level", "roi_levels", "scale_rois"]

# A box here has no area and touches no feature map, so that pooling it costs nothing and gives 0.
NOWHERE = -1e6


def build_roi_layers(roi_layer: Mapping[str, Any], featmap_strides: Sequence[int]) -> nn.ModuleList:
    """A pooling layer for each feature level; ``roi_layer`` is the config of a registered one."""
    return nn.ModuleList(MODELS.build({**roi_layer, "spatial_scale": 1 / stride}) for stride in featmap_strides)


def roi_levels(rois: Tensor, num_levels: int, finest_scale: float) -> Tensor:
    """Level (R,) int64 of each RoI (R, 5) by its size (FPN, https://arxiv.org/abs/1612.03144, eq. 1).

    Below ``2 * finest_scale`` pixels, the root of the area, it is level 0; each doubling is one more.
    """
    scale = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).clamp(min=0).sqrt()
    level = (scale / finest_scale + 1e-6).log2().floor()
    return level.clamp(min=0, max=num_levels - 1).long()


def scale_rois(rois: Tensor, factor: float) -> Tensor:
    """RoIs (R, 5) grown around their centres."""
    centre = (rois[:, 1:3] + rois[:, 3:5]) * 0.5
    half = (rois[:, 3:5] - rois[:, 1:3]) * (0.5 * factor)
    return torch.cat([rois[:, :1], centre - half, centre + half], dim=1)


def pool_by_level(
    feats: Sequence[Tensor], rois: Tensor, levels: Tensor, layers: Sequence[nn.Module] | nn.ModuleList
) -> Tensor:
    """Features (R, C, rows, columns), each RoI pooled from its own level.

    Args:
        feats: Levels (N, C, H_l, W_l).
        rois: (R, 5).
        levels: (R,) int64.
        layers: Pooling layer of each level.
    """
    if rois.device.type == "cpu":
        return _pool_groups(feats, rois, levels, layers)
    return _pool_everywhere(feats, rois, levels, layers)


def _pool_everywhere(feats: Sequence[Tensor], rois: Tensor, levels: Tensor, layers: Any) -> Tensor:
    """Pools all RoIs on all levels, those of other levels from nowhere, and adds up."""
    nowhere = torch.full_like(rois[:, 1:], NOWHERE)
    pooled = None
    for number, (feat, layer) in enumerate(zip(feats, layers, strict=True)):
        own = torch.where((levels == number).unsqueeze(1), rois[:, 1:], nowhere)
        part = layer(feat, torch.cat([rois[:, :1], own], dim=1))
        pooled = part if pooled is None else pooled + part
    assert pooled is not None
    return pooled


def _pool_groups(feats: Sequence[Tensor], rois: Tensor, levels: Tensor, layers: Any) -> Tensor:
    """Pools each RoI once. Which are of a level must be known here, which a CPU tells at once."""
    of_level = levels.numpy()
    groups = [np.flatnonzero(of_level == number) for number in range(len(feats))]
    parts = [
        layer(feat, rois[torch.from_numpy(group)]) for feat, layer, group in zip(feats, layers, groups, strict=True)
    ]
    back = np.concatenate(groups).argsort()
    return torch.cat(parts)[torch.from_numpy(back)]
