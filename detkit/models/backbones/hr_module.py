"""Branches of HRNet between two exchanges, and the exchange; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from mmcv.cnn import build_conv_layer, build_norm_layer
from torch import Tensor, nn

from detkit.models.backbones.residual_blocks import BasicBlock, Bottleneck
from detkit.recompute import recomputed

__all__ = ["BranchPlan", "HRModule", "blocks_of", "conv_norm_layers", "run_blocks"]

Cfg = Mapping[str, Any]


class BranchPlan(NamedTuple):
    """Branches of a stage, fine to coarse.

    Attributes:
        block: Class of the blocks.
        num_blocks: Blocks of each branch.
        planes: What the blocks of each branch get as ``planes``.
    """

    block: type[BasicBlock] | type[Bottleneck]
    num_blocks: tuple[int, ...]
    planes: tuple[int, ...]

    @property
    def outplanes(self) -> tuple[int, ...]:
        """Channels of each branch."""
        return tuple(planes * self.block.expansion for planes in self.planes)


class HRModule(nn.Module):
    """Blocks over each branch, then each branch gets the sum of all, at its resolution.

    Args:
        plan: The branches; the input of each has the channels of its output.
        conv_cfg: Convolution layers.
        norm_cfg: Norm layers.
        with_cp: Recompute the activations of blocks in the backward pass.
        num_outs: How many branches, from the finest, are returned.
    """

    def __init__(self, plan: BranchPlan, conv_cfg: Cfg | None, norm_cfg: Cfg, with_cp: bool, num_outs: int) -> None:
        super().__init__()
        channels = plan.outplanes
        self.with_cp = with_cp
        self.branches = nn.ModuleList(
            blocks_of(plan, index, channels[index], conv_cfg, norm_cfg) for index in range(len(channels))
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_exchange(channels, source, target, conv_cfg, norm_cfg) for source in range(len(channels)))
            for target in range(num_outs)
        )

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the branches, fine to coarse, of theirs."""
        maps = [run_blocks(blocks, x, self.with_cp) for blocks, x in zip(self.branches, inputs, strict=True)]
        outs = []
        for target, layers in enumerate(self.fuse_layers):
            parts = [layer(x) for layer, x in zip(layers.children(), maps, strict=True)]
            size = maps[target].shape[2:]
            parts[target + 1 :] = [F.interpolate(part, size=size) for part in parts[target + 1 :]]
            outs.append(F.relu(sum(parts[1:], start=parts[0])))
        return outs


def blocks_of(plan: BranchPlan, branch: int, inplanes: int, conv_cfg: Cfg | None, norm_cfg: Cfg) -> nn.Sequential:
    """Blocks of one branch, of an input of ``inplanes`` channels."""
    planes, outplanes = plan.planes[branch], plan.outplanes[branch]
    blocks = nn.Sequential()
    for _ in range(plan.num_blocks[branch]):
        shortcut = None if inplanes == outplanes else conv_norm_layers(inplanes, outplanes, 1, 1, conv_cfg, norm_cfg)
        blocks.append(plan.block(inplanes, planes, 1, 1, shortcut, "pytorch", conv_cfg, norm_cfg))
        inplanes = outplanes
    return blocks


def run_blocks(blocks: nn.Module, x: Tensor, with_cp: bool) -> Tensor:
    """Call one block after the other, with or without keeping their activations."""
    for block in blocks.children():
        x = recomputed(nn.Module.__call__, block, x) if with_cp and x.requires_grad else block(x)
    return x


def conv_norm_layers(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int,
    conv_cfg: Cfg | None,
    norm_cfg: Cfg,
    relu: bool = False,
) -> nn.Sequential:
    """A convolution without bias, a norm and, with ``relu``, an activation."""
    padding = kernel_size // 2
    layers = [
        build_conv_layer(conv_cfg, in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False),
        build_norm_layer(norm_cfg, out_channels)[1],
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


def _exchange(channels: Sequence[int], source: int, target: int, conv_cfg: Cfg | None, norm_cfg: Cfg) -> nn.Module:
    """From one branch to the channels of another, and to its resolution where that is coarser."""
    if source == target:
        return nn.Identity()
    if source > target:
        return conv_norm_layers(channels[source], channels[target], 1, 1, conv_cfg, norm_cfg)
    steps = [
        conv_norm_layers(channels[source], channels[source], 3, 2, conv_cfg, norm_cfg, relu=True)
        for _ in range(target - source - 1)
    ]
    return nn.Sequential(*steps, conv_norm_layers(channels[source], channels[target], 3, 2, conv_cfg, norm_cfg))
