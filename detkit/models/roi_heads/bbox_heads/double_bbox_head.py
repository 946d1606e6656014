"""Classes by linear layers, boxes by convolutions: Double-Head R-CNN, Wu et al., https://arxiv.org/abs/1904.06493."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn import ConvModule
from torch import Tensor, nn

from detkit.models.backbones.residual_blocks import Bottleneck
from detkit.models.layers.predictors import linear_predictor
from detkit.models.roi_heads.bbox_heads.bbox_head import BBoxHead
from detkit.models.roi_heads.bbox_heads.class_losses import class_channels
from detkit.models.roi_heads.bbox_heads.conv_fc import fc_branch
from detkit.registry import MODELS

__all__ = ["DoubleConvFCBBoxHead"]

Cfg = Mapping[str, Any]


class WideningBlock(nn.Module):
    """A residual block with more channels after it than before.

    Args:
        in_channels: Channels before.
        out_channels: Channels after.
        norm_cfg: Norm layers.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: Cfg) -> None:
        super().__init__()
        self.conv1 = ConvModule(in_channels, in_channels, 3, padding=1, bias=False, norm_cfg=norm_cfg)
        self.conv2 = ConvModule(in_channels, out_channels, 1, bias=False, norm_cfg=norm_cfg, act_cfg=None)
        self.conv_identity = ConvModule(in_channels, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x)) + self.conv_identity(x)).relu()


@MODELS.register_module()
class DoubleConvFCBBoxHead(BBoxHead):
    """Linear layers say the class, residual blocks, averaged over the region, the box::

        features for classes -> fcs -> class
        features for boxes -> wider -> residual blocks -> mean -> box

    Args:
        num_convs: Residual blocks, at least 1.
        num_fcs: Linear layers, at least 1.
        conv_out_channels: Channels of the blocks.
        fc_out_channels: Features of the linear layers.
        conv_cfg: Registered convolution of the blocks.
        norm_cfg: Registered norm of the blocks; None is batch norm.
        init_cfg: Initialisation.
        with_avg_pool: Must be True.
        roi_feat_size: See :class:`BBoxHead`, as all that follows.
        in_channels: Channels of a region's features.
        num_classes: Classes of objects.
        bbox_coder: Registered box coder.
        predict_box_type: ``hbox``.
        reg_class_agnostic: One box for all classes.
        reg_decoded_bbox: Compare boxes instead of their encoding.
        reg_predictor_cfg: Registered last layer of boxes.
        cls_predictor_cfg: Registered last layer of classes.
        loss_cls: Registered loss of labels.
        loss_bbox: Registered loss of boxes.

    Raises:
        ValueError: No blocks or no linear layers, or parts that do not fit.
    """

    def __init__(
        self,
        num_convs: int = 0,
        num_fcs: int = 0,
        conv_out_channels: int = 1024,
        fc_out_channels: int = 1024,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        with_avg_pool: bool = True,
        roi_feat_size: int | tuple[int, int] = 7,
        in_channels: int = 256,
        num_classes: int = 80,
        bbox_coder: Cfg | None = None,
        predict_box_type: str = "hbox",
        reg_class_agnostic: bool = False,
        reg_decoded_bbox: bool = False,
        reg_predictor_cfg: Cfg | None = None,
        cls_predictor_cfg: Cfg | None = None,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
    ) -> None:
        if num_convs < 1 or num_fcs < 1:
            raise ValueError(
                f"DoubleConvFCBBoxHead: num_convs and num_fcs must be at least 1, got {num_convs} and {num_fcs}"
            )
        if not with_avg_pool:
            raise ValueError("DoubleConvFCBBoxHead: with_avg_pool=False has no definition; boxes are of the mean")
        super().__init__(
            with_avg_pool=with_avg_pool,
            roi_feat_size=roi_feat_size,
            in_channels=in_channels,
            num_classes=num_classes,
            bbox_coder=bbox_coder,
            predict_box_type=predict_box_type,
            reg_class_agnostic=reg_class_agnostic,
            reg_decoded_bbox=reg_decoded_bbox,
            loss_cls=loss_cls,
            loss_bbox=loss_bbox,
            init_cfg=init_cfg or _default_init(),
        )
        norm_cfg = norm_cfg or {"type": "BN"}
        rows, columns = (roi_feat_size, roi_feat_size) if isinstance(roi_feat_size, int) else roi_feat_size
        # MMDetection's has batch norm here whatever norm_cfg says.
        self.res_block = WideningBlock(in_channels, conv_out_channels, {"type": "BN"})
        self.conv_branch = nn.ModuleList(
            Bottleneck(conv_out_channels, conv_out_channels // 4, 1, 1, None, "pytorch", conv_cfg, norm_cfg)
            for _ in range(num_convs)
        )
        self.fc_branch, width = fc_branch(num_fcs, in_channels * rows * columns, fc_out_channels)
        self.fc_cls = linear_predictor(cls_predictor_cfg, width, class_channels(self.loss_cls, num_classes))
        num_boxes = 1 if reg_class_agnostic else num_classes
        self.fc_reg = linear_predictor(reg_predictor_cfg, conv_out_channels, num_boxes * self.encode_size)

    def forward(self, x_cls: Tensor, x_reg: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (R, C + 1) and encoded boxes (R, 4) or (R, C * 4).

        Args:
            x_cls: Features for classes (R, in_channels, rows, columns).
            x_reg: Features for boxes, of the same shape; None takes those for classes.
        """
        x_reg = self.res_block(x_cls if x_reg is None else x_reg)
        for block in self.conv_branch:
            x_reg = block(x_reg)
        x_cls = x_cls.flatten(1)
        for fc in self.fc_branch:
            x_cls = fc(x_cls).relu()
        return self.fc_cls(x_cls), self.fc_reg(x_reg.mean(dim=(2, 3)))


def _default_init() -> dict[str, Any]:
    return {
        "type": "Normal",
        "override": [
            {"type": "Normal", "name": "fc_cls", "std": 0.01},
            {"type": "Normal", "name": "fc_reg", "std": 0.001},
            {"type": "Xavier", "name": "fc_branch", "distribution": "uniform"},
        ],
    }
