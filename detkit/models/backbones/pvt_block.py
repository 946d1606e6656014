"""Blocks of the Pyramid Vision Transformer (https://arxiv.org/abs/2102.12122) and of its second version.

Every token attends to all, of which there are fewer after a strided convolution. Maps are (N, H, W, C).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks.drop import DropPath
from torch import Tensor, nn

__all__ = ["AbsolutePositionEmbedding", "PVTEncoderLayer"]

Cfg = Mapping[str, Any]


class MixFFN(nn.Module):
    """Two 1x1 convolutions, in PVTv2 with a 3x3 convolution of each channel after the first; beside a shortcut.

    Args:
        embed_dims: Channels of input and output.
        feedforward_channels: Channels between the layers.
        drop_rate: Probability of dropout after each.
        drop_path_rate: Probability that a sample skips all.
        use_conv: Whether there is the 3x3 convolution, from which tokens learn where they are.
        act_cfg: The activation between them.
    """

    def __init__(
        self,
        embed_dims: int,
        feedforward_channels: int,
        drop_rate: float,
        drop_path_rate: float,
        use_conv: bool,
        act_cfg: Cfg,
    ) -> None:
        super().__init__()
        hidden = feedforward_channels
        layers = [
            nn.Conv2d(embed_dims, hidden, 1),
            *([nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)] if use_conv else []),
            build_activation_layer(dict(act_cfg)),
            nn.Dropout(drop_rate),
            nn.Conv2d(hidden, embed_dims, 1),
            nn.Dropout(drop_rate),
        ]
        self.layers = nn.Sequential(*layers)
        self.dropout_layer = DropPath(drop_path_rate)

    def forward(self, x: Tensor, identity: Tensor) -> Tensor:
        """``identity`` plus what the layers make of ``x``, both (N, H, W, C)."""
        return identity + self.dropout_layer(self.layers(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class SpatialReductionAttention(nn.Module):
    """All tokens attend to those of a map whose sides are ``sr_ratio`` times shorter (section 3.3).

    Args:
        embed_dims: Channels.
        num_heads: Heads.
        attn_drop_rate: Dropout of the attention.
        proj_drop_rate: Dropout of the output.
        drop_path_rate: Probability that a sample skips all this.
        qkv_bias: Whether the linear layers have a bias.
        sr_ratio: Side and stride of the convolution that makes the smaller map; 1 has none.
        norm_cfg: Norm after it.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        attn_drop_rate: float,
        proj_drop_rate: float,
        drop_path_rate: float,
        qkv_bias: bool,
        sr_ratio: int,
        norm_cfg: Cfg,
    ) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(embed_dims, num_heads, attn_drop_rate, bias=qkv_bias, batch_first=True)
        self.proj_drop = nn.Dropout(proj_drop_rate)
        self.dropout_layer = DropPath(drop_path_rate)
        self.sr_ratio = sr_ratio
        if sr_ratio > 1:
            self.sr = nn.Conv2d(embed_dims, embed_dims, sr_ratio, sr_ratio)
            self.norm = build_norm_layer(norm_cfg, embed_dims)[1]

    def forward(self, x: Tensor, identity: Tensor) -> Tensor:
        """``identity`` plus what ``x`` finds in itself, both (N, H, W, C)."""
        query = x.flatten(1, 2)
        seen = query
        if self.sr_ratio > 1:
            seen = self.norm(self.sr(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2))
        out = self.attn(query, seen, seen, need_weights=False)[0].view(x.shape)
        return identity + self.dropout_layer(self.proj_drop(out))


class PVTEncoderLayer(nn.Module):
    """Attention and convolutions, each with a norm before it and a shortcut beside it.

    Args:
        embed_dims: Channels.
        num_heads: Heads.
        feedforward_channels: Channels between the convolutions.
        drop_rate: Dropout after linear layers and convolutions.
        attn_drop_rate: Dropout of the attention.
        drop_path_rate: Probability that a sample skips either part.
        qkv_bias: Whether the linear layers of the attention have a bias.
        act_cfg: Activation.
        norm_cfg: Norm.
        sr_ratio: See :class:`SpatialReductionAttention`.
        use_conv_ffn: See :class:`MixFFN`.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
        qkv_bias: bool,
        act_cfg: Cfg,
        norm_cfg: Cfg,
        sr_ratio: int,
        use_conv_ffn: bool,
    ) -> None:
        super().__init__()
        self.norm1 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.attn = SpatialReductionAttention(
            embed_dims, num_heads, attn_drop_rate, drop_rate, drop_path_rate, qkv_bias, sr_ratio, norm_cfg
        )
        self.norm2 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.ffn = MixFFN(embed_dims, feedforward_channels, drop_rate, drop_path_rate, use_conv_ffn, act_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same."""
        x = self.attn(self.norm1(x), x)
        return self.ffn(self.norm2(x), x)


class AbsolutePositionEmbedding(nn.Module):
    """Adds a learnt vector to each token, interpolated for maps of another size.

    Args:
        grid: Rows and columns of the map in the pretraining.
        embed_dims: Channels.
        drop_rate: Dropout of the sum.
    """

    def __init__(self, grid: tuple[int, int], embed_dims: int, drop_rate: float) -> None:
        super().__init__()
        self.grid = grid
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1], embed_dims))
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same."""
        grid = self.pos_embed.unflatten(1, self.grid)
        if x.shape[1:3] != self.grid:
            grid = F.interpolate(grid.permute(0, 3, 1, 2), size=x.shape[1:3], mode="bilinear", align_corners=False)
            grid = grid.permute(0, 2, 3, 1)
        return self.drop(x + grid)
