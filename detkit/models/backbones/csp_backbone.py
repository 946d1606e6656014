"""What CSPDarknet and CSPNeXt are but for their stem and blocks: stages, scaling, freezing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.models.layers.conv_style import ConvStyle
from detkit.models.layers.freezing import freeze, hold_statistics
from detkit.models.layers.spp import SPPBottleneck

__all__ = ["CSPBackbone", "CSPStage", "csp_stages"]

Cfg = Mapping[str, Any]
# Input and output channels of each stage, and whether its blocks have shortcuts and it pools before them.
CHANNELS = {
    "P5": ((64, 128, True, False), (128, 256, True, False), (256, 512, True, False), (512, 1024, False, True)),
    "P6": (
        (64, 128, True, False),
        (128, 256, True, False),
        (256, 512, True, False),
        (512, 768, True, False),
        (768, 1024, False, True),
    ),
}


class CSPStage(NamedTuple):
    """A stage: a strided convolution, pooling if ``use_spp``, a CSP layer.

    Attributes:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        num_blocks: Blocks of the CSP layer.
        add_identity: Whether they have shortcuts.
        use_spp: Whether windows of several sizes are pooled before.
    """

    in_channels: int
    out_channels: int
    num_blocks: int
    add_identity: bool
    use_spp: bool


def csp_stages(
    name: str,
    arch: str,
    arch_ovewrite: Sequence[Sequence[Any]] | None,
    middle_blocks: int,
    deepen_factor: float,
    widen_factor: float,
) -> list[CSPStage]:
    """Stages of a network ``name``, deeper and wider by the factors.

    Args:
        name: For errors.
        arch: ``P5`` (four stages) or ``P6`` (five).
        arch_ovewrite: The fields of each :class:`CSPStage` instead.
        middle_blocks: Blocks of the second and third stage; the others have 3.
        deepen_factor: Multiplies the numbers of blocks, which stay at least 1.
        widen_factor: Multiplies the channels.
    """
    if arch not in CHANNELS:
        raise ValueError(f"{name}: arch must be one of {', '.join(CHANNELS)}, got {arch!r}")
    plan: list[Sequence[Any]] = [
        (before, after, middle_blocks if index in (1, 2) else 3, *flags)
        for index, (before, after, *flags) in enumerate(CHANNELS[arch])
    ]
    if arch_ovewrite:
        plan = list(arch_ovewrite)
    if any(len(fields) != len(CSPStage._fields) for fields in plan):
        raise ValueError(f"{name}: each stage of arch_ovewrite is {', '.join(CSPStage._fields)}, got {plan!r}")
    return [
        CSPStage(
            int(before * widen_factor),
            int(after * widen_factor),
            max(round(blocks * deepen_factor), 1),
            add_identity,
            use_spp,
        )
        for before, after, blocks, add_identity, use_spp in plan
    ]


class CSPBackbone(BaseModule):
    """A stem and stages that halve the resolution.

    Args:
        stages: The stages.
        stem: Halves the resolution of images and gives the first stage its channels.
        csp_layer: Makes the CSP layer of a stage.
        style: Of the strided convolutions and of those around the pooling.
        use_depthwise: Split the strided convolutions into one of each channel and one of each pixel.
        spp_kernel_sizes: Windows of the pooling.
        out_indices: Whose outputs are returned: 0 is the stem, from 1 on the stages.
        frozen_stages: The stem (0) and stages up to this number do not learn; -1 freezes nothing.
        norm_eval: Keep batch statistics fixed in training.
        init_cfg: Initialisation.
    """

    def __init__(
        self,
        stages: Sequence[CSPStage],
        stem: nn.Module,
        csp_layer: Callable[[CSPStage], nn.Module],
        style: ConvStyle,
        *,
        use_depthwise: bool,
        spp_kernel_sizes: Sequence[int],
        out_indices: Sequence[int],
        frozen_stages: int,
        norm_eval: bool,
        init_cfg: Cfg | Sequence[Cfg] | None,
    ) -> None:
        name, last = type(self).__name__, len(stages)
        if not out_indices or not all(0 <= index <= last for index in out_indices):
            raise ValueError(f"{name}: out_indices must lie in [0, {last}], got {out_indices!r}")
        if not -1 <= frozen_stages <= last:
            raise ValueError(f"{name}: frozen_stages must be -1 to {last}, got {frozen_stages}")
        super().__init__(init_cfg)
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.stem = stem
        self.stage_names = ["stem"]
        conv = style.separable_conv if use_depthwise else style.conv
        for number, stage in enumerate(stages, 1):
            channels = stage.out_channels
            layers = [conv(stage.in_channels, channels, 3, stride=2)]
            if stage.use_spp:
                layers.append(SPPBottleneck(channels, channels, spp_kernel_sizes, style))
            self.stage_names.append(f"stage{number}")
            self.add_module(self.stage_names[-1], nn.Sequential(*layers, csp_layer(stage)))
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (N, C_i, H / 2^(i+1), W / 2^(i+1)), i in ``out_indices``, of images (N, 3, H, W)."""
        outs = []
        for index, name in enumerate(self.stage_names):
            x = getattr(self, name)(x)
            if index in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def train(self, mode: bool = True) -> CSPBackbone:
        """Training mode, in which frozen stages and (with ``norm_eval``) batch statistics stay as they are."""
        super().train(mode)
        self._freeze()
        if self.norm_eval:
            hold_statistics(self)
        return self

    def _freeze(self) -> None:
        freeze(getattr(self, name) for name in self.stage_names[: self.frozen_stages + 1])
