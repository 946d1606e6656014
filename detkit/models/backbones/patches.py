"""What transformers over images share: patches as tokens, and the two-layer network after each attention.

Maps are (N, H, W, C) throughout, so that linear layers and norms read the channels of a token side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks.drop import DropPath
from torch import Tensor, nn

__all__ = ["FFN", "PatchEmbed", "PatchMerging", "drop_path_rates", "grid_of"]

Cfg = Mapping[str, Any]


def drop_path_rates(last: float, num_blocks: int) -> list[float]:
    """Rates of stochastic depth (https://arxiv.org/abs/1603.09382) that grow evenly from 0 to ``last``."""
    return [last * index / max(num_blocks - 1, 1) for index in range(num_blocks)]


def grid_of(image_size: int | tuple[int, int], stride: int) -> tuple[int, int]:
    """Rows and columns of the whole cells of ``stride`` pixels in an image of a side, or of (height, width)."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height // stride, width // stride


class PatchEmbed(nn.Module):
    """Each patch of an image, or of a map, as a token: a strided convolution and a norm.

    Args:
        in_channels: Channels of the input.
        embed_dims: Channels of a token.
        kernel_size: Side of a patch.
        stride: Distance of patches; smaller than their side where they overlap.
        padding: Zeros on all sides; None adds as few at the right and at the bottom as complete the last patches.
        norm_cfg: The norm; None has none.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        kernel_size: int,
        stride: int,
        padding: int | None = None,
        norm_cfg: Cfg | None = None,
    ) -> None:
        super().__init__()
        self.completes = padding is None
        self.projection = nn.Conv2d(in_channels, embed_dims, kernel_size, stride, padding or 0)
        self.norm = None if norm_cfg is None else build_norm_layer(norm_cfg, embed_dims)[1]

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, H', W', D) of (N, C, H, W)."""
        if self.completes:
            stride, kernel_size = self.projection.stride, self.projection.kernel_size
            bottom, right = (
                max((-(-size // step) - 1) * step + side - size, 0)
                for size, step, side in zip(x.shape[-2:], stride, kernel_size, strict=True)
            )
            if bottom or right:
                x = F.pad(x, (0, right, 0, bottom))
        x = self.projection(x).permute(0, 2, 3, 1)
        return x if self.norm is None else self.norm(x)


class PatchMerging(nn.Module):
    """Four neighbours become one token of other width; of an odd row or column the neighbours are zeros.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        norm_cfg: The norm before the linear layer; None has none.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: Cfg | None) -> None:
        super().__init__()
        self.norm = None if norm_cfg is None else build_norm_layer(norm_cfg, 4 * in_channels)[1]
        self.reduction = nn.Linear(4 * in_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) as (N, ceil(H / 2), ceil(W / 2), D)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2)) if x.shape[1] % 2 or x.shape[2] % 2 else x
        count, height, width, channels = x.shape
        # Channel by channel its four places, row by row, as nn.Unfold has them, whose weights MMDetection's are.
        x = x.view(count, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 5, 2, 4).flatten(3)
        return self.reduction(x if self.norm is None else self.norm(x))


class FFN(nn.Module):
    """Two linear layers, beside a shortcut.

    Args:
        embed_dims: Channels of input and output.
        feedforward_channels: Channels between the layers.
        drop_rate: Probability of dropout after each.
        drop_path_rate: Probability that a sample skips both.
        act_cfg: The activation between them.
    """

    def __init__(
        self, embed_dims: int, feedforward_channels: int, drop_rate: float, drop_path_rate: float, act_cfg: Cfg
    ) -> None:
        super().__init__()
        first = nn.Sequential(
            nn.Linear(embed_dims, feedforward_channels), build_activation_layer(dict(act_cfg)), nn.Dropout(drop_rate)
        )
        self.layers = nn.Sequential(first, nn.Linear(feedforward_channels, embed_dims), nn.Dropout(drop_rate))
        self.dropout_layer = DropPath(drop_path_rate)

    def forward(self, x: Tensor, identity: Tensor) -> Tensor:
        """``identity`` plus what the layers make of ``x``, both (..., C)."""
        return identity + self.dropout_layer(self.layers(x))
