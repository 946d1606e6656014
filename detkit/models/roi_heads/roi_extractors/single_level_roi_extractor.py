"""Features of a region from the one level of a pyramid that fits its size, https://arxiv.org/abs/1612.03144."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor

from detkit.models.roi_heads.roi_extractors.pooling import build_roi_layers, pool_by_level, roi_levels, scale_rois
from detkit.registry import MODELS

__all__ = ["SingleRoIExtractor"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class SingleRoIExtractor(BaseModule):
    """Pools each RoI from the level of its size (section 4.2).

    Args:
        roi_layer: Registered pooling layer, RoIAlign or RoIPool, without its ``spatial_scale``.
        out_channels: Channels of the levels.
        featmap_strides: Stride of each level in pixels, fine to coarse; further levels of a neck are not used.
        finest_scale: RoIs of up to twice this size, in pixels, the root of the area, are of the first level.
        init_cfg: Initialisation.
    """

    def __init__(
        self,
        roi_layer: Cfg,
        out_channels: int,
        featmap_strides: Sequence[int],
        finest_scale: int = 56,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.roi_layers = build_roi_layers(roi_layer, featmap_strides)
        self.out_channels = out_channels
        self.featmap_strides = list(featmap_strides)
        self.finest_scale = finest_scale

    @property
    def num_inputs(self) -> int:
        """Number of levels."""
        return len(self.featmap_strides)

    def forward(self, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Features (R, out_channels, rows, columns).

        Args:
            feats: Levels (N, out_channels, H_l, W_l), as many as there are strides.
            rois: (R, 5), index of the image, then x1, y1, x2, y2 in pixels.
            roi_scale_factor: Grow each RoI by this, after its level is chosen.
        """
        levels = roi_levels(rois, len(feats), self.finest_scale)
        if roi_scale_factor is not None:
            rois = scale_rois(rois, roi_scale_factor)
        if len(feats) == 1:
            return self.roi_layers[0](feats[0], rois)
        return pool_by_level(feats, rois, levels, self.roi_layers)
