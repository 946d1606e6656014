"""What ResNet and its family are but for their blocks: a stem, stages of blocks, freezing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mmcv.cnn import build_conv_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.models.backbones.residual_blocks import POSITIONS, Plugin, ResidualBlock, start_as_identities
from detkit.models.layers import ConvNormShortcut, conv_norm
from detkit.models.layers.freezing import freeze, hold_statistics
from detkit.recompute import recomputed
from detkit.registry import check_keys

__all__ = ["NO_DCN", "ResidualBackbone", "Stage", "blocks_of_depth", "blocks_of_stage"]

Cfg = Mapping[str, Any]
STYLES = ("pytorch", "caffe")
NO_DCN = (False, False, False, False)


class Stage(NamedTuple):
    """Blocks between two changes of resolution.

    Attributes:
        make_block: A block class, or a partial of it, called as
            ``(inplanes, planes, stride, dilation, downsample, style, conv_cfg, norm_cfg, dcn, plugins)``.
        num_blocks: How many.
        planes: What the blocks get as ``planes``.
        outplanes: Channels of what they return.
    """

    make_block: Callable[..., ResidualBlock]
    num_blocks: int
    planes: int
    outplanes: int


class ResidualBackbone(BaseModule):
    """A stem and stages of residual blocks; :class:`~detkit.models.backbones.resnet.ResNet` explains the arguments.

    Args:
        stages: The stages.
        deep_stem: Three 3x3 convolutions (``stem``) instead of one (``conv1``).
        stem_kernel: Size of the one.
        stem_pool: Halve the resolution once more before the first stage.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        in_channels: int,
        stem_channels: int,
        strides: Sequence[int],
        dilations: Sequence[int],
        out_indices: Sequence[int],
        style: str,
        deep_stem: bool,
        avg_down: bool,
        frozen_stages: int,
        conv_cfg: Cfg | None,
        norm_cfg: Cfg | None,
        norm_eval: bool,
        dcn: Cfg | None,
        stage_with_dcn: Sequence[bool],
        plugins: Sequence[Cfg] | None,
        with_cp: bool,
        zero_init_residual: bool,
        init_cfg: Cfg | Sequence[Cfg] | None,
        stem_kernel: int = 7,
        stem_pool: bool = True,
    ) -> None:
        self._check(len(stages), strides, dilations, out_indices, style, frozen_stages)
        if dcn is not None and len(stage_with_dcn) != len(stages):
            raise ValueError(
                f"{type(self).__name__}: stage_with_dcn needs one flag for each of {len(stages)} stages, got "
                f"{stage_with_dcn!r}"
            )
        default_init = [
            {"type": "Kaiming", "layer": "Conv2d"},
            {"type": "Constant", "val": 1, "layer": ["_BatchNorm", "GroupNorm"]},
        ]
        super().__init__(init_cfg or default_init)
        norm_cfg = norm_cfg or {"type": "BN", "requires_grad": True}
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.zero_init_residual = zero_init_residual
        self.deep_stem = deep_stem

        self._add_stem(in_channels, stem_channels, stem_kernel, conv_cfg, norm_cfg)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem_pool else nn.Identity()
        self.stage_names = []
        inplanes = stem_channels
        for index, stage in enumerate(stages):
            stage_dcn = dcn if dcn is not None and stage_with_dcn[index] else None
            rest = (style, conv_cfg, norm_cfg, stage_dcn, _plugins_of_stage(plugins, index, len(stages)))
            layer = blocks_of_stage(stage, inplanes, strides[index], dilations[index], avg_down, rest)
            inplanes = stage.outplanes
            self.stage_names.append(f"layer{index + 1}")
            self.add_module(self.stage_names[-1], layer)
        self.feat_dim = inplanes
        self._freeze()

    def init_weights(self) -> None:
        """As ``init_cfg`` says; blocks start as identities unless weights were loaded."""
        first = not self.is_init
        super().init_weights()
        if first and self.zero_init_residual:
            start_as_identities(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (N, C_i, H / s_i, W / s_i) of ``out_indices``, s = 4, 8, 16, 32, of images (N, C, H, W)."""
        x = self.stem(x) if self.deep_stem else self.relu(conv_norm(self.conv1, getattr(self, self.norm1_name), x))
        x = self.maxpool(x)
        outs = []
        for stage, name in enumerate(self.stage_names):
            for block in getattr(self, name):
                x = recomputed(nn.Module.__call__, block, x) if self.with_cp and x.requires_grad else block(x)
            if stage in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def train(self, mode: bool = True) -> ResidualBackbone:
        """Training mode, in which frozen stages and (with ``norm_eval``) batch statistics stay as they are."""
        super().train(mode)
        self._freeze()
        if self.norm_eval:
            hold_statistics(self)
        return self

    def _add_stem(self, in_channels: int, channels: int, kernel: int, conv_cfg: Cfg | None, norm_cfg: Cfg) -> None:
        if self.deep_stem:
            self.stem = _deep_stem(in_channels, channels, conv_cfg, norm_cfg)
            return
        padding = kernel // 2
        self.conv1 = build_conv_layer(conv_cfg, in_channels, channels, kernel, stride=2, padding=padding, bias=False)
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, channels, postfix=1)
        self.add_module(self.norm1_name, norm1)
        self.relu = nn.ReLU(inplace=True)

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        stem = [self.stem] if self.deep_stem else [self.conv1, getattr(self, self.norm1_name)]
        freeze(stem + [getattr(self, name) for name in self.stage_names[: self.frozen_stages]])

    def _check(
        self,
        num_stages: int,
        strides: Sequence[int],
        dilations: Sequence[int],
        out_indices: Sequence[int],
        style: str,
        frozen_stages: int,
    ) -> None:
        name = type(self).__name__
        for argument, values in (("strides", strides), ("dilations", dilations)):
            if len(values) != num_stages:
                raise ValueError(f"{name}: {argument} needs one number for each of {num_stages} stages, got {values!r}")
        if not out_indices or not all(0 <= index < num_stages for index in out_indices):
            raise ValueError(f"{name}: out_indices must lie in [0, {num_stages}), got {out_indices!r}")
        if style not in STYLES:
            raise ValueError(f"{name}: style must be 'pytorch' or 'caffe', got {style!r}")
        if not -1 <= frozen_stages <= num_stages:
            raise ValueError(f"{name}: frozen_stages must be -1 to {num_stages}, got {frozen_stages}")


def blocks_of_depth(name: str, depths: Mapping[int, tuple[int, ...]], depth: int, num_stages: int) -> tuple[int, ...]:
    """Number of blocks of each stage, of a network ``name`` that exists in some ``depths``."""
    if depth not in depths:
        raise ValueError(f"{name}: depth must be one of {', '.join(map(str, depths))}, got {depth!r}")
    if not 1 <= num_stages <= 4:
        raise ValueError(f"{name}: num_stages must be 1 to 4, got {num_stages}")
    return depths[depth][:num_stages]


def blocks_of_stage(
    stage: Stage, inplanes: int, stride: int, dilation: int, avg_down: bool, rest: tuple[Any, ...]
) -> nn.Sequential:
    """Blocks of one stage; the first changes the shape.

    Args:
        stage: Which blocks, and how many.
        inplanes: Channels that the first gets.
        stride: Of the first.
        dilation: Of all.
        avg_down: Pool in the shortcut instead of striding.
        rest: What a block gets after its shortcut.
    """
    conv_cfg, norm_cfg = rest[1:3]
    downsample = None
    if stride != 1 or inplanes != stage.outplanes:
        # Bag of tricks, https://arxiv.org/abs/1812.01187: a strided 1x1 convolution would skip three of four pixels.
        pool = [nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)] if avg_down else []
        conv_stride = 1 if avg_down else stride
        downsample = ConvNormShortcut(
            *pool,
            build_conv_layer(conv_cfg, inplanes, stage.outplanes, 1, stride=conv_stride, bias=False),
            build_norm_layer(norm_cfg, stage.outplanes)[1],
        )
    blocks = [stage.make_block(inplanes, stage.planes, stride, dilation, downsample, *rest)]
    for _ in range(stage.num_blocks - 1):
        blocks.append(stage.make_block(stage.outplanes, stage.planes, 1, dilation, None, *rest))
    return nn.Sequential(*blocks)


def _deep_stem(in_channels: int, channels: int, conv_cfg: Cfg | None, norm_cfg: Cfg) -> nn.Sequential:
    layers: list[nn.Module] = []
    for source, target, stride in (
        (in_channels, channels // 2, 2),
        (channels // 2, channels // 2, 1),
        (channels // 2, channels, 1),
    ):
        layers += [
            build_conv_layer(conv_cfg, source, target, 3, stride=stride, padding=1, bias=False),
            build_norm_layer(norm_cfg, target)[1],
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def _plugins_of_stage(plugins: Sequence[Cfg] | None, stage: int, num_stages: int) -> list[Plugin]:
    found = []
    for index, plugin in enumerate(plugins or ()):
        check_keys(plugin, ("cfg", "stages", "position"), f"plugins.{index}")
        flags = plugin.get("stages")
        flags = (True,) * num_stages if flags is None else flags
        if len(flags) != num_stages:
            raise ValueError(f"plugins.{index}: stages needs one flag for each of {num_stages} stages, got {flags!r}")
        if plugin.get("position") not in POSITIONS:
            raise ValueError(
                f"plugins.{index}: position must be one of {', '.join(POSITIONS)}, got {plugin.get('position')!r}"
            )
        if flags[stage]:
            found.append(Plugin(plugin["position"], plugin["cfg"]))
    return found
