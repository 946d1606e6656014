"""TridentNet, Li et al., https://arxiv.org/abs/1901.01892: Faster R-CNN on the branches of its backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.structures import InstanceData
from torch import Tensor

from detkit.models.detectors.two_stage import TwoStageDetector
from detkit.registry import MODELS
from detkit.structures import DetDataSample
from detkit.structures.proposals import Proposals

__all__ = ["TridentFasterRCNN"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class TridentFasterRCNN(TwoStageDetector):
    """Faster R-CNN to which each branch of an image is an image.

    Args:
        backbone: TridentResNet.
        rpn_head: Registered dense head that proposes regions of any class.
        roi_head: TridentRoIHead.
        train_cfg: As of TwoStageDetector.
        test_cfg: As of TwoStageDetector.
        neck: Registered neck; None has none.
        data_preprocessor: Registered data preprocessor.
        init_cfg: Initialisation.

    Raises:
        ValueError: Backbone and RoI head have other branches.
    """

    def __init__(
        self,
        backbone: Cfg,
        rpn_head: Cfg,
        roi_head: Cfg,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        neck: Cfg | None = None,
        data_preprocessor: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(backbone, neck, rpn_head, roi_head, train_cfg, test_cfg, data_preprocessor, init_cfg)
        for name in ("num_branch", "test_branch_idx"):
            own, other = getattr(self.backbone, name, None), getattr(self.roi_head, name, None)
            if own is None or own != other:
                raise ValueError(
                    f"TridentFasterRCNN: {name} of backbone ({own}) and of roi_head ({other}) must be the same"
                )

    def loss(self, batch_inputs: Tensor, batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Named losses of images (N, 3, H, W), of both stages and all branches that run."""
        runs_all = self.training or self.backbone.test_branch_idx == -1
        return super().loss(batch_inputs, list(batch_data_samples) * (self.backbone.num_branch if runs_all else 1))

    def _proposals(
        self, features: Sequence[Tensor], samples: Sequence[DetDataSample]
    ) -> Proposals | Sequence[InstanceData]:
        return super()._proposals(features, list(samples) * (len(features[0]) // len(samples)))
