"""Features of a region from every level of a pyramid (GRoIE, https://arxiv.org/abs/2004.13665)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.models.roi_heads.roi_extractors.pooling import build_roi_layers, scale_rois
from detkit.registry import MODELS

__all__ = ["GenericRoIExtractor"]

Cfg = Mapping[str, Any]
AGGREGATIONS = ("sum", "concat")


@MODELS.register_module()
class GenericRoIExtractor(BaseModule):
    """Pools each RoI from all levels, and adds up or joins what it finds (section 3).

    Args:
        roi_layer: Registered pooling layer, RoIAlign or RoIPool, without its ``spatial_scale``.
        out_channels: Channels of the result: of the levels where they are added up, of all together where joined.
        featmap_strides: Stride of each level in pixels, fine to coarse; further levels of a neck are not used.
        aggregation: ``sum`` or ``concat``.
        pre_cfg: Registered layer for the features of each level; None has none.
        post_cfg: Registered layer for the result; None has none.
        init_cfg: Initialisation.

    Raises:
        ValueError: Another ``aggregation``.
    """

    def __init__(
        self,
        roi_layer: Cfg,
        out_channels: int,
        featmap_strides: Sequence[int],
        aggregation: str = "sum",
        pre_cfg: Cfg | None = None,
        post_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"GenericRoIExtractor: aggregation {aggregation!r} is not one of 'sum', 'concat'")
        self.roi_layers = build_roi_layers(roi_layer, featmap_strides)
        self.out_channels = out_channels
        self.featmap_strides = list(featmap_strides)
        self.aggregation = aggregation
        self.pre_module = nn.Identity() if pre_cfg is None else MODELS.build(pre_cfg)
        self.post_module = nn.Identity() if post_cfg is None else MODELS.build(post_cfg)

    @property
    def num_inputs(self) -> int:
        """Number of levels."""
        return len(self.featmap_strides)

    def forward(self, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Features (R, out_channels, rows, columns).

        Args:
            feats: Levels (N, C, H_l, W_l), as many as there are strides.
            rois: (R, 5), index of the image, then x1, y1, x2, y2 in pixels.
            roi_scale_factor: Grow each RoI by this.

        Raises:
            ValueError: The levels have other channels than ``out_channels`` says.
        """
        if roi_scale_factor is not None:
            rois = scale_rois(rois, roi_scale_factor)
        pooled = [self.pre_module(layer(level, rois)) for level, layer in zip(feats, self.roi_layers, strict=True)]
        joined = torch.cat(pooled, dim=1) if self.aggregation == "concat" else sum(pooled[1:], pooled[0])
        if joined.shape[1] != self.out_channels:
            raise ValueError(
                f"GenericRoIExtractor: levels give {joined.shape[1]} channels by {self.aggregation!r}, "
                f"out_channels is {self.out_channels}"
            )
        out: Tensor = self.post_module(joined)
        return out
