"""Features for anchors of their shape (Guided Anchoring, https://arxiv.org/abs/1901.03278, 3.4)."""

from __future__ import annotations

from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.ops import DeformConv2d

__all__ = ["FeatureAdaption"]


class FeatureAdaption(BaseModule):
    """A deformable convolution whose offsets follow from the shape of the anchor at each place.

    Args:
        in_channels: C.
        out_channels: C'.
        deform_groups: Groups of channels with offsets of their own.
    """

    def __init__(self, in_channels: int, out_channels: int, deform_groups: int = 4) -> None:
        super().__init__(
            {
                "type": "Normal",
                "layer": "Conv2d",
                "std": 0.1,
                "override": {"type": "Normal", "name": "conv_adaption", "std": 0.01},
            }
        )
        self.conv_offset = nn.Conv2d(2, deform_groups * 18, 1, bias=False)
        self.conv_adaption = DeformConv2d(in_channels, out_channels, 3, padding=1, deform_groups=deform_groups)

    def forward(self, x: Tensor, shape: Tensor) -> Tensor:
        """(N, C', H, W) of ``x`` (N, C, H, W) and encoded shapes (N, 2, H, W), which learn nothing here."""
        # Shapes are learnt from objects alone, and not from what the features would like.
        return self.conv_adaption(x, self.conv_offset(shape.detach())).relu()
