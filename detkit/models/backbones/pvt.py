"""Pyramid Vision Transformer, Wang et al., https://arxiv.org/abs/2102.12122, and its second version,
https://arxiv.org/abs/2106.13797; keys as in MMDetection. The blocks are in ``pvt_block.py``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule, constant_init, normal_init, trunc_normal_init
from mmengine.model.weight_init import trunc_normal_
from torch import Tensor, nn

from detkit.models.backbones.official_weights import from_pvt, of_backbone
from detkit.models.backbones.patches import PatchEmbed, drop_path_rates, grid_of
from detkit.models.backbones.pvt_block import AbsolutePositionEmbedding, PVTEncoderLayer
from detkit.registry import MODELS

__all__ = ["PyramidVisionTransformer", "PyramidVisionTransformerV2"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class PyramidVisionTransformer(BaseModule):
    """PVT: a transformer with the resolutions of a convolutional network, over images of any size.

    Args:
        pretrain_img_size: Side, or (height, width), of the images of the pretraining, for which positions are learnt.
        in_channels: Channels of the image.
        embed_dims: Channels of a head.
        num_stages: Number of stages.
        num_layers: Blocks of each stage.
        num_heads: Heads of each stage.
        patch_sizes: Side of a patch of each stage's input.
        strides: Distance of these patches.
        paddings: Zeros around each stage's input.
        sr_ratios: By how much each stage's map is smaller where tokens attend to it.
        out_indices: Stages whose outputs are returned.
        mlp_ratios: Width between the last layers of a block, in channels of the stage.
        qkv_bias: Whether the linear layers of the attention have a bias.
        drop_rate: Dropout after linear layers and convolutions.
        attn_drop_rate: Dropout of the attention.
        drop_path_rate: Stochastic depth of the last block; grows to it evenly from 0.
        use_abs_pos_embed: Add a learnt vector to each token of each stage.
        norm_after_stage: Whether each stage ends with a norm.
        use_conv_ffn: Whether blocks have a 3x3 convolution of each channel.
        act_cfg: Activation; None is GELU.
        norm_cfg: Norm over channels; None is LN.
        convert_weights: Whether the weights of ``init_cfg`` may have the names of the paper's authors.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)``, of which the type may be left out. None starts from
            random weights.
    """

    def __init__(
        self,
        pretrain_img_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        embed_dims: int = 64,
        num_stages: int = 4,
        num_layers: Sequence[int] = (3, 4, 6, 3),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        patch_sizes: Sequence[int] = (4, 2, 2, 2),
        strides: Sequence[int] = (4, 2, 2, 2),
        paddings: Sequence[int] = (0, 0, 0, 0),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        use_abs_pos_embed: bool = True,
        norm_after_stage: bool = False,
        use_conv_ffn: bool = False,
        act_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        convert_weights: bool = True,
        init_cfg: Cfg | None = None,
    ) -> None:
        per_stage = {
            "num_layers": num_layers,
            "num_heads": num_heads,
            "patch_sizes": patch_sizes,
            "strides": strides,
            "paddings": paddings,
            "sr_ratios": sr_ratios,
            "mlp_ratios": mlp_ratios,
        }
        _check(type(self).__name__, num_stages, per_stage, out_indices)
        if init_cfg is not None and "checkpoint" in init_cfg:
            init_cfg = {"type": "Pretrained", **init_cfg}
        super().__init__(init_cfg)
        act_cfg, norm_cfg = act_cfg or {"type": "GELU"}, norm_cfg or {"type": "LN", "eps": 1e-6}
        self.out_indices = tuple(out_indices)
        self.convert_weights = convert_weights

        rates = iter(drop_path_rates(drop_path_rate, sum(num_layers)))
        self.layers = nn.ModuleList()
        for stage in range(num_stages):
            channels = embed_dims * num_heads[stage]
            patches = PatchEmbed(
                in_channels, channels, patch_sizes[stage], strides[stage], paddings[stage], norm_cfg=norm_cfg
            )
            blocks = nn.ModuleList()
            if use_abs_pos_embed:
                grid = grid_of(pretrain_img_size, math.prod(patch_sizes[: stage + 1]))
                blocks.append(AbsolutePositionEmbedding(grid, channels, drop_rate))
            for _ in range(num_layers[stage]):
                blocks.append(
                    PVTEncoderLayer(
                        channels,
                        num_heads[stage],
                        mlp_ratios[stage] * channels,
                        drop_rate,
                        attn_drop_rate,
                        next(rates),
                        qkv_bias,
                        act_cfg,
                        norm_cfg,
                        sr_ratios[stage],
                        use_conv_ffn,
                    )
                )
            norm = build_norm_layer(norm_cfg, channels)[1] if norm_after_stage else nn.Identity()
            self.layers.append(nn.ModuleList([patches, blocks, norm]))
            in_channels = channels

    def init_weights(self) -> None:
        """Random weights, and over them what ``init_cfg`` says."""
        if not self.is_init:
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    trunc_normal_init(module, std=0.02, bias=0.0)
                elif isinstance(module, nn.LayerNorm):
                    constant_init(module, 1.0)
                elif isinstance(module, nn.Conv2d):
                    fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                    normal_init(module, 0, math.sqrt(2.0 / fan_out))
                elif isinstance(module, AbsolutePositionEmbedding):
                    trunc_normal_(module.pos_embed, std=0.02)
        super().init_weights()

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of ``init_cfg`` under the names of this model."""
        state = of_backbone(state)
        return from_pvt(state) if self.convert_weights else state

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (N, C_i, H / s_i, W / s_i) of ``out_indices``, s = 4, 8, 16, 32, of images (N, C, H, W)."""
        outs = []
        for index, layer in enumerate(self.layers):
            patches, blocks, norm = layer.children()
            x = patches(x)
            for block in blocks.children():
                x = block(x)
            x = norm(x).permute(0, 3, 1, 2).contiguous()
            if index in self.out_indices:
                outs.append(x)
        return tuple(outs)


@MODELS.register_module()
class PyramidVisionTransformerV2(PyramidVisionTransformer):
    """PVTv2: overlapping patches, convolutions in the blocks instead of positions, a norm after each stage.

    Args:
        pretrain_img_size: Without effect here.
        in_channels: See :class:`PyramidVisionTransformer`, as for what follows.
        embed_dims: Channels of a head.
        num_stages: Number of stages.
        num_layers: Blocks of each stage.
        num_heads: Heads of each stage.
        strides: Distance of the patches of each stage's input.
        sr_ratios: By how much each stage's map is smaller where tokens attend to it.
        out_indices: Stages whose outputs are returned.
        mlp_ratios: Width between the last layers of a block, in channels of the stage.
        qkv_bias: Whether the linear layers of the attention have a bias.
        drop_rate: Dropout after linear layers and convolutions.
        attn_drop_rate: Dropout of the attention.
        drop_path_rate: Stochastic depth of the last block.
        act_cfg: Activation; None is GELU.
        norm_cfg: Norm over channels; None is LN.
        convert_weights: Whether the weights of ``init_cfg`` may have the names of the paper's authors.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)``; None starts from random weights.
    """

    def __init__(
        self,
        pretrain_img_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        embed_dims: int = 64,
        num_stages: int = 4,
        num_layers: Sequence[int] = (3, 4, 6, 3),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        strides: Sequence[int] = (4, 2, 2, 2),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        act_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        convert_weights: bool = True,
        init_cfg: Cfg | None = None,
    ) -> None:
        super().__init__(
            pretrain_img_size=pretrain_img_size,
            in_channels=in_channels,
            embed_dims=embed_dims,
            num_stages=num_stages,
            num_layers=num_layers,
            num_heads=num_heads,
            patch_sizes=(7, 3, 3, 3)[:num_stages],
            strides=strides,
            paddings=(3, 1, 1, 1)[:num_stages],
            sr_ratios=sr_ratios,
            out_indices=out_indices,
            mlp_ratios=mlp_ratios,
            qkv_bias=qkv_bias,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            use_abs_pos_embed=False,
            norm_after_stage=True,
            use_conv_ffn=True,
            act_cfg=act_cfg,
            norm_cfg=norm_cfg,
            convert_weights=convert_weights,
            init_cfg=init_cfg,
        )


def _check(name: str, num_stages: int, per_stage: Mapping[str, Sequence[int]], out_indices: Sequence[int]) -> None:
    for argument, values in per_stage.items():
        # Further ones of those that have defaults everywhere say nothing, as in MMDetection.
        if len(values) < num_stages or (argument not in ("paddings", "mlp_ratios") and len(values) > num_stages):
            raise ValueError(f"{name}: {argument} needs one number for each of {num_stages} stages, got {values!r}")
    if not out_indices or not all(0 <= index < num_stages for index in out_indices):
        raise ValueError(f"{name}: out_indices must lie in [0, {num_stages}), got {out_indices!r}")
