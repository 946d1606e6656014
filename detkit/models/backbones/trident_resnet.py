"""ResNet whose last stage runs in branches, one for each size of objects: TridentNet, https://arxiv.org/abs/1901.01892.

Branches share all weights and differ in the dilation of their 3x3 convolutions, so its weights are those of ResNet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.models.backbones.residual_backbone import NO_DCN, ResidualBackbone
from detkit.models.backbones.residual_blocks import Bottleneck
from detkit.models.backbones.resnet import resnet_stages
from detkit.registry import MODELS

__all__ = ["TridentResNet"]

Cfg = Mapping[str, Any]


class TridentConv(nn.Conv2d):
    """A 3x3 convolution with a dilation for each branch.

    Args:
        channels: C.
        stride: As of a convolution.
        dilations: Of the branches.
        test_branch: The branch that runs in evaluation; -1 runs all.
    """

    def __init__(self, channels: int, stride: tuple[int, int], dilations: Sequence[int], test_branch: int) -> None:
        super().__init__(channels, channels, 3, stride=stride, bias=False)
        self.dilations = tuple(dilations)
        self.test_branch = test_branch

    @property
    def running(self) -> tuple[int, ...]:
        """Dilations of the branches that run now."""
        if self.training or self.test_branch == -1:
            return self.dilations
        return (self.dilations[self.test_branch],)

    def forward(self, x: Tensor) -> Tensor:
        """(B * N, C, H', W') of ``x`` (B * N, C, H, W), the N images of each of B running branches in turn."""
        pairs = zip(x.chunk(len(self.running)), self.running, strict=True)
        return torch.cat(
            [
                F.conv2d(part, self.weight, stride=self.stride, padding=dilation, dilation=dilation)
                for part, dilation in pairs
            ]
        )


class TridentBottleneck(Bottleneck):
    """A bottleneck of all branches; the one that changes the shape makes them of one map.

    Args:
        block: Arguments of :class:`Bottleneck`, in order.
        dilations: Of the branches.
        test_branch: The branch that runs in evaluation; -1 runs all.
    """

    def __init__(self, *block: Any, dilations: Sequence[int], test_branch: int) -> None:
        super().__init__(*block)
        plain: Any = self.conv2
        self.conv2 = TridentConv(plain.in_channels, plain.stride, dilations, test_branch)

    def forward(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            assert isinstance(self.conv2, TridentConv)
            x = x.repeat(len(self.conv2.running), 1, 1, 1)
        return super().forward(x)


@MODELS.register_module()
class TridentResNet(ResidualBackbone):
    """The first three stages of ResNet, the last of them in branches.

    A batch of N images gives maps of ``B * N``, all images of the first branch first: in training of all branches, in
    evaluation of one.

    Args:
        depth: 50, 101 or 152.
        num_branch: Number of branches, B.
        test_branch_idx: The branch that runs in evaluation; -1 runs all.
        trident_dilations: Dilation of each branch.
        in_channels: Channels of the image.
        stem_channels: Width of the stem; None is ``base_channels``.
        base_channels: Width of the first stage's inner convolutions.
        num_stages: 3.
        strides: Stride of each stage.
        dilations: Dilation of each stage but the last.
        out_indices: ``(2,)``, the stage that is returned.
        style: ``pytorch`` strides in the 3x3 convolution of a bottleneck, ``caffe`` in the first 1x1.
        frozen_stages: The stem (0) and stages up to this number do not learn; at most 2; -1 freezes nothing.
        conv_cfg: Convolution layers but those of branches; None is a plain convolution.
        norm_cfg: Norm layers; ``requires_grad=False`` freezes their scale and shift. None is batch norm.
        norm_eval: Keep batch statistics fixed in training; else they are of all branches together.
        with_cp: Recompute activations in the backward pass to save memory.
        zero_init_residual: Start each block as the identity.
        init_cfg: Initialisation, as of ResNet.

    Raises:
        ValueError: Another depth or number of stages, or branches and dilations that do not fit.
    """

    def __init__(
        self,
        depth: int,
        num_branch: int,
        test_branch_idx: int,
        trident_dilations: Sequence[int],
        in_channels: int = 3,
        stem_channels: int | None = None,
        base_channels: int = 64,
        num_stages: int = 3,
        strides: Sequence[int] = (1, 2, 2),
        dilations: Sequence[int] = (1, 1, 1),
        out_indices: Sequence[int] = (2,),
        style: str = "pytorch",
        frozen_stages: int = -1,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        norm_eval: bool = True,
        with_cp: bool = False,
        zero_init_residual: bool = True,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        if depth < 50:
            raise ValueError(f"TridentResNet: depth must be 50, 101 or 152, which have bottlenecks; got {depth!r}")
        if num_stages != 3 or tuple(out_indices) != (2,):
            raise ValueError(
                f"TridentResNet: num_stages must be 3 and out_indices (2,), got {num_stages} and {tuple(out_indices)}"
            )
        if frozen_stages > 2:
            raise ValueError(f"TridentResNet: frozen_stages must be -1 to 2, got {frozen_stages}: branches are trained")
        if num_branch != len(trident_dilations):
            raise ValueError(f"TridentResNet: {num_branch} branches, but trident_dilations {tuple(trident_dilations)}")
        if not -1 <= test_branch_idx < num_branch:
            raise ValueError(f"TridentResNet: test_branch_idx must be -1 to {num_branch - 1}, got {test_branch_idx}")
        *stages, last = resnet_stages("TridentResNet", depth, base_channels, num_stages)
        block = partial(TridentBottleneck, dilations=trident_dilations, test_branch=test_branch_idx)
        super().__init__(
            [*stages, last._replace(make_block=block)],
            in_channels=in_channels,
            stem_channels=base_channels if stem_channels is None else stem_channels,
            strides=strides,
            dilations=dilations,
            out_indices=out_indices,
            style=style,
            deep_stem=False,
            avg_down=False,
            frozen_stages=frozen_stages,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            norm_eval=norm_eval,
            dcn=None,
            stage_with_dcn=NO_DCN,
            plugins=None,
            with_cp=with_cp,
            zero_init_residual=zero_init_residual,
            init_cfg=init_cfg,
        )
        self.depth = depth
        self.num_branch = num_branch
        self.test_branch_idx = test_branch_idx
