"""Swin Transformer, Liu et al., https://arxiv.org/abs/2103.14030; keys as in MMDetection.

Tokens attend to those of their window; every second block shifts the windows by half their width. Maps are
(N, H, W, C).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule, constant_init, trunc_normal_init
from mmengine.model.weight_init import trunc_normal_
from torch import Tensor, nn

from detkit.models.backbones.official_weights import fit_position_tables, from_swin, of_backbone
from detkit.models.backbones.patches import FFN, PatchEmbed, PatchMerging, drop_path_rates, grid_of
from detkit.models.backbones.window_attention import ShiftWindowMSA
from detkit.recompute import recomputed
from detkit.registry import MODELS

__all__ = ["SwinTransformer"]

Cfg = Mapping[str, Any]


class SwinBlock(nn.Module):
    """Attention in windows and the two linear layers, each with a norm before it and a shortcut beside it.

    Args:
        embed_dims: Channels.
        num_heads: Heads.
        feedforward_channels: Channels between the linear layers.
        window_size: Tokens in a side of a window.
        shift: Whether windows are shifted by half their width.
        qkv_bias: See :class:`~detkit.models.backbones.window_attention.WindowMSA`.
        qk_scale: See :class:`~detkit.models.backbones.window_attention.WindowMSA`.
        drop_rate: Dropout after linear layers.
        attn_drop_rate: Dropout of the attention.
        drop_path_rate: Probability that a sample skips either part.
        act_cfg: Activation.
        norm_cfg: Norm.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        window_size: int,
        shift: bool,
        qkv_bias: bool,
        qk_scale: float | None,
        drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
        act_cfg: Cfg,
        norm_cfg: Cfg,
    ) -> None:
        super().__init__()
        shift_size = window_size // 2 if shift else 0
        self.norm1 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.attn = ShiftWindowMSA(
            embed_dims,
            num_heads,
            window_size,
            shift_size,
            qkv_bias,
            qk_scale,
            attn_drop_rate,
            drop_rate,
            drop_path_rate,
        )
        self.norm2 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.ffn = FFN(embed_dims, feedforward_channels, drop_rate, drop_path_rate, act_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same."""
        x = x + self.attn(self.norm1(x))
        return self.ffn(self.norm2(x), x)


class SwinStage(nn.Module):
    """Blocks of one resolution, and what leads to the next.

    Args:
        blocks: The blocks.
        downsample: What leads to the next resolution.
        with_cp: Recompute activations of blocks in the backward pass.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module, with_cp: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, W, C) after the blocks, and for the next stage (N, ceil(H / 2), ceil(W / 2), 2 C)."""
        for block in self.blocks:
            x = recomputed(nn.Module.__call__, block, x) if self.with_cp and x.requires_grad else block(x)
        return x, self.downsample(x)


@MODELS.register_module()
class SwinTransformer(BaseModule):
    """Transformer whose attention stays in windows, over images of any size.

    Args:
        pretrain_img_size: Side, or (height, width), of the images of the pretraining; of use with absolute positions.
        in_channels: Channels of the image.
        embed_dims: Channels of the first stage; each further one doubles them.
        patch_size: Pixels in a side of a patch.
        window_size: Tokens in a side of a window.
        mlp_ratio: Width between the linear layers, in channels of the stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        strides: Of the patches, equal to their size, and of each further stage, which is 2.
        out_indices: Stages whose outputs are returned.
        qkv_bias: Whether queries, keys and values have a bias.
        qk_scale: Factor on queries times keys; None is the inverse root of a head's channels.
        patch_norm: Whether there are norms after the patches and before their merging.
        drop_rate: Dropout after linear layers.
        attn_drop_rate: Dropout of the attention.
        drop_path_rate: Stochastic depth of the last block; grows to it evenly from 0.
        use_abs_pos_embed: Add a learnt vector to each patch, interpolated for images of another size.
        act_cfg: Activation; None is GELU.
        norm_cfg: Norm over channels; None is LN.
        with_cp: Recompute activations of blocks in the backward pass to save memory.
        convert_weights: Whether the weights of ``init_cfg`` may have the names of the paper's authors.
        frozen_stages: The patches (0) and stages up to this number do not learn; -1 freezes nothing.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)``. Tables of relative positions are interpolated for
            windows of another size. None starts from random weights.
    """

    def __init__(
        self,
        pretrain_img_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        embed_dims: int = 96,
        patch_size: int = 4,
        window_size: int = 7,
        mlp_ratio: int = 4,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        strides: Sequence[int] = (4, 2, 2, 2),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        patch_norm: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        use_abs_pos_embed: bool = False,
        act_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        with_cp: bool = False,
        convert_weights: bool = False,
        frozen_stages: int = -1,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        _check(embed_dims, patch_size, depths, num_heads, strides, out_indices, frozen_stages)
        super().__init__(init_cfg)
        act_cfg, norm_cfg = act_cfg or {"type": "GELU"}, norm_cfg or {"type": "LN"}
        self.out_indices = tuple(out_indices)
        self.use_abs_pos_embed = use_abs_pos_embed
        self.convert_weights = convert_weights
        self.frozen_stages = frozen_stages

        between = norm_cfg if patch_norm else None
        self.patch_embed = PatchEmbed(in_channels, embed_dims, patch_size, strides[0], norm_cfg=between)
        self.pretrain_grid = grid_of(pretrain_img_size, patch_size)
        if use_abs_pos_embed:
            rows, columns = self.pretrain_grid
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, rows * columns, embed_dims))
        self.drop_after_pos = nn.Dropout(drop_rate)

        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.num_features = [embed_dims * 2**stage for stage in range(len(depths))]
        self.stages = nn.ModuleList()
        for stage, channels in enumerate(self.num_features):
            blocks = [
                SwinBlock(
                    channels,
                    num_heads[stage],
                    mlp_ratio * channels,
                    window_size,
                    index % 2 == 1,
                    qkv_bias,
                    qk_scale,
                    drop_rate,
                    attn_drop_rate,
                    next(rates),
                    act_cfg,
                    norm_cfg,
                )
                for index in range(depths[stage])
            ]
            last = stage == len(depths) - 1
            downsample = nn.Identity() if last else PatchMerging(channels, 2 * channels, between)
            self.stages.append(SwinStage(blocks, downsample, with_cp))
        for index in self.out_indices:
            self.add_module(f"norm{index}", build_norm_layer(norm_cfg, self.num_features[index])[1])
        self._freeze()

    def init_weights(self) -> None:
        """Random weights, and over them what ``init_cfg`` says."""
        if not self.is_init:
            for name, parameter in self.named_parameters():
                if name.endswith(("absolute_pos_embed", "relative_position_bias_table")):
                    trunc_normal_(parameter, std=0.02)
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    trunc_normal_init(module, std=0.02, bias=0.0)
                elif isinstance(module, nn.LayerNorm):
                    constant_init(module, 1.0)
        super().init_weights()

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of ``init_cfg`` under the names and in the shapes of this model."""
        state = of_backbone(state)
        return fit_position_tables(from_swin(state) if self.convert_weights else state, self.state_dict())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (N, C_i, H / s_i, W / s_i) of ``out_indices``, s = 4, 8, 16, 32, of images (N, C, H, W)."""
        x = self.patch_embed(x)
        if self.use_abs_pos_embed:
            x = x + self._positions(x.shape[1], x.shape[2])
        x = self.drop_after_pos(x)
        outs = []
        for index, stage in enumerate(self.stages):
            out, x = stage(x)
            if index in self.out_indices:
                outs.append(getattr(self, f"norm{index}")(out).permute(0, 3, 1, 2).contiguous())
        return tuple(outs)

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Absolute positions (1, rows, columns, C)."""
        grid = self.absolute_pos_embed.unflatten(1, self.pretrain_grid)
        if self.pretrain_grid == (rows, columns):
            return grid
        grid = F.interpolate(grid.permute(0, 3, 1, 2), size=(rows, columns), mode="bicubic", align_corners=False)
        return grid.permute(0, 2, 3, 1)

    def train(self, mode: bool = True) -> SwinTransformer:
        """Training mode, in which frozen stages stay as they are."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed, self.drop_after_pos, *self.stages[: self.frozen_stages]]
        frozen += [getattr(self, f"norm{index}") for index in self.out_indices if index < self.frozen_stages]
        for module in frozen:
            module.eval()
            module.requires_grad_(False)
        if self.use_abs_pos_embed:
            self.absolute_pos_embed.requires_grad = False


def _check(
    embed_dims: int,
    patch_size: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    strides: Sequence[int],
    out_indices: Sequence[int],
    frozen_stages: int,
) -> None:
    for name, values in (("num_heads", num_heads), ("strides", strides)):
        if len(values) != len(depths):
            raise ValueError(f"SwinTransformer: {name} needs a number for each of {len(depths)} stages, got {values!r}")
    if strides[0] != patch_size:
        raise ValueError(f"SwinTransformer: patches do not overlap: strides[0] must be {patch_size}, got {strides[0]}")
    if any(stride != 2 for stride in strides[1:]):
        raise ValueError(f"SwinTransformer: strides after the first must be 2, got {strides!r}")
    for stage, heads in enumerate(num_heads):
        channels = embed_dims * 2**stage
        if channels % heads:
            raise ValueError(f"SwinTransformer: num_heads[{stage}] must divide {channels} channels, got {heads}")
    if not out_indices or not all(0 <= index < len(depths) for index in out_indices):
        raise ValueError(f"SwinTransformer: out_indices must lie in [0, {len(depths)}), got {out_indices!r}")
    if not -1 <= frozen_stages <= len(depths):
        raise ValueError(f"SwinTransformer: frozen_stages must be -1 to {len(depths)}, got {frozen_stages}")
