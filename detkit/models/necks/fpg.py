"""Feature pyramid grids, Chen et al., https://arxiv.org/abs/2004.03580; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.models.necks.fpn import used_levels
from detkit.registry import MODELS, check_keys, nearest

__all__ = ["FPG"]

Cfg = Mapping[str, Any]
_CONV = ("kernel_size", "bias", "conv_cfg", "norm_cfg", "act_cfg", "inplace", "order")
# What a transition may be, and the keys of each.
KINDS = {
    "conv": ("type", *_CONV, "stride", "padding", "dilation", "groups"),
    "interpolation_conv": ("type", *_CONV, "mode", "scale_factor", "align_corners"),
    "last_conv": ("type", *_CONV),
}
TRANSITION_KEYS = tuple(sorted({key for keys in KINDS.values() for key in keys}))
PATHS = ("bu", "td")
SAME_UP: Cfg = MappingProxyType({"type": "conv", "kernel_size": 3, "stride": 2, "padding": 1})
LATERAL: Cfg = MappingProxyType({"type": "conv", "kernel_size": 1})
OUTPUT: Cfg = MappingProxyType({"type": "last_conv", "kernel_size": 3})


@MODELS.register_module()
class FPG(BaseModule):
    """Pathways side by side over all levels, each fed by the one before it and by the first.

    A transition is a dict of a ``type`` (``conv``; ``interpolation_conv``, which doubles the size first) and the
    arguments of its convolution; None has none.

    Args:
        in_channels: Channels of each input.
        out_channels: Channels of each output.
        num_outs: Number of outputs.
        stack_times: Number of pathways.
        paths: Direction of each: ``bu`` from the finest level upwards, ``td`` from the coarsest downwards.
        inter_channels: Channels inside, of all levels or of each; None is ``out_channels``.
        same_down_trans: Transition from the coarser level of the same pathway, in ``td``.
        same_up_trans: From the finer level of the same pathway, in ``bu``.
        across_lateral_trans: From the same level of the pathway before.
        across_down_trans: From the coarser level of the pathway before.
        across_up_trans: From the finer level of the pathway before.
        across_skip_trans: From the same level of the first pathway.
        output_trans: Of the last pathway's levels, ``last_conv``.
        start_level: First input that is used.
        end_level: Last input that is used, inclusive; -1 is the last.
        add_extra_convs: Convolve further, coarser levels; else every second value is taken.
        norm_cfg: MMDetection's; transitions name their own.
        skip_inds: For each level, the pathways that leave it as it is; None is none.
        init_cfg: Initialisation; None is that of Caffe2 for convolutions.

    Raises:
        ValueError: Numbers of levels or pathways that do not fit, or an unknown direction or type.
        KeyError: An unknown key of a transition.
    """

    same_down_trans_keys = TRANSITION_KEYS
    same_up_trans_keys = TRANSITION_KEYS
    across_lateral_trans_keys = TRANSITION_KEYS
    across_down_trans_keys = TRANSITION_KEYS
    across_up_trans_keys = TRANSITION_KEYS
    across_skip_trans_keys = TRANSITION_KEYS
    output_trans_keys = TRANSITION_KEYS

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        stack_times: int,
        paths: Sequence[str],
        inter_channels: int | Sequence[int] | None = None,
        same_down_trans: Cfg | None = None,
        same_up_trans: Cfg | None = SAME_UP,
        across_lateral_trans: Cfg | None = LATERAL,
        across_down_trans: Cfg | None = None,
        across_up_trans: Cfg | None = None,
        across_skip_trans: Cfg | None = None,
        output_trans: Cfg = OUTPUT,
        start_level: int = 0,
        end_level: int = -1,
        add_extra_convs: bool = False,
        norm_cfg: Cfg | None = None,
        skip_inds: Sequence[Sequence[int]] | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg or _default_init())
        self.in_channels = list(in_channels)
        self.used = used_levels("FPG", len(in_channels), start_level, end_level, num_outs)
        if isinstance(inter_channels, int) or inter_channels is None:
            inter_channels = [inter_channels or out_channels] * num_outs
        skip_inds = skip_inds or [()] * num_outs
        _check(num_outs, stack_times, paths, inter_channels, skip_inds)
        self.paths = list(paths)
        widths = inter_channels
        self.lateral_convs = nn.ModuleList(
            nn.Conv2d(in_channels[level], width, 1) for level, width in zip(self.used, widths, strict=False)
        )
        self.extra_downsamples = nn.ModuleList(
            nn.Conv2d(widths[level - 1], widths[level], 3, stride=2, padding=1)
            if add_extra_convs
            else nn.MaxPool2d(1, stride=2)
            for level in range(len(self.used), num_outs)
        )
        # Of each transition: what it comes from, as a step between levels.
        transitions = {
            "same_up": (same_up_trans, -1),
            "same_down": (same_down_trans, 1),
            "across_lateral": (across_lateral_trans, 0),
            "across_down": (across_down_trans, 1),
            "across_up": (across_up_trans, -1),
            "across_skip": (across_skip_trans, 0),
        }

        def node(level: int) -> nn.ModuleDict:
            made = nn.ModuleDict()
            for name, (cfg, step) in transitions.items():
                if cfg is not None and 0 <= level + step < num_outs:
                    made[name] = _transition(cfg, widths[level + step], widths[level], f"{name}_trans")
            return made

        self.fpn_transitions = nn.ModuleList(
            nn.ModuleList(nn.ModuleDict() if path in skip_inds[level] else node(level) for level in range(num_outs))
            for path in range(stack_times)
        )
        self.output_transition = nn.ModuleList(
            _transition(output_trans, width, out_channels, "output_trans") for width in widths
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs (N, out_channels, H_i, W_i), fine to coarse, of inputs (N, in_channels[i], H_i, W_i)."""
        if len(inputs) != len(self.in_channels):
            raise ValueError(f"FPG: {len(inputs)} feature maps for {len(self.in_channels)} in_channels")
        first = [conv(inputs[level]) for conv, level in zip(self.lateral_convs, self.used, strict=True)]
        for downsample in self.extra_downsamples:
            first.append(downsample(first[-1]))
        levels = first
        for path, nodes in zip(self.paths, self.fpn_transitions, strict=True):
            levels = self._pathway(path, nodes, levels, first)
        return tuple(transition(level) for transition, level in zip(self.output_transition, levels, strict=True))

    def _pathway(self, path: str, nodes: Any, before: Sequence[Tensor], first: Sequence[Tensor]) -> list[Tensor]:
        """Levels of one pathway after those of the one before it."""
        step, same = (-1, "same_up") if path == "bu" else (1, "same_down")
        made: dict[int, Tensor] = {}
        for level in range(len(before)) if path == "bu" else reversed(range(len(before))):
            node = nodes[level]
            if not node:
                made[level] = before[level]
                continue
            sources = {
                same: made.get(level + step),
                "across_lateral": before[level],
                "across_up": before[level - 1] if level > 0 else None,
                "across_down": before[level + 1] if level + 1 < len(before) else None,
                "across_skip": first[level],
            }
            parts = [node[name](source) for name, source in sources.items() if name in node and source is not None]
            made[level] = sum(parts[1:], parts[0])
        return [made[level] for level in range(len(before))]


