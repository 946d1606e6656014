"""Localization distillation on GFL, Zheng et al., https://arxiv.org/abs/2102.12252."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from detkit.models.dense_heads.gfl_head import GFLHead
from detkit.models.dense_heads.prediction.flatten import flatten_levels
from detkit.models.dense_heads.targets.part_checks import check_loss
from detkit.registry import MODELS
from detkit.structures import DetDataSample

__all__ = ["LDHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class LDHead(GFLHead):
    """A GFL head that also learns its sides' distributions from a teacher's; arguments else as :class:`GFLHead`.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        loss_ld: Loss on the logits of the distributions and the teacher's; None is
            ``KnowledgeDistillationKLDivLoss`` with weight 1/4 and temperature 10.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        loss_ld: Cfg | None = None,
        stacked_convs: int = 4,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        loss_dfl: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        reg_max: int = 16,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        feat_channels: int = 256,
        anchor_generator: Cfg | None = None,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
    ) -> None:
        super().__init__(
            num_classes,
            in_channels,
            stacked_convs=stacked_convs,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            loss_dfl=loss_dfl,
            bbox_coder=bbox_coder,
            reg_max=reg_max,
            init_cfg=init_cfg,
            feat_channels=feat_channels,
            anchor_generator=anchor_generator,
            loss_cls=loss_cls,
            loss_bbox=loss_bbox,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
        )
        self.loss_ld = MODELS.build(loss_ld or {"type": "KnowledgeDistillationKLDivLoss", "loss_weight": 0.25, "T": 10})
        check_loss(self.loss_ld, ["distributions of a teacher"], "LDHead", "loss_ld")

    def loss(  # type: ignore[override]  # MMDetection's order of arguments
        self,
        x: Sequence[Tensor],
        out_teacher: tuple[Sequence[Tensor], Sequence[Tensor]],
        batch_data_samples: Sequence[DetDataSample],
    ) -> dict[str, Tensor]:
        """Losses ``loss_cls``, ``loss_bbox``, ``loss_dfl`` and ``loss_ld``.

        Args:
            x: Levels (N, in_channels, H_l, W_l).
            out_teacher: What the teacher's head gives for these images: its logits of classes, which are not used,
                and of the sides (N, 4 * (reg_max + 1), H_l, W_l).
            batch_data_samples: With ``gt_instances``.

        Raises:
            ValueError: The teacher's levels or distributions are others.
        """
        sizes, logits, sides = self.flat(x)
        losses, certainty = self.losses(sizes, logits, sides, batch_data_samples)
        soft = [tuple(level.shape[1:]) for level in out_teacher[1]]
        if soft != [(self.encode_size, *size) for size in sizes]:
            raise ValueError(
                f"LDHead: the teacher's distributions {soft} are not of {self.encode_size} channels on levels {sizes}; "
                "strides and reg_max of both heads must be the same"
            )
        numbers = self.integral.reg_max + 1
        weight = certainty.unsqueeze(-1).expand(*certainty.shape, 4)
        # Not divided by the certainties' sum, as the other two losses of sides are: so is MMDetection's.
        losses["loss_ld"] = self.loss_ld(
            sides.reshape(-1, numbers),
            flatten_levels(out_teacher[1], self.encode_size).reshape(-1, numbers),
            weight=weight.flatten(),
            avg_factor=4.0,
        )
        return losses
