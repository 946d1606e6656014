"""Blocks with a shortcut, of ResNet and its family; names as in torchvision and MMDetection."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmcv.cnn import build_conv_layer, build_norm_layer, build_plugin_layer
from mmengine.model import BaseModule, constant_init
from torch import Tensor, nn

from detkit.models.layers import conv_norm

__all__ = [
    "POSITIONS",
    "BasicBlock",
    "Bottleneck",
    "Plugin",
    "ResidualBlock",
    "conv3x3",
    "grouped_width",
    "start_as_identities",
]

Cfg = Mapping[str, Any]
POSITIONS = ("after_conv1", "after_conv2", "after_conv3")


class Plugin(NamedTuple):
    """A layer between those of a block.

    Attributes:
        position: ``after_conv1``, ``after_conv2`` or ``after_conv3``.
        cfg: Builds it; ``in_channels`` is filled in. ``postfix`` goes to its name.
    """

    position: str
    cfg: Cfg


class ResidualBlock(nn.Module):
    """What the blocks share: plugins, and which norm is the last before the shortcut is added."""

    def __init__(self) -> None:
        super().__init__()
        self.plugin_names: dict[str, list[str]] = {position: [] for position in POSITIONS}

    @property
    def last_norm(self) -> nn.Module:
        """The norm layer before the shortcut is added; at zero, the block is the identity."""
        raise NotImplementedError

    def _add_plugins(self, plugins: Sequence[Plugin], channels: Sequence[int]) -> None:
        """Build plugins; ``channels`` are those after conv1, conv2 and conv3."""
        for plugin in plugins:
            cfg = dict(plugin.cfg)
            in_channels = channels[POSITIONS.index(plugin.position)]
            name, layer = build_plugin_layer(cfg, postfix=cfg.pop("postfix", ""), in_channels=in_channels)
            if hasattr(self, name):
                raise ValueError(f"plugins: a block has {name!r} already; give the second a 'postfix' of its own")
            self.add_module(name, layer)
            self.plugin_names[plugin.position].append(name)

    def _plugged(self, position: str, x: Tensor) -> Tensor:
        for name in self.plugin_names[position]:
            x = getattr(self, name)(x)
        return x


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions beside a shortcut.

    Args:
        inplanes: Channels of the input.
        planes: Channels of the convolutions and of the output.
        stride: Of the first convolution.
        dilation: Of the first convolution.
        downsample: Shortcut where the shape changes.
        style: Without effect here, see :class:`Bottleneck`.
        conv_cfg: Convolution layers.
        norm_cfg: Norm layers.
        dcn: Refused: for blocks with a bottleneck.
        plugins: Refused likewise.
    """

    expansion = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int,
        dilation: int,
        downsample: nn.Module | None,
        style: str,
        conv_cfg: Cfg | None,
        norm_cfg: Cfg,
        dcn: Cfg | None = None,
        plugins: Sequence[Plugin] = (),
    ) -> None:
        super().__init__()
        if dcn is not None or plugins:
            raise ValueError("dcn and plugins are for blocks with a bottleneck: depth 50 and above")
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, planes, postfix=1)
        self.norm2_name, norm2 = build_norm_layer(norm_cfg, planes, postfix=2)
        self.conv1 = conv3x3(conv_cfg, inplanes, planes, stride, dilation)
        self.add_module(self.norm1_name, norm1)
        self.conv2 = conv3x3(conv_cfg, planes, planes, 1, 1)
        self.add_module(self.norm2_name, norm2)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.Module:
        """The norm layer before the shortcut is added."""
        return getattr(self, self.norm2_name)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(conv_norm(self.conv1, getattr(self, self.norm1_name), x))
        out = conv_norm(self.conv2, self.last_norm, out)
        return self.relu(out.add_(shortcut))


