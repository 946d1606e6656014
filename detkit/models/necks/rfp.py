"""Recursive feature pyramid of DetectoRS, Qiao et al., https://arxiv.org/abs/2006.02334; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import xavier_init
from torch import Tensor, nn

from detkit.models.necks.fpn import FPN
from detkit.registry import MODELS

__all__ = ["RFP"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class RFP(FPN):
    """FPN whose outputs are fed back into a backbone, and mixed with what comes out then.

    The backbone before it returns the images, too (``output_img=True``).

    Args:
        rfp_steps: How many times the pyramid is computed.
        rfp_backbone: Registered backbone of each further time, with ``rfp_forward``.
        aspp_out_channels: Channels of each of the four branches that make the feedback.
        aspp_dilations: Dilations of these; the last looks at the mean of the image, and must be 1.
        init_cfg: Must be None: the backbones inside start from their own weights.
        in_channels: As FPN's, as are the following.
        out_channels: As above.
        num_outs: As above.
        start_level: As above.
        end_level: As above.
        add_extra_convs: As above.
        relu_before_extra_convs: As above.
        no_norm_on_lateral: As above.
        conv_cfg: As above.
        norm_cfg: As above.
        act_cfg: As above.
        upsample_cfg: As above.

    Raises:
        ValueError: An ``init_cfg``, ``rfp_steps`` below 1, or a last dilation that is not 1.
    """

    def __init__(
        self,
        rfp_steps: int,
        rfp_backbone: Cfg,
        aspp_out_channels: int,
        aspp_dilations: Sequence[int] = (1, 3, 6, 1),
        init_cfg: Cfg | None = None,
        *,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        start_level: int = 0,
        end_level: int = -1,
        add_extra_convs: bool | str = False,
        relu_before_extra_convs: bool = False,
        no_norm_on_lateral: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = None,
        upsample_cfg: Cfg | None = None,
    ) -> None:
        if init_cfg is not None:
            raise ValueError(f"RFP: init_cfg would undo the weights of its backbones, got {init_cfg!r}")
        if rfp_steps < 1 or aspp_dilations[-1] != 1:
            raise ValueError(
                "RFP: rfp_steps must be at least 1 and the last of aspp_dilations 1, got "
                f"{rfp_steps} and {tuple(aspp_dilations)}"
            )
        super().__init__(
            in_channels,
            out_channels,
            num_outs,
            start_level=start_level,
            end_level=end_level,
            add_extra_convs=add_extra_convs,
            relu_before_extra_convs=relu_before_extra_convs,
            no_norm_on_lateral=no_norm_on_lateral,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
            upsample_cfg=upsample_cfg,
        )
        self.rfp_modules = nn.ModuleList(MODELS.build(rfp_backbone) for _ in range(rfp_steps - 1))
        self.rfp_aspp = _ASPP(out_channels, aspp_out_channels, aspp_dilations)
        self.rfp_weight = nn.Conv2d(out_channels, 1, 1)

    def init_weights(self) -> None:
        """The pyramid's convolutions by Xavier, each backbone as it says, half of each pyramid in the mixture."""
        for module in [*self.lateral_convs.modules(), *self.fpn_convs.modules()]:
            if isinstance(module, nn.Conv2d):
                xavier_init(module, distribution="uniform")
        for backbone in self.rfp_modules:
            backbone.init_weights()  # type: ignore[operator]
        nn.init.zeros_(self.rfp_weight.weight)
        nn.init.zeros_(self.rfp_weight.bias)  # type: ignore[arg-type]

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs (N, out_channels, H_i, W_i), fine to coarse, of images and inputs (N, in_channels[i], H_i, W_i)."""
        image, *features = inputs
        levels = super().forward(features)
        for backbone in self.rfp_modules:
            # The finest level's feedback would go to the first stage, which takes none.
            feedback = [levels[0], *(self.rfp_aspp(level) for level in levels[1 : len(features)])]
            stages = backbone.rfp_forward(image, feedback)  # type: ignore[operator]
            again = super().forward(stages)
            levels = tuple(self._mixed(new, old) for new, old in zip(again, levels, strict=True))
        return levels

    def _mixed(self, new: Tensor, old: Tensor) -> Tensor:
        share = self.rfp_weight(new).sigmoid()
        return share * new + (1 - share) * old


class _ASPP(nn.Module):
    """Four looks at a map, three of them at different distances, one at its mean."""

    def __init__(self, in_channels: int, out_channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.aspp = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels, 3, dilation=dilation, padding=dilation)
            if dilation > 1
            else nn.Conv2d(in_channels, out_channels, 1)
            for dilation in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, branches * out_channels, H, W)."""
        *local, last = self.aspp
        seen = [F.relu(conv(x)) for conv in local]
        mean = F.relu(last(F.adaptive_avg_pool2d(x, 1)))
        return torch.cat([*seen, mean.expand_as(seen[-1])], dim=1)
