"""Attention within windows, shifted or not, of Swin Transformer (https://arxiv.org/abs/2103.14030, section 3.2).

Maps are (N, H, W, C); M windows have L = window_size ** 2 tokens each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.drop import DropPath
from torch import Tensor, nn

__all__ = ["ShiftWindowMSA", "WindowMSA"]

# Added to the attention of tokens that are neighbours only because the map was rolled.
APART = -100.0


class WindowMSA(nn.Module):
    """Attention within windows, with a learnt bias for each relative position (section 3.2).

    Args:
        embed_dims: Channels.
        num_heads: Heads.
        window_size: Tokens in a side of a window.
        qkv_bias: Whether queries, keys and values have a bias.
        qk_scale: Factor on their product; None is the inverse root of a head's channels.
        attn_drop_rate: Dropout of the attention.
        proj_drop_rate: Dropout of the output.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window_size: int,
        qkv_bias: bool,
        qk_scale: float | None,
        attn_drop_rate: float,
        proj_drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale or (embed_dims // num_heads) ** -0.5
        self.attn_drop_rate = attn_drop_rate
        span = 2 * window_size - 1
        self.relative_position_bias_table = nn.Parameter(torch.zeros(span**2, num_heads))
        place = torch.arange(window_size)
        place = (place[:, None] * span + place).flatten()
        # A row of the table for each difference of places, the most negative one first.
        self.register_buffer("relative_position_index", place[:, None] - place + (window_size - 1) * (span + 1))
        self.relative_position_index: Tensor
        self.qkv = nn.Linear(embed_dims, embed_dims * 3, bias=qkv_bias)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop_rate)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Windows (M, L, C) of N images; ``mask`` (M / N, L, L) is added to the attention."""
        windows, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(windows, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # (3, M, heads, L, d)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(tokens, tokens, self.num_heads).permute(2, 0, 1)
        if mask is not None:
            # The windows of an image as further heads, so that one mask serves all images without being copied.
            bias = (bias + mask[:, None]).flatten(0, 1)
            qkv = qkv.reshape(3, -1, len(bias), tokens, channels // self.num_heads)
        query, key, value = qkv
        dropout = self.attn_drop_rate if self.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype)[None], dropout, scale=self.scale)
        out = out.reshape(windows, self.num_heads, tokens, -1).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out))


class ShiftWindowMSA(nn.Module):
    """Windows of a map, shifted or not, and the attention in each.

    Args:
        embed_dims: Channels.
        num_heads: Heads.
        window_size: Tokens in a side of a window.
        shift_size: By how many tokens windows are shifted down and to the right.
        qkv_bias: See :class:`WindowMSA`.
        qk_scale: See :class:`WindowMSA`.
        attn_drop_rate: Dropout of the attention.
        proj_drop_rate: Dropout of the output.
        drop_path_rate: Probability that a sample skips all this.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window_size: int,
        shift_size: int,
        qkv_bias: bool,
        qk_scale: float | None,
        attn_drop_rate: float,
        proj_drop_rate: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift_size = shift_size
        self.w_msa = WindowMSA(embed_dims, num_heads, window_size, qkv_bias, qk_scale, attn_drop_rate, proj_drop_rate)
        self.drop = DropPath(drop_path_rate)
        # The seam of a rolled map runs through its last windows alone, whatever its size: these are all there are.
        self.register_buffer("seams", _seams(window_size, shift_size) if shift_size else None, persistent=False)
        self.seams: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same."""
        side, shift = self.window_size, self.shift_size
        count, height, width, channels = x.shape
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side)) if height % side or width % side else x
        x = x.roll((-shift, -shift), (1, 2)) if shift else x
        rows, columns = x.shape[1] // side, x.shape[2] // side
        windows = x.view(count, rows, side, columns, side, channels).transpose(2, 3).reshape(-1, side**2, channels)
        windows = self.w_msa(windows, self._mask(rows, columns) if shift else None)
        x = windows.view(count, rows, columns, side, side, channels).transpose(2, 3)
        x = x.reshape(count, rows * side, columns * side, channels)
        x = x.roll((shift, shift), (1, 2)) if shift else x
        return self.drop(x[:, :height, :width])

    def _mask(self, rows: int, columns: int) -> Tensor:
        """(rows * columns, L, L), row by row."""
        device = self.seams.device
        last_row = torch.arange(rows, device=device) == rows - 1
        last_column = torch.arange(columns, device=device) == columns - 1
        return self.seams[(2 * last_row[:, None] + last_column.int()).flatten()]


def _seams(side: int, shift: int) -> Tensor:
    """Masks (4, L, L) of a window without a seam, with one across its columns, across its rows, and with both."""
    beyond = torch.arange(side) >= side - shift
    rows, columns = (place.flatten() for place in torch.meshgrid(beyond, beyond, indexing="ij"))
    across_rows, across_columns = rows[:, None] != rows, columns[:, None] != columns
    apart = torch.stack([across_rows & ~across_rows, across_columns, across_rows, across_rows | across_columns])
    return apart * APART