class Bottleneck(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut.

    Args:
        inplanes: Channels of the input.
        planes: Channels of the inner convolutions; the output has ``expansion`` times as many.
        stride: Of the block.
        dilation: Of the 3x3 convolution.
        downsample: Shortcut where the shape changes.
        style: ``pytorch`` strides in the 3x3 convolution, ``caffe`` in the first 1x1.
        conv_cfg: Convolution layers.
        norm_cfg: Norm layers.
        dcn: The 3x3 convolution, if it is deformable.
        plugins: Layers between.
        groups: Of the 3x3 convolution.
        width: Channels of the inner convolutions where they are not ``planes``.
        expansion: See ``planes``.
    """

    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int,
        dilation: int,
        downsample: nn.Module | None,
        style: str,
        conv_cfg: Cfg | None,
        norm_cfg: Cfg,
        dcn: Cfg | None = None,
        plugins: Sequence[Plugin] = (),
        groups: int = 1,
        width: int | None = None,
        expansion: int = 4,
    ) -> None:
        super().__init__()
        width = width or planes
        outplanes = planes * expansion
        stride1, stride2 = (1, stride) if style == "pytorch" else (stride, 1)
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, width, postfix=1)
        self.norm2_name, norm2 = build_norm_layer(norm_cfg, width, postfix=2)
        self.norm3_name, norm3 = build_norm_layer(norm_cfg, outplanes, postfix=3)
        self.conv1 = build_conv_layer(conv_cfg, inplanes, width, 1, stride=stride1, bias=False)
        self.add_module(self.norm1_name, norm1)
        self.conv2 = conv3x3(conv_cfg, width, width, stride2, dilation, groups, dcn)
        self.add_module(self.norm2_name, norm2)
        self.conv3 = build_conv_layer(conv_cfg, width, outplanes, 1, bias=False)
        self.add_module(self.norm3_name, norm3)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self._add_plugins(plugins, (width, width, outplanes))

    @property
    def last_norm(self) -> nn.Module:
        """The norm layer before the shortcut is added."""
        return getattr(self, self.norm3_name)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.summed(x))

    def summed(self, x: Tensor) -> Tensor:
        """What the last activation gets: the convolutions' output and the shortcut."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(conv_norm(self.conv1, getattr(self, self.norm1_name), x))
        out = self._plugged("after_conv1", out)
        out = self.relu(conv_norm(self.conv2, getattr(self, self.norm2_name), out))
        out = self._plugged("after_conv2", out)
        out = conv_norm(self.conv3, self.last_norm, out)
        if self.plugin_names["after_conv3"]:
            # A plugin may need what it returned for its gradient.
            return self._plugged("after_conv3", out) + shortcut
        return out.add_(shortcut)


def conv3x3(
    conv_cfg: Cfg | None,
    in_channels: int,
    out_channels: int,
    stride: int,
    dilation: int,
    groups: int = 1,
    dcn: Cfg | None = None,
) -> nn.Module:
    """3x3 convolution that keeps the size but for its stride, deformable by ``dcn``.

    With ``fallback_on_stride=True`` in ``dcn`` a strided one stays as ``conv_cfg`` says.
    """
    if dcn is not None:
        dcn = dict(dcn)
        if not (dcn.pop("fallback_on_stride", False) and stride != 1):
            if conv_cfg is not None:
                raise ValueError(f"dcn: a deformable convolution is no {conv_cfg['type']} besides; give no conv_cfg")
            conv_cfg = dcn
    return build_conv_layer(
        conv_cfg,
        in_channels,
        out_channels,
        3,
        stride=stride,
        padding=dilation,
        dilation=dilation,
        groups=groups,
        bias=False,
    )


def grouped_width(planes: int, groups: int, base_width: int, base_channels: int) -> int:
    """Channels of a bottleneck's inner convolutions: of each group ``base_width`` at ``base_channels`` planes."""
    return planes if groups == 1 else math.floor(planes * (base_width / base_channels)) * groups


def start_as_identities(network: BaseModule) -> None:
    """Set the last norm of each residual block to zero, unless ``init_cfg`` has loaded weights."""
    cfgs = [network.init_cfg] if isinstance(network.init_cfg, Mapping) else network.init_cfg or ()
    if any(cfg.get("type") == "Pretrained" for cfg in cfgs):
        return
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            constant_init(module.last_norm, 0)
