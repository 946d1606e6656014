"""The mask of a region that has been looked at before, Hybrid Task Cascade, Chen et al.,
https://arxiv.org/abs/1901.07518, section 3.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcv.cnn import ConvModule
from torch import Tensor

from detkit.models.roi_heads.mask_heads.fcn_mask_head import FCNMaskHead
from detkit.registry import MODELS

__all__ = ["HTCMaskHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class HTCMaskHead(FCNMaskHead):
    """A mask head that takes up what the head of the stage before made of the same region; further arguments as those
    of ``FCNMaskHead``.

    Args:
        with_conv_res: Take it up, through a 1x1 convolution; a first stage has none to take up. ``in_channels`` and
            ``conv_out_channels`` must agree.

    Raises:
        ValueError: They do not.
    """

    def __init__(
        self,
        with_conv_res: bool = True,
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
        super().__init__(
            num_convs=num_convs,
            roi_feat_size=roi_feat_size,
            in_channels=in_channels,
            conv_kernel_size=conv_kernel_size,
            conv_out_channels=conv_out_channels,
            num_classes=num_classes,
            class_agnostic=class_agnostic,
            upsample_cfg=upsample_cfg,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            predictor_cfg=predictor_cfg,
            loss_mask=loss_mask,
            init_cfg=init_cfg,
        )
        self.conv_res = None
        if with_conv_res:
            if in_channels != conv_out_channels:
                raise ValueError(
                    f"{type(self).__name__}: with_conv_res needs in_channels={in_channels} and "
                    f"conv_out_channels={conv_out_channels} to be equal"
                )
            self.conv_res = ConvModule(conv_out_channels, conv_out_channels, 1, conv_cfg=conv_cfg, norm_cfg=norm_cfg)

    def embed(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """What a next stage takes up (K, conv_out_channels, h, w), of features (K, in_channels, h, w).

        Args:
            x: Features of K regions.
            before: What the stage before made of them.
        """
        if before is not None and self.conv_res is not None:
            x = x + self.conv_res(before)
        return super().embed(x)

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """Mask logits (K, num_classes or 1, H, W); arguments as of :meth:`embed`."""
        return self.logits(self.embed(x, before))
