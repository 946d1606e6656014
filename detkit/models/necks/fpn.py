"""Feature pyramid network, Lin et al., https://arxiv.org/abs/1612.03144."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.registry import MODELS, check_keys, nearest

__all__ = ["FPN", "used_levels"]

Cfg = Mapping[str, Any]
EXTRA_SOURCES = ("on_input", "on_lateral", "on_output")


@MODELS.register_module()
class FPN(BaseModule):
    """Feature maps of equal width, each with the semantics of those above it.

    Args:
        in_channels: Channels of each input.
        out_channels: Channels of each output.
        num_outs: Number of outputs.
        start_level: First input that is used.
        end_level: Last input that is used, inclusive; -1 is the last.
        add_extra_convs: What further, coarser levels are convolved from: ``on_input``, ``on_lateral``,
            ``on_output``; True is ``on_input``; False takes every second value of the last output.
        relu_before_extra_convs: Rectify before each extra convolution but the first.
        no_norm_on_lateral: Leave out the norm of the lateral convolutions.
        conv_cfg: Convolution layers.
        norm_cfg: Norm layers; None has none.
        act_cfg: Activation; None has none.
        upsample_cfg: ``mode`` of the interpolation and, instead of the finer map's size, ``scale_factor``.
        init_cfg: Initialisation.
    """

    upsample_cfg_keys = ("mode", "scale_factor", "align_corners")

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        start_level: int = 0,
        end_level: int = -1,
        add_extra_convs: bool | str = False,
        relu_before_extra_convs: bool = False,
        no_norm_on_lateral: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = None,
        upsample_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg or {"type": "Xavier", "layer": "Conv2d", "distribution": "uniform"})
        used = used_levels("FPN", len(in_channels), start_level, end_level, num_outs)
        check_keys(upsample_cfg, self.upsample_cfg_keys, "upsample_cfg")
        self.in_channels = list(in_channels)
        self.out_channels = out_channels
        self.num_outs = num_outs
        self.used = used
        self.extra_source = _extra_source(add_extra_convs)
        self.relu_before_extra_convs = relu_before_extra_convs
        self.upsample_cfg = dict(upsample_cfg or {"mode": "nearest"})

        def conv(channels: int, kernel: int, stride: int = 1, norm: Cfg | None = norm_cfg) -> ConvModule:
            return ConvModule(
                channels,
                out_channels,
                kernel,
                stride=stride,
                padding=kernel // 2,
                conv_cfg=conv_cfg,
                norm_cfg=norm,
                act_cfg=act_cfg,
                inplace=False,
            )

        lateral_norm = None if no_norm_on_lateral else norm_cfg
        self.lateral_convs = nn.ModuleList(conv(in_channels[level], 1, norm=lateral_norm) for level in used)
        self.fpn_convs = nn.ModuleList(conv(out_channels, 3) for _ in used)
        if self.extra_source is not None:
            for extra in range(num_outs - len(used)):
                from_input = extra == 0 and self.extra_source == "on_input"
                self.fpn_convs.append(conv(in_channels[used[-1]] if from_input else out_channels, 3, stride=2))

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs (N, out_channels, H_i, W_i), fine to coarse, of inputs (N, in_channels[i], H_i, W_i)."""
        laterals = self._top_down(inputs)
        return self._extended(self._smoothed(laterals), inputs, laterals)

    def _top_down(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Inputs of one width, each with the coarser ones added."""
        if len(inputs) != len(self.in_channels):
            name = type(self).__name__
            raise ValueError(f"{name}: {len(inputs)} feature maps for {len(self.in_channels)} in_channels")
        laterals = [conv(inputs[level]) for conv, level in zip(self.lateral_convs, self.used, strict=True)]
        for level in range(len(laterals) - 1, 0, -1):
            # Nobody else has the upsampled map, so it may become the sum.
            laterals[level - 1] = self._upsample(laterals[level], laterals[level - 1]).add_(laterals[level - 1])
        return laterals

    def _smoothed(self, laterals: Sequence[Tensor]) -> list[Tensor]:
        """Each through its 3x3 convolution."""
        return [conv(lateral) for conv, lateral in zip(self.fpn_convs[: len(laterals)], laterals, strict=True)]

    def _extended(self, outs: list[Tensor], inputs: Sequence[Tensor], laterals: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """With the further, coarser levels."""
        if self.extra_source is None:
            while len(outs) < self.num_outs:
                outs.append(F.max_pool2d(outs[-1], 1, stride=2))
            return tuple(outs)
        sources = {"on_input": inputs[self.used[-1]], "on_lateral": laterals[-1], "on_output": outs[-1]}
        source = sources[self.extra_source]
        for index, conv in enumerate(self.fpn_convs[len(laterals) :]):
            source = conv(F.relu(source) if index > 0 and self.relu_before_extra_convs else source)
            outs.append(source)
        return tuple(outs)

    def _upsample(self, coarse: Tensor, fine: Tensor) -> Tensor:
        if "scale_factor" in self.upsample_cfg:
            return F.interpolate(coarse, **self.upsample_cfg)
        return F.interpolate(coarse, size=fine.shape[2:], **self.upsample_cfg)


def used_levels(neck: str, num_inputs: int, start_level: int, end_level: int, num_outs: int) -> list[int]:
    """The inputs that a pyramid of ``num_outs`` levels is built on.

    Raises:
        ValueError: They do not exist, or do not give that many levels.
    """
    last = num_inputs - 1 if end_level in (-1, num_inputs - 1) else end_level
    if not 0 <= start_level <= last < num_inputs:
        raise ValueError(f"{neck}: levels {start_level} to {end_level} do not lie within {num_inputs} inputs")
    used = list(range(start_level, last + 1))
    if num_outs < len(used) or (last < num_inputs - 1 and num_outs != len(used)):
        raise ValueError(
            f"{neck}: num_outs={num_outs} does not fit the {len(used)} levels {start_level} to {last} of {num_inputs} "
            "inputs; extra levels are possible only above the last input"
        )
    return used


def _extra_source(add_extra_convs: bool | str) -> str | None:
    if add_extra_convs is False:
        return None
    if add_extra_convs is True:
        return "on_input"
    if add_extra_convs not in EXTRA_SOURCES:
        close = nearest(str(add_extra_convs), EXTRA_SOURCES)[0]
        raise ValueError(f"FPN: add_extra_convs {add_extra_convs!r} is unknown; did you mean {close!r}?")
    return str(add_extra_convs)
