"""Heads of RTMDet, Lyu et al., https://arxiv.org/abs/2212.07784."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn import Scale
from torch import Tensor, nn

from detkit.models.dense_heads.layers.towers import check_odd_kernel, conv_tower
from detkit.models.dense_heads.prediction.log_size import exp_size
from detkit.models.dense_heads.prediction.objectness import geometric_mean_logit
from detkit.models.dense_heads.quality_point_head import QualityPointHead
from detkit.registry import MODELS

__all__ = ["RTMDetHead", "RTMDetSepBNHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class RTMDetHead(QualityPointHead):
    """The levels share towers and predictions; each scales its distances.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        with_objectness: Predict an objectness too; a score is the geometric mean of both.
        act_cfg: Activations of the towers.
        pred_kernel_size: Kernel of the predicting convolutions, odd.
        stacked_convs: Convolutions of each tower.
        conv_cfg: Their convolution layers.
        norm_cfg: Their norm layers.
        feat_channels: Their channels.
        anchor_generator: See :class:`QualityPointHead`, as are the following.
        bbox_coder: As above.
        loss_cls: As above.
        loss_bbox: As above.
        train_cfg: As above.
        test_cfg: As above.
        init_cfg: As above.

    Raises:
        ValueError: See :class:`QualityPointHead`; or an even kernel.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        with_objectness: bool = True,
        act_cfg: Cfg | None = None,
        pred_kernel_size: int = 3,
        stacked_convs: int = 4,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        feat_channels: int = 256,
        anchor_generator: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        init_cfg = init_cfg or _default_init(with_objectness)
        super().__init__(num_classes, anchor_generator, bbox_coder, loss_cls, loss_bbox, train_cfg, test_cfg, init_cfg)
        check_odd_kernel("RTMDetHead", pred_kernel_size)
        self.cls_convs, self.reg_convs = (
            conv_tower(
                in_channels,
                feat_channels,
                stacked_convs,
                conv_cfg=conv_cfg,
                norm_cfg=norm_cfg or {"type": "GN", "num_groups": 32, "requires_grad": True},
                act_cfg=act_cfg or {"type": "ReLU"},
            )
            for _ in ("cls", "reg")
        )
        features = feat_channels if stacked_convs > 0 else in_channels
        self.rtm_cls, self.rtm_reg, rtm_obj = (
            nn.Conv2d(features, channels, pred_kernel_size, padding=pred_kernel_size // 2)
            for channels in (num_classes, 4, 1)
        )
        self.rtm_obj = rtm_obj if with_objectness else None
        self.scales = nn.ModuleList(Scale(1.0) for _ in self.prior_generator.strides)

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, C, H_l, W_l) and distances (N, 4, H_l, W_l) in pixels."""
        cls_scores, bbox_preds = [], []
        for level, scale, stride in zip(x, self.scales, self.prior_generator.strides, strict=True):
            cls_feat = reg_feat = level
            for cls_conv, reg_conv in zip(self.cls_convs, self.reg_convs, strict=True):
                cls_feat, reg_feat = cls_conv(cls_feat), reg_conv(reg_feat)
            cls_scores.append(_score(self.rtm_cls(cls_feat), self.rtm_obj, reg_feat))
            bbox_preds.append(scale(exp_size(self.rtm_reg(reg_feat))) * stride[0])
        return cls_scores, bbox_preds


@MODELS.register_module()
class RTMDetSepBNHead(QualityPointHead):
    """Each level has its own norm layers and predictions; the convolutions of the towers may be one and the same.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        share_conv: Let the towers of all levels share their convolutions.
        use_depthwise: Split the towers' convolutions into one of each channel and one of each pixel; not shared.
        norm_cfg: Norm layers of the towers.
        act_cfg: Activations of the towers.
        pred_kernel_size: Kernel of the predicting convolutions, odd.
        exp_on_reg: Predict logarithms of distances in strides, else the distances themselves.
        with_objectness: Predict an objectness too; a score is the geometric mean of both.
        stacked_convs: Convolutions of each tower.
        conv_cfg: Their convolution layers.
        feat_channels: Their channels.
        anchor_generator: See :class:`QualityPointHead`, as are the following.
        bbox_coder: As above.
        loss_cls: As above.
        loss_bbox: As above.
        train_cfg: As above.
        test_cfg: As above.
        init_cfg: As above.

    Raises:
        ValueError: See :class:`QualityPointHead`; or an even kernel, or depthwise convolutions are to be shared.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        share_conv: bool = True,
        use_depthwise: bool = False,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = None,
        pred_kernel_size: int = 1,
        exp_on_reg: bool = False,
        with_objectness: bool = True,
        stacked_convs: int = 4,
        conv_cfg: Cfg | None = None,
        feat_channels: int = 256,
        anchor_generator: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        init_cfg = init_cfg or _default_init(with_objectness)
        super().__init__(num_classes, anchor_generator, bbox_coder, loss_cls, loss_bbox, train_cfg, test_cfg, init_cfg)
        check_odd_kernel("RTMDetSepBNHead", pred_kernel_size)
        if share_conv and use_depthwise:
            raise ValueError("RTMDetSepBNHead: use_depthwise needs share_conv=False")
        self.exp_on_reg = exp_on_reg
        levels = range(self.prior_generator.num_levels)
        self.cls_convs, self.reg_convs = (
            nn.ModuleList(
                conv_tower(
                    in_channels,
                    feat_channels,
                    stacked_convs,
                    conv_cfg=conv_cfg,
                    norm_cfg=norm_cfg or {"type": "BN", "momentum": 0.03, "eps": 0.001},
                    act_cfg=act_cfg or {"type": "SiLU"},
                    depthwise=use_depthwise,
                )
                for _ in levels
            )
            for _ in ("cls", "reg")
        )
        features = feat_channels if stacked_convs > 0 else in_channels
        self.rtm_cls, self.rtm_reg, rtm_obj = (
            nn.ModuleList(
                nn.Conv2d(features, channels, pred_kernel_size, padding=pred_kernel_size // 2) for _ in levels
            )
            for channels in (num_classes, 4, 1)
        )
        self.rtm_obj = rtm_obj if with_objectness else None
        if share_conv:
            for towers in (self.cls_convs, self.reg_convs):
                for tower in towers[1:]:
                    for own, shared in zip(tower.children(), towers[0].children(), strict=True):
                        own.conv = shared.conv

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, C, H_l, W_l) and distances (N, 4, H_l, W_l) in pixels."""
        cls_scores, bbox_preds = [], []
        for index, (level, stride) in enumerate(zip(x, self.prior_generator.strides, strict=True)):
            cls_feat = reg_feat = level
            for cls_conv, reg_conv in zip(
                self.cls_convs[index].children(), self.reg_convs[index].children(), strict=True
            ):
                cls_feat, reg_feat = cls_conv(cls_feat), reg_conv(reg_feat)
            rtm_obj = None if self.rtm_obj is None else self.rtm_obj[index]
            cls_scores.append(_score(self.rtm_cls[index](cls_feat), rtm_obj, reg_feat))
            raw = self.rtm_reg[index](reg_feat)
            bbox_preds.append((exp_size(raw) if self.exp_on_reg else raw.float()) * stride[0])
        return cls_scores, bbox_preds


def _score(logits: Tensor, rtm_obj: nn.Module | None, reg_feat: Tensor) -> Tensor:
    """Logits (N, C, H, W), with the objectness that ``rtm_obj`` predicts if there is one."""
    return logits if rtm_obj is None else geometric_mean_logit(logits, rtm_obj(reg_feat))


def _default_init(with_objectness: bool) -> dict[str, Any]:
    names = ("rtm_cls", "rtm_obj") if with_objectness else ("rtm_cls",)
    rare = [{"type": "Normal", "name": name, "std": 0.01, "bias_prob": 0.01} for name in names]
    return {"type": "Normal", "layer": "Conv2d", "std": 0.01, "override": rare}
