"""ResNet, He et al., https://arxiv.org/abs/1512.03385; keys as in torchvision and MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn import build_conv_layer, build_norm_layer
from mmengine.model import BaseModule, constant_init
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detkit.recompute import recomputed
from detkit.registry import MODELS

__all__ = ["BasicBlock", "Bottleneck", "ResNet"]

Cfg = Mapping[str, Any]
STYLES = ("pytorch", "caffe")


class BasicBlock(nn.Module):
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
    ) -> None:
        super().__init__()
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, planes, postfix=1)
        self.norm2_name, norm2 = build_norm_layer(norm_cfg, planes, postfix=2)
        self.conv1 = build_conv_layer(
            conv_cfg, inplanes, planes, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
        )
        self.add_module(self.norm1_name, norm1)
        self.conv2 = build_conv_layer(conv_cfg, planes, planes, 3, padding=1, bias=False)
        self.add_module(self.norm2_name, norm2)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.Module:
        """The norm layer before the shortcut is added."""
        return getattr(self, self.norm2_name)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(getattr(self, self.norm1_name)(self.conv1(x)))
        out = self.last_norm(self.conv2(out))
        return self.relu(out + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut.

    Args:
        inplanes: Channels of the input.
        planes: Channels of the inner convolutions; the output has four times as many.
        stride: Of the block.
        dilation: Of the 3x3 convolution.
        downsample: Shortcut where the shape changes.
        style: ``pytorch`` strides in the 3x3 convolution, ``caffe`` in the first 1x1.
        conv_cfg: Convolution layers.
        norm_cfg: Norm layers.
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
    ) -> None:
        super().__init__()
        stride1, stride2 = (1, stride) if style == "pytorch" else (stride, 1)
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, planes, postfix=1)
        self.norm2_name, norm2 = build_norm_layer(norm_cfg, planes, postfix=2)
        self.norm3_name, norm3 = build_norm_layer(norm_cfg, planes * self.expansion, postfix=3)
        self.conv1 = build_conv_layer(conv_cfg, inplanes, planes, 1, stride=stride1, bias=False)
        self.add_module(self.norm1_name, norm1)
        self.conv2 = build_conv_layer(
            conv_cfg, planes, planes, 3, stride=stride2, padding=dilation, dilation=dilation, bias=False
        )
        self.add_module(self.norm2_name, norm2)
        self.conv3 = build_conv_layer(conv_cfg, planes, planes * self.expansion, 1, bias=False)
        self.add_module(self.norm3_name, norm3)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.Module:
        """The norm layer before the shortcut is added."""
        return getattr(self, self.norm3_name)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(getattr(self, self.norm1_name)(self.conv1(x)))
        out = self.relu(getattr(self, self.norm2_name)(self.conv2(out)))
        out = self.last_norm(self.conv3(out))
        return self.relu(out + shortcut)


ARCHITECTURES: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


@MODELS.register_module()
class ResNet(BaseModule):
    """Residual network over images.

    Args:
        depth: 18, 34, 50, 101 or 152.
        in_channels: Channels of the image.
        base_channels: Width of the stem and of the first stage's inner convolutions.
        num_stages: How many of the four stages exist.
        strides: Stride of each stage.
        dilations: Dilation of each stage.
        out_indices: Stages whose outputs are returned.
        style: ``pytorch`` or ``caffe``, see :class:`Bottleneck`.
        frozen_stages: The stem (0) and stages up to this number do not learn; -1 freezes nothing.
        conv_cfg: Convolution layers; None is a plain convolution.
        norm_cfg: Norm layers; ``requires_grad=False`` freezes their scale and shift.
        norm_eval: Keep batch statistics fixed in training.
        with_cp: Recompute activations in the backward pass to save memory.
        zero_init_residual: Start each block as the identity.
        init_cfg: Initialisation; ``dict(type='Pretrained', checkpoint='torchvision://resnet50')`` or a
            file loads weights. None is Kaiming for convolutions and one for norms.
    """

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        base_channels: int = 64,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        style: str = "pytorch",
        frozen_stages: int = -1,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        norm_eval: bool = True,
        with_cp: bool = False,
        zero_init_residual: bool = True,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        _check_resnet(depth, num_stages, strides, dilations, out_indices, style, frozen_stages)
        self.zero_init_residual = zero_init_residual
        default_init = [
            {"type": "Kaiming", "layer": "Conv2d"},
            {"type": "Constant", "val": 1, "layer": ["_BatchNorm", "GroupNorm"]},
        ]
        super().__init__(init_cfg or default_init)
        norm_cfg = norm_cfg or {"type": "BN", "requires_grad": True}
        self.depth = depth
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp

        self.conv1 = build_conv_layer(conv_cfg, in_channels, base_channels, 7, stride=2, padding=3, bias=False)
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, base_channels, postfix=1)
        self.add_module(self.norm1_name, norm1)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        block, stage_blocks = ARCHITECTURES[depth]
        inplanes = base_channels
        self.stage_names = []
        for stage in range(num_stages):
            planes = base_channels * 2**stage
            layer = _stage(
                block,
                inplanes,
                planes,
                stage_blocks[stage],
                strides[stage],
                dilations[stage],
                style,
                conv_cfg,
                norm_cfg,
            )
            inplanes = planes * block.expansion
            self.stage_names.append(f"layer{stage + 1}")
            self.add_module(self.stage_names[-1], layer)
        self.feat_dim = inplanes
        self._freeze()

    def init_weights(self) -> None:
        """As ``init_cfg`` says; blocks start as identities unless weights were loaded."""
        super().init_weights()
        pretrained = isinstance(self.init_cfg, Mapping) and self.init_cfg.get("type") == "Pretrained"
        if self.zero_init_residual and not pretrained:
            for module in self.modules():
                if isinstance(module, (BasicBlock, Bottleneck)):
                    constant_init(module.last_norm, 0)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (N, C_i, H / s_i, W / s_i) of ``out_indices``, s = 4, 8, 16, 32, of images (N, C, H, W)."""
        x = self.maxpool(self.relu(getattr(self, self.norm1_name)(self.conv1(x))))
        outs = []
        for stage, name in enumerate(self.stage_names):
            for block in getattr(self, name):
                x = recomputed(nn.Module.__call__, block, x) if self.with_cp and x.requires_grad else block(x)
            if stage in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def train(self, mode: bool = True) -> ResNet:
        """Training mode, in which frozen stages and (with ``norm_eval``) batch statistics stay as they are."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        stem = [self.conv1, getattr(self, self.norm1_name)]
        for module in stem + [getattr(self, name) for name in self.stage_names[: self.frozen_stages]]:
            module.eval()
            for parameter in module.parameters():
                parameter.requires_grad = False


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    inplanes: int,
    planes: int,
    num_blocks: int,
    stride: int,
    dilation: int,
    style: str,
    conv_cfg: Cfg | None,
    norm_cfg: Cfg,
) -> nn.Sequential:
    """Blocks of one stage; the first changes the shape."""
    outplanes = planes * block.expansion
    downsample = None
    if stride != 1 or inplanes != outplanes:
        downsample = nn.Sequential(
            build_conv_layer(conv_cfg, inplanes, outplanes, 1, stride=stride, bias=False),
            build_norm_layer(norm_cfg, outplanes)[1],
        )
    blocks = [block(inplanes, planes, stride, dilation, downsample, style, conv_cfg, norm_cfg)]
    blocks += [block(outplanes, planes, 1, dilation, None, style, conv_cfg, norm_cfg) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)


def _check_resnet(
    depth: int,
    num_stages: int,
    strides: Sequence[int],
    dilations: Sequence[int],
    out_indices: Sequence[int],
    style: str,
    frozen_stages: int,
) -> None:
    if depth not in ARCHITECTURES:
        raise ValueError(f"ResNet: depth must be one of {', '.join(map(str, ARCHITECTURES))}, got {depth!r}")
    if not 1 <= num_stages <= 4:
        raise ValueError(f"ResNet: num_stages must be 1 to 4, got {num_stages}")
    for name, values in (("strides", strides), ("dilations", dilations)):
        if len(values) != num_stages:
            raise ValueError(f"ResNet: {name} needs one number for each of {num_stages} stages, got {values!r}")
    if not out_indices or not all(0 <= index < num_stages for index in out_indices):
        raise ValueError(f"ResNet: out_indices must lie in [0, {num_stages}), got {out_indices!r}")
    if style not in STYLES:
        raise ValueError(f"ResNet: style must be 'pytorch' or 'caffe', got {style!r}")
    if not -1 <= frozen_stages <= num_stages:
        raise ValueError(f"ResNet: frozen_stages must be -1 to {num_stages}, got {frozen_stages}")