class _InterpolationConv(nn.Module):
    """Doubles the size, then convolves."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        scale_factor: int = 2,
        mode: str = "nearest",
        align_corners: bool | None = None,
        **conv: Any,
    ) -> None:
        super().__init__()
        self.resize: dict[str, Any] = {"scale_factor": scale_factor, "mode": mode, "align_corners": align_corners}
        self.conv = ConvModule(in_channels, out_channels, kernel_size, padding=(kernel_size - 1) // 2, **conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, out_channels, scale_factor * H, scale_factor * W)."""
        return self.conv(F.interpolate(x, **self.resize))


class _LastConv(nn.Module):
    """A convolution under the name that checkpoints have."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, **conv: Any) -> None:
        super().__init__()
        self.conv_out = ConvModule(in_channels, out_channels, kernel_size, padding=(kernel_size - 1) // 2, **conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, out_channels, H, W)."""
        return self.conv_out(x)


def _transition(cfg: Cfg, in_channels: int, out_channels: int, name: str) -> nn.Module:
    kind = cfg.get("type")
    if kind not in KINDS:
        close = nearest(str(kind), KINDS)[0]
        raise ValueError(f"FPG: {name}.type must be one of {', '.join(KINDS)}, got {kind!r}; did you mean {close!r}?")
    check_keys(cfg, KINDS[kind], name)
    layer = {"conv": ConvModule, "interpolation_conv": _InterpolationConv, "last_conv": _LastConv}[kind]
    return layer(in_channels, out_channels, **{key: value for key, value in cfg.items() if key != "type"})


def _check(
    num_outs: int,
    stack_times: int,
    paths: Sequence[str],
    inter_channels: Sequence[int],
    skip_inds: Sequence[Sequence[int]],
) -> None:
    if len(paths) != stack_times or any(path not in PATHS for path in paths):
        raise ValueError(f"FPG: paths must be {stack_times} (stack_times) of {', '.join(PATHS)}, got {paths!r}")
    for name, values in (("inter_channels", inter_channels), ("skip_inds", skip_inds)):
        if len(values) != num_outs:
            raise ValueError(f"FPG: {name} must have {num_outs} (num_outs) items, got {values!r}")


def _default_init() -> list[dict[str, Any]]:
    norms = ["_BatchNorm", "_InstanceNorm", "GroupNorm", "LayerNorm"]
    return [{"type": "Caffe2Xavier", "layer": "Conv2d"}, {"type": "Constant", "layer": norms, "val": 1.0}]
