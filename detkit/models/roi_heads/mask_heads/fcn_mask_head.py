"""The mask of a region, Mask R-CNN, https://arxiv.org/abs/1703.06870, figure 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.models.layers.predictors import conv_predictor
from detkit.models.roi_heads.mask_heads.mask_loss import roi_mask_loss
from detkit.models.roi_heads.mask_heads.mask_prediction import predict_masks
from detkit.models.roi_heads.mask_heads.mask_targets import Masks
from detkit.models.roi_heads.prediction import RoITestCfg
from detkit.models.roi_heads.sampling import PositiveRoIs
from detkit.registry import MODELS, check_keys

__all__ = ["FCNMaskHead"]

Cfg = Mapping[str, Any]
UPSAMPLING = ("deconv", "nearest", "bilinear", None)


@MODELS.register_module()
class FCNMaskHead(BaseModule):
    """Convolutions, upsampling, and a mask for each class, or one for all.

    Args:
        num_convs: Convolutions before the upsampling.
        roi_feat_size: Height and width of a region's features; convolutions take any.
        in_channels: Their channels.
        conv_kernel_size: Of the convolutions.
        conv_out_channels: Their channels.
        num_classes: Classes of objects.
        class_agnostic: One mask for all classes.
        upsample_cfg: ``type`` is ``deconv`` (a transposed convolution), ``nearest``, ``bilinear`` or None, and
            ``scale_factor``; None is a ``deconv`` of factor 2.
        conv_cfg: Registered convolution.
        norm_cfg: Registered norm after each convolution.
        predictor_cfg: Registered last layer; None is ``Conv``.
        loss_mask: Registered loss of masks; None is ``CrossEntropyLoss`` with ``use_mask``.
        init_cfg: None; the initialisation is the paper's.

    Raises:
        ValueError: An upsampling that is unknown, or has no factor, or an ``init_cfg``.
    """

    def __init__(
        self,
        num_convs: int = 4,
        roi_feat_size: int | tuple[int, int] = 14,
        in_channels: int = 256,
        conv_kernel_size: int = 3,
        conv_out_channels: int = 256,
        num_classes: int = 80,
        class_agnostic: bool = False,
        upsample_cfg: Cfg | None = None,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        predictor_cfg: Cfg | None = None,
        loss_mask: Cfg | None = None,
        init_cfg: None = None,
    ) -> None:
        if init_cfg is not None:
            raise ValueError(f"{type(self).__name__}: init_cfg must be None, the initialisation is the paper's")
        super().__init__()
        self.num_classes = num_classes
        self.class_agnostic = class_agnostic
        self.loss_mask = MODELS.build(loss_mask or {"type": "CrossEntropyLoss", "use_mask": True})
        widths = [in_channels] + [conv_out_channels] * num_convs
        self.convs = nn.ModuleList(
            ConvModule(
                width,
                conv_out_channels,
                conv_kernel_size,
                padding=(conv_kernel_size - 1) // 2,
                conv_cfg=conv_cfg,
                norm_cfg=norm_cfg,
            )
            for width in widths[:-1]
        )
        self.upsample, width = self._upsampling(upsample_cfg, widths[-1], conv_out_channels)
        self.conv_logits = conv_predictor(predictor_cfg, width, 1 if class_agnostic else num_classes)

    def _upsampling(self, cfg: Cfg | None, width: int, out_width: int) -> tuple[nn.Module | None, int]:
        """The layer, and its channels."""
        cfg = {"type": "deconv", "scale_factor": 2} if cfg is None else cfg
        check_keys(cfg, ("type", "scale_factor"), "upsample_cfg")
        kind, factor = cfg.get("type"), cfg.get("scale_factor")
        name = type(self).__name__
        if kind not in UPSAMPLING:
            raise ValueError(f"{name}: upsample_cfg.type {kind!r} is not one of {', '.join(map(repr, UPSAMPLING))}")
        if kind is None:
            return None, width
        if factor is None:
            raise ValueError(f"{name}: upsample_cfg.scale_factor is missing; 2 is usual")
        if kind == "deconv":
            return nn.ConvTranspose2d(width, out_width, factor, stride=factor), out_width
        # align_corners has no meaning to the nearest pixel.
        return nn.Upsample(scale_factor=factor, mode=kind, align_corners=None if kind == "nearest" else False), width

    def init_weights(self) -> None:
        """Kaiming's initialisation of the upsampling and the last layer too."""
        super().init_weights()
        for layer in (self.upsample, self.conv_logits):
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Mask logits (K, num_classes or 1, H, W) of features (K, in_channels, h, w)."""
        return self.logits(self.embed(x))

    def embed(self, x: Tensor) -> Tensor:
        """Features (K, conv_out_channels, h, w) after the convolutions."""
        for conv in self.convs:
            x = conv(x)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Mask logits (K, num_classes or 1, H, W) of what :meth:`embed` gives."""
        if self.upsample is not None:
            x = self.upsample(x)
        if isinstance(self.upsample, nn.ConvTranspose2d):
            x = x.relu()
        return self.conv_logits(x)

    def loss_and_target(
        self, mask_preds: Tensor, positives: PositiveRoIs, batch_masks: Masks, rcnn_train_cfg: Any
    ) -> dict[str, Any]:
        """``loss_mask``, the losses of K positive RoIs by name, and ``mask_targets`` (K, H, W).

        Args:
            mask_preds: Logits (K, num_classes or 1, H, W).
            positives: The RoIs.
            batch_masks: Masks of the objects of each image.
            rcnn_train_cfg: With ``mask_size``.
        """
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
