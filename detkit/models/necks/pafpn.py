"""Path aggregation network, Liu et al., https://arxiv.org/abs/1803.01534; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn import ConvModule
from torch import Tensor, nn

from detkit.models.necks.fpn import FPN
from detkit.registry import MODELS

__all__ = ["PAFPN"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class PAFPN(FPN):
    """A feature pyramid network with a second path, from fine to coarse.

    Args:
        in_channels: Channels of each input.
        out_channels: Channels of each output.
        num_outs: Number of outputs.
        start_level: First input that is used.
        end_level: Last input that is used, inclusive; -1 is the last.
        add_extra_convs: As of :class:`FPN`.
        relu_before_extra_convs: Rectify before each extra convolution but the first.
        no_norm_on_lateral: Leave out the norm of the lateral convolutions.
        conv_cfg: Convolution layers.
        norm_cfg: Norm layers; None has none.
        act_cfg: Activation; None has none.
        init_cfg: Initialisation.
    """

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
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            num_outs,
            start_level,
            end_level,
            add_extra_convs,
            relu_before_extra_convs,
            no_norm_on_lateral,
            conv_cfg,
            norm_cfg,
            act_cfg,
            init_cfg=init_cfg,
        )
        layers: dict[str, Any] = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg, "act_cfg": act_cfg, "inplace": False}

        def conv(stride: int) -> ConvModule:
            return ConvModule(out_channels, out_channels, 3, stride=stride, padding=1, **layers)

        self.downsample_convs = nn.ModuleList(conv(2) for _ in self.used[1:])
        self.pafpn_convs = nn.ModuleList(conv(1) for _ in self.used[1:])

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs (N, out_channels, H_i, W_i), fine to coarse, of inputs (N, in_channels[i], H_i, W_i)."""
        laterals = self._top_down(inputs)
        merged = self._smoothed(laterals)
        for level, downsample in enumerate(self.downsample_convs):
            merged[level + 1] = merged[level + 1] + downsample(merged[level])
        outs = [merged[0], *(conv(x) for conv, x in zip(self.pafpn_convs, merged[1:], strict=True))]
        return self._extended(outs, inputs, laterals)
