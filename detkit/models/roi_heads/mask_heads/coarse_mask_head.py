"""The coarse mask of a region, PointRend, Kirillov et al., https://arxiv.org/abs/1912.08193, appendix A."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.losses.reduction import check_number
from detkit.models.roi_heads.mask_heads.mask_loss import roi_mask_loss
from detkit.models.roi_heads.mask_heads.mask_prediction import predict_masks
from detkit.models.roi_heads.mask_heads.mask_targets import Masks
from detkit.models.roi_heads.prediction import RoITestCfg
from detkit.models.roi_heads.sampling import PositiveRoIs
from detkit.registry import MODELS

__all__ = ["CoarseMaskHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class CoarseMaskHead(BaseModule):
    """Convolutions, one that makes the features smaller, linear layers, and a mask for each class.

    Args:
        num_convs: Convolutions before the one that makes the features smaller.
        num_fcs: Linear layers, at least one.
        fc_out_channels: Their features.
        downsample_factor: Cells of the features, along a side, for each of the mask; 1 has no such convolution.
        init_cfg: Initialisation; None is Xavier's of the linear layers, 0.001 for the last.
        roi_feat_size: Height and width of a region's features.
        in_channels: Their channels.
        conv_kernel_size: Of the convolutions.
        conv_out_channels: Channels of the convolutions.
        num_classes: Classes of objects.
        conv_cfg: Registered convolution.
        norm_cfg: Registered norm after each convolution.
        loss_mask: Registered loss of masks; None is ``CrossEntropyLoss`` with ``use_mask``.

    Raises:
        TypeError: A number was expected.
        ValueError: A number out of its range.
    """

    def __init__(
        self,
        num_convs: int = 0,
        num_fcs: int = 2,
        fc_out_channels: int = 1024,
        downsample_factor: int = 2,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        roi_feat_size: int | tuple[int, int] = 14,
        in_channels: int = 256,
        conv_kernel_size: int = 3,
        conv_out_channels: int = 256,
        num_classes: int = 80,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        loss_mask: Cfg | None = None,
    ) -> None:
        if init_cfg is None:
            override = [{"name": "fcs"}, {"type": "Constant", "val": 0.001, "name": "fc_logits"}]
            init_cfg = {"type": "Xavier", "override": override}
        super().__init__(init_cfg)
        name = type(self).__name__
        check_number(name, "num_fcs", num_fcs, low=1, whole=True)
        check_number(name, "downsample_factor", downsample_factor, low=1, whole=True)
        self.num_classes = num_classes
        self.loss_mask = MODELS.build(loss_mask or {"type": "CrossEntropyLoss", "use_mask": True})
        widths = [in_channels] + [conv_out_channels] * num_convs
        layers = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg}
        self.convs = nn.ModuleList(
            ConvModule(width, conv_out_channels, conv_kernel_size, padding=(conv_kernel_size - 1) // 2, **layers)
            for width in widths[:-1]
        )
        width = widths[-1]
        if downsample_factor > 1:
            self.downsample_conv = ConvModule(
                width, conv_out_channels, downsample_factor, stride=downsample_factor, **layers
            )
            width = conv_out_channels
        self.with_downsample = downsample_factor > 1
        rows, columns = (roi_feat_size, roi_feat_size) if isinstance(roi_feat_size, int) else roi_feat_size
        self.output_size = (rows // downsample_factor, columns // downsample_factor)
        area = self.output_size[0] * self.output_size[1]
        features = [width * area] + [fc_out_channels] * num_fcs
        self.fcs = nn.ModuleList(nn.Linear(size, fc_out_channels) for size in features[:-1])
        self.fc_logits = nn.Linear(fc_out_channels, num_classes * area)

    def forward(self, x: Tensor) -> Tensor:
        """Mask logits (K, num_classes, H, W) of features (K, in_channels, h, w)."""
        for conv in self.convs:
            x = conv(x)
        if self.with_downsample:
            x = self.downsample_conv(x)
        x = x.flatten(1)
        for fc in self.fcs:
            x = fc(x).relu()
        return self.fc_logits(x).view(len(x), self.num_classes, *self.output_size)

    def loss_and_target(
        self, mask_preds: Tensor, positives: PositiveRoIs, batch_masks: Masks, rcnn_train_cfg: Any
    ) -> dict[str, Any]:
        """``loss_mask``, the losses of K positive RoIs by name, and ``mask_targets`` (K, H, W)."""
        return roi_mask_loss(mask_preds, positives, batch_masks, self.loss_mask, rcnn_train_cfg.mask_size)

    def predict_by_feat(
        self,
        mask_preds: Sequence[Tensor],
        results_list: list[InstanceData],
        batch_img_metas: Sequence[Mapping[str, Any]],
        rcnn_test_cfg: RoITestCfg,
        rescale: bool = False,
        activate_map: bool = False,
    ) -> list[InstanceData]:
        """The detections with their masks, see :func:`predict_masks`."""
        return predict_masks(mask_preds, results_list, batch_img_metas, rcnn_test_cfg, rescale, activate_map)
