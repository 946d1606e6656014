"""RegNet, Radosavovic et al., https://arxiv.org/abs/2003.13678: widths on a quantised line; the X models (no SE)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from detkit.models.backbones.residual_backbone import NO_DCN, ResidualBackbone, Stage
from detkit.models.backbones.residual_blocks import Bottleneck, grouped_width
from detkit.registry import MODELS, check_keys, nearest

__all__ = ["RegNet"]

Cfg = Mapping[str, Any]
ARCHITECTURES: dict[str, dict[str, float]] = {
    "regnetx_400mf": {"w0": 24, "wa": 24.48, "wm": 2.54, "group_w": 16, "depth": 22, "bot_mul": 1.0},
    "regnetx_800mf": {"w0": 56, "wa": 35.73, "wm": 2.28, "group_w": 16, "depth": 16, "bot_mul": 1.0},
    "regnetx_1.6gf": {"w0": 80, "wa": 34.01, "wm": 2.25, "group_w": 24, "depth": 18, "bot_mul": 1.0},
    "regnetx_3.2gf": {"w0": 88, "wa": 26.31, "wm": 2.25, "group_w": 48, "depth": 25, "bot_mul": 1.0},
    "regnetx_4.0gf": {"w0": 96, "wa": 38.65, "wm": 2.43, "group_w": 40, "depth": 23, "bot_mul": 1.0},
    "regnetx_6.4gf": {"w0": 184, "wa": 60.83, "wm": 2.07, "group_w": 56, "depth": 17, "bot_mul": 1.0},
    "regnetx_8.0gf": {"w0": 80, "wa": 49.56, "wm": 2.88, "group_w": 120, "depth": 23, "bot_mul": 1.0},
    "regnetx_12gf": {"w0": 168, "wa": 73.36, "wm": 2.37, "group_w": 112, "depth": 19, "bot_mul": 1.0},
}
ARCH_KEYS = ("w0", "wa", "wm", "group_w", "depth", "bot_mul")
DIVISOR = 8


@MODELS.register_module()
class RegNet(ResidualBackbone):
    """RegNet, of bottlenecks that do not widen; further arguments as those of ``ResNet``.

    Args:
        arch: A name such as ``regnetx_3.2gf``, or a dict: ``w0`` (first width), ``wa`` (slope of the width per
            block), ``wm`` (ratio of the widths of stages), ``group_w`` (channels of a group), ``depth`` (blocks),
            ``bot_mul`` (inner width of a block by its outer).
        in_channels: Channels of the image.
        stem_channels: Width of the stem, one 3x3 convolution.
        strides: Stride of each stage.
    """

    arch_keys = ARCH_KEYS

    def __init__(
        self,
        arch: str | Mapping[str, float],
        in_channels: int = 3,
        stem_channels: int = 32,
        strides: Sequence[int] = (2, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        style: str = "pytorch",
        frozen_stages: int = -1,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        norm_eval: bool = True,
        dcn: Cfg | None = None,
        stage_with_dcn: Sequence[bool] = NO_DCN,
        plugins: Sequence[Cfg] | None = None,
        with_cp: bool = False,
        zero_init_residual: bool = True,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        stages = _stages(_parameters(arch))
        super().__init__(
            stages,
            in_channels=in_channels,
            stem_channels=stem_channels,
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
            dcn=dcn,
            stage_with_dcn=stage_with_dcn,
            plugins=plugins,
            with_cp=with_cp,
            zero_init_residual=zero_init_residual,
            init_cfg=init_cfg,
            stem_kernel=3,
            stem_pool=False,
        )
        self.depth = sum(stage.num_blocks for stage in stages)


def _parameters(arch: str | Mapping[str, float]) -> Mapping[str, float]:
    if isinstance(arch, str):
        if arch not in ARCHITECTURES:
            close = " or ".join(nearest(arch, ARCHITECTURES, count=3))
            raise ValueError(f"RegNet: no arch {arch!r}; did you mean {close}?")
        return ARCHITECTURES[arch]
    check_keys(arch, ARCH_KEYS, "arch")
    missing = [key for key in ARCH_KEYS if key not in arch]
    if missing:
        raise ValueError(f"RegNet: arch lacks {', '.join(missing)}")
    if arch["wa"] < 0 or arch["w0"] <= 0 or arch["wm"] <= 1 or arch["w0"] % DIVISOR:
        raise ValueError(
            f"RegNet: arch needs wa >= 0, wm > 1 and w0 a positive multiple of {DIVISOR}, got {dict(arch)!r}"
        )
    return arch


def _stages(arch: Mapping[str, float]) -> list[Stage]:
    """Widths by the paper's equations 2 to 4; blocks of one width are a stage."""
    stages = []
    for width, blocks in groupby(_width_of_block(arch, index) for index in range(int(arch["depth"]))):
        inner = int(width * arch["bot_mul"])
        group_width = min(int(arch["group_w"]), inner)
        # The width gives way to the groups.
        planes = int(round(inner / group_width) * group_width / arch["bot_mul"])
        groups = round(planes * arch["bot_mul"]) // group_width
        block = partial(
            Bottleneck, groups=groups, width=grouped_width(planes, groups, group_width, planes), expansion=1
        )
        stages.append(Stage(block, len(list(blocks)), planes, planes))
    return stages


def _width_of_block(arch: Mapping[str, float], index: int) -> int:
    power = round(math.log((arch["w0"] + arch["wa"] * index) / arch["w0"]) / math.log(arch["wm"]))
    return round(arch["w0"] * arch["wm"] ** power / DIVISOR) * DIVISOR
