"""HRNet, Sun et al., https://arxiv.org/abs/1904.04514; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mmcv.cnn import build_conv_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.models.backbones.hr_module import BranchPlan, HRModule, blocks_of, conv_norm_layers, run_blocks
from detkit.models.backbones.residual_blocks import BasicBlock, Bottleneck, start_as_identities
from detkit.models.layers.conv_style import BN
from detkit.models.layers.freezing import hold_statistics
from detkit.registry import MODELS, check_keys, nearest

__all__ = ["HRNet"]

Cfg = Mapping[str, Any]
BLOCKS: Mapping[str, type[BasicBlock] | type[Bottleneck]] = {"BASIC": BasicBlock, "BOTTLENECK": Bottleneck}
STAGE_KEYS = ("num_modules", "num_branches", "block", "num_blocks", "num_channels")
STAGES = ("stage1", "stage2", "stage3", "stage4")
STEM_CHANNELS = 64


@MODELS.register_module()
class HRNet(BaseModule):
    """Branches of several resolutions, which exchange their maps again and again; each stage adds a coarser one.

    Args:
        extra: ``stage1`` to ``stage4``, each with ``num_modules``, ``num_branches`` (1 to 4), ``block`` (``BASIC`` or
            ``BOTTLENECK``), and, of each branch, ``num_blocks`` and ``num_channels``.
        in_channels: Channels of the image.
        conv_cfg: Convolution layers; None is a plain convolution.
        norm_cfg: Norm layers.
        norm_eval: Keep batch statistics fixed in training.
        with_cp: Recompute the activations of blocks in the backward pass to save memory.
        zero_init_residual: Start each block as the identity.
        multiscale_output: Return the map of each branch; else only the finest.
        init_cfg: Initialisation; None is Kaiming for convolutions and one for norms.
    """

    extra_keys: ClassVar = dict.fromkeys(STAGES, STAGE_KEYS)

    def __init__(
        self,
        extra: Cfg,
        in_channels: int = 3,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = BN,
        norm_eval: bool = True,
        with_cp: bool = False,
        zero_init_residual: bool = False,
        multiscale_output: bool = True,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        check_keys(extra, STAGES, "extra")
        plans = [_plan(extra, name, branches) for branches, name in enumerate(STAGES, 1)]
        default_init = [
            {"type": "Kaiming", "layer": "Conv2d"},
            {"type": "Constant", "val": 1, "layer": ["_BatchNorm", "GroupNorm"]},
        ]
        super().__init__(init_cfg or default_init)
        norm_cfg = dict(norm_cfg)
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.zero_init_residual = zero_init_residual
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, STEM_CHANNELS, postfix=1)
        self.norm2_name, norm2 = build_norm_layer(norm_cfg, STEM_CHANNELS, postfix=2)
        strided = {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False}
        self.conv1 = build_conv_layer(conv_cfg, in_channels, STEM_CHANNELS, **strided)
        self.add_module(self.norm1_name, norm1)
        self.conv2 = build_conv_layer(conv_cfg, STEM_CHANNELS, STEM_CHANNELS, **strided)
        self.add_module(self.norm2_name, norm2)
        self.relu = nn.ReLU(inplace=True)
        _, first = plans[0]
        self.layer1 = blocks_of(first, 0, STEM_CHANNELS, conv_cfg, norm_cfg)
        channels = first.outplanes
        for number, (num_modules, plan) in enumerate(plans[1:], 2):
            self.add_module(f"transition{number - 1}", _transition(channels, plan.outplanes, conv_cfg, norm_cfg))
            modules = nn.Sequential()
            for index in range(num_modules):
                all_branches = multiscale_output or number < len(plans) or index < num_modules - 1
                modules.append(HRModule(plan, conv_cfg, norm_cfg, with_cp, len(plan.planes) if all_branches else 1))
            self.add_module(f"stage{number}", modules)
            channels = plan.outplanes

    def init_weights(self) -> None:
        """As ``init_cfg`` says; with ``zero_init_residual`` blocks start as identities unless weights were loaded."""
        first = not self.is_init
        super().init_weights()
        if first and self.zero_init_residual:
            start_as_identities(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (N, C_i, H / s_i, W / s_i), s = 4, 8, 16, 32, of images (N, C, H, W)."""
        x = self.relu(getattr(self, self.norm1_name)(self.conv1(x)))
        x = self.relu(getattr(self, self.norm2_name)(self.conv2(x)))
        branches = [run_blocks(self.layer1, x, self.with_cp)]
        for number in (2, 3, 4):
            transitions = getattr(self, f"transition{number - 1}")
            # A new branch begins with the coarsest.
            sources = branches + [branches[-1]] * (len(transitions) - len(branches))
            branches = [transition(source) for transition, source in zip(transitions, sources, strict=True)]
            for module in getattr(self, f"stage{number}"):
                branches = module(branches)
        return tuple(branches)

    def train(self, mode: bool = True) -> HRNet:
        """Training mode, in which, with ``norm_eval``, batch statistics stay as they are."""
        super().train(mode)
        if self.norm_eval:
            hold_statistics(self)
        return self


def _plan(extra: Cfg, name: str, num_branches: int) -> tuple[int, BranchPlan]:
    """Number of modules and branches of a stage."""
    if name not in extra:
        raise ValueError(f"HRNet: extra needs {', '.join(STAGES)}; {name} is missing")
    stage = extra[name]
    check_keys(stage, STAGE_KEYS, f"extra.{name}")
    missing = [key for key in STAGE_KEYS if key not in stage]
    if missing:
        raise ValueError(f"HRNet: extra.{name} lacks {', '.join(missing)}")
    if stage["num_branches"] != num_branches:
        raise ValueError(f"HRNet: extra.{name} has {num_branches} branches, got num_branches={stage['num_branches']}")
    for key in ("num_blocks", "num_channels"):
        if len(stage[key]) != num_branches:
            raise ValueError(
                f"HRNet: extra.{name}.{key} needs a number for each of {num_branches} branches, got {stage[key]!r}"
            )
    if stage["block"] not in BLOCKS:
        close = nearest(str(stage["block"]), BLOCKS)[0]
        raise ValueError(f"HRNet: extra.{name}.block {stage['block']!r} is unknown; did you mean {close!r}?")
    block = BLOCKS[stage["block"]]
    return stage["num_modules"], BranchPlan(block, tuple(stage["num_blocks"]), tuple(stage["num_channels"]))


def _transition(before: Sequence[int], after: Sequence[int], conv_cfg: Cfg | None, norm_cfg: Cfg) -> nn.ModuleList:
    """From the branches of one stage to those of the next; what nothing happens to has no weights."""
    layers: list[nn.Module] = []
    for index, channels in enumerate(after):
        if index >= len(before):
            # One step is all there is: a stage adds one branch.
            layers.append(nn.Sequential(conv_norm_layers(before[-1], channels, 3, 2, conv_cfg, norm_cfg, relu=True)))
        elif before[index] != channels:
            layers.append(conv_norm_layers(before[index], channels, 3, 1, conv_cfg, norm_cfg, relu=True))
        else:
            layers.append(nn.Identity())
    return nn.ModuleList(layers)
