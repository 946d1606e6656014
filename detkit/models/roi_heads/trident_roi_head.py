"""The second stage of TridentNet, Li et al., https://arxiv.org/abs/1901.01892."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.models.dense_heads.prediction.postprocess import suppress_images
from detkit.models.roi_heads.standard_roi_head import StandardRoIHead
from detkit.registry import MODELS
from detkit.structures import DetDataSample
from detkit.structures.proposals import Proposals

__all__ = ["TridentRoIHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class TridentRoIHead(StandardRoIHead):
    """Classes and boxes of the proposals of each branch, which suppress each other in prediction.

    Args:
        num_branch: Branches of the backbone.
        test_branch_idx: The branch that runs in evaluation; -1 runs all.
        bbox_roi_extractor: Registered RoI extractor.
        bbox_head: Registered box head.
        shared_head: Registered layers between the two (C4).
        train_cfg: As of StandardRoIHead.
        test_cfg: As of StandardRoIHead.
        init_cfg: Initialisation.
    """

    def __init__(
        self,
        num_branch: int,
        test_branch_idx: int,
        bbox_roi_extractor: Cfg,
        bbox_head: Cfg,
        shared_head: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(
            bbox_roi_extractor,
            bbox_head,
            shared_head=shared_head,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            init_cfg=init_cfg,
        )
        self.num_branch = num_branch
        self.test_branch_idx = test_branch_idx

    def predict(
        self,
        x: Sequence[Tensor],
        rpn_results_list: Proposals | Sequence[InstanceData],
        batch_data_samples: Sequence[DetDataSample],
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Detections of each image: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), best first.

        Args:
            x: Levels (B * N, C, H_l, W_l) of B running branches.
            rpn_results_list: Proposals of these.
            batch_data_samples: Of N images.
            rescale: Return boxes in the frame of the original image.
        """
        num_images = len(batch_data_samples)
        branches = len(x[0]) // num_images
        found = super().predict(x, rpn_results_list, list(batch_data_samples) * branches, rescale)
        if branches == 1:
            return found
        device = x[0].device
        images = [torch.full((len(one),), row % num_images, device=device) for row, one in enumerate(found)]
        limit = self.test_cfg.max_per_img if self.test_cfg.max_per_img > 0 else -1
        return suppress_images(
            torch.cat([one.bboxes for one in found]),
            torch.cat([one.scores for one in found]),
            torch.cat([one.labels for one in found]),
            torch.cat(images),
            num_images,
            self.test_cfg.nms,
            limit,
        )
