"""The second stage of PointRend, Kirillov et al., https://arxiv.org/abs/1912.08193."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.models.roi_heads.mask_heads.mask_point_head import most_uncertain, points_in_image, uncertain_points
from detkit.models.roi_heads.mask_heads.mask_prediction import of_own_class
from detkit.models.roi_heads.prediction import ROI_TEST_CFG_KEYS
from detkit.models.roi_heads.sampling import SampledRoIs
from detkit.models.roi_heads.standard_roi_head import StandardRoIHead
from detkit.models.roi_heads.train_cfg import ROI_TRAIN_CFG_KEYS
from detkit.ops.point_sample import point_sample
from detkit.ops.values import check_range
from detkit.registry import MODELS, check_keys
from detkit.structures import DetDataSample
from detkit.structures.boxes import bbox2roi

__all__ = ["PointRendRoIHead"]

Cfg = Mapping[str, Any]
POINT_TRAIN_KEYS = ("num_points", "oversample_ratio", "importance_sample_ratio")
POINT_TEST_KEYS = ("subdivision_steps", "subdivision_num_points", "scale_factor")


@MODELS.register_module()
class PointRendRoIHead(StandardRoIHead):
    """StandardRoIHead with coarse masks, and a head that decides their least certain points anew.

    Args:
        point_head: Registered head of points.
        bbox_roi_extractor: Registered RoI extractor.
        bbox_head: Registered box head.
        mask_roi_extractor: Registered RoI extractor of masks; points take their features from its levels.
        mask_head: Registered mask head.
        shared_head: Registered layers between the extractor and both heads (C4).
        train_cfg: As of StandardRoIHead, and ``num_points``, how many points of a mask are learnt, of
            ``oversample_ratio`` times as many drawn, and ``importance_sample_ratio``, the share that is chosen.
        test_cfg: As of StandardRoIHead, and ``subdivision_steps``, how often a mask becomes ``scale_factor`` times
            larger, and ``subdivision_num_points``, how many of its cells are decided anew each time.
        init_cfg: Initialisation.

    Raises:
        KeyError: A key that nothing reads.
        ValueError: There is no mask head or no RoI extractor of masks, or a number is out of its range.
    """

    train_cfg_keys = (*ROI_TRAIN_CFG_KEYS, *POINT_TRAIN_KEYS)
    test_cfg_keys = (*ROI_TEST_CFG_KEYS, *POINT_TEST_KEYS)

    def __init__(
        self,
        point_head: Cfg,
        bbox_roi_extractor: Cfg,
        bbox_head: Cfg,
        mask_roi_extractor: Cfg | None = None,
        mask_head: Cfg | None = None,
        shared_head: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        if mask_head is None or mask_roi_extractor is None:
            raise ValueError("PointRendRoIHead: mask_head and mask_roi_extractor are needed")
        check_keys(test_cfg, self.test_cfg_keys, "test_cfg")
        test_cfg = dict(test_cfg or {})
        numbers = {key: test_cfg.pop(key) for key in POINT_TEST_KEYS if key in test_cfg}
        super().__init__(
            bbox_roi_extractor, bbox_head, mask_roi_extractor, mask_head, shared_head, train_cfg, test_cfg, init_cfg
        )
        self.point_head = MODELS.build(point_head)
        self.subdivision_steps = numbers.get("subdivision_steps", 5)
        self.subdivision_num_points = numbers.get("subdivision_num_points", 28 * 28)
        self.scale_factor = numbers.get("scale_factor", 2)
        self.num_points = self.train_cfg.extra.get("num_points", 14 * 14)
        self.oversample_ratio = self.train_cfg.extra.get("oversample_ratio", 3)
        self.importance_sample_ratio = self.train_cfg.extra.get("importance_sample_ratio", 0.75)
        check_range("train_cfg.oversample_ratio", self.oversample_ratio, 1)
        check_range("train_cfg.importance_sample_ratio", self.importance_sample_ratio, 0, 1)

    def _mask_loss(
        self,
        x: Sequence[Tensor],
        bbox_feats: Tensor,
        sampled: SampledRoIs,
        batch_data_samples: Sequence[DetDataSample],
    ) -> dict[str, Tensor]:
        learnt = self._learn_masks(x, bbox_feats, sampled, batch_data_samples)
        positives = learnt.positives
        points = uncertain_points(
            learnt.mask_preds,
            positives.labels,
            self.num_points,
            self.oversample_ratio,
            self.importance_sample_ratio,
        )
        fine = self._fine_features(x, positives.rois, points, positives.counts)
        logits = self.point_head(fine, point_sample(learnt.mask_preds, points))
        of_points = self.point_head.loss_and_target(logits, points, positives, learnt.masks)
        return {**learnt.losses, "loss_point": of_points["loss_point"]}

    def _fine_features(self, x: Sequence[Tensor], rois: Tensor, points: Tensor, counts: Sequence[int]) -> Tensor:
        """Features (K, channels of all levels, P) at points (K, P, 2) in [0, 1] of RoIs (K, 5).

        Args:
            x: Levels (N, C, H_l, W_l).
            rois: Image after image.
            points: In each RoI.
            counts: RoIs of each image.
        """
        pixels = points_in_image(rois, points).split(list(counts))
        found = []
        for level, stride in zip(x, self.mask_roi_extractor.featmap_strides, strict=False):
            size = torch.tensor([level.shape[3] * stride, level.shape[2] * stride], dtype=pixels[0].dtype)
            size = size.to(level.device, non_blocking=True)
            # All points of an image at once, (1, C, K_i * P), then apart again.
            of_images = [
                point_sample(one[None], (at / size).flatten(0, 1)[None])[0].unflatten(1, at.shape[:2]).transpose(0, 1)
                for one, at in zip(level, pixels, strict=True)
            ]
            found.append(torch.cat(of_images))
        return torch.cat(found, dim=1)

    def _predict_mask(
        self, x: Sequence[Tensor], found: list[InstanceData], metas: Sequence[Mapping[str, Any]], rescale: bool
    ) -> list[InstanceData]:
        rois = [bbox2roi([one.bboxes]) for one in found]
        mask_preds, _ = self._mask_forward(x, bbox2roi([one.bboxes for one in found]))
        coarse = mask_preds.split([len(one) for one in found])
        refined = [
            self._refine([level[image : image + 1] for level in x], rois[image], one.labels, coarse[image])
            for image, one in enumerate(found)
        ]
        return self.mask_head.predict_by_feat(refined, found, metas, self.test_cfg, rescale)

    def _refine(self, x: Sequence[Tensor], rois: Tensor, labels: Tensor, coarse: Tensor) -> Tensor:
        """Masks of an image made larger step by step, the least certain cells decided anew (section 3.1).

        Only the mask of each detection's own class is kept: those of all would be C times as large.

        Args:
            x: Levels (1, C, H_l, W_l).
            rois: (D, 5).
            labels: (D,).
            coarse: Logits (D, C, h, w).

        Returns:
            Logits (D, 1, H, W).
        """
        own = of_own_class(coarse, labels).unsqueeze(1).float()
        if len(own) == 0:
            return own
        for step in range(self.subdivision_steps):
            own = F.interpolate(own, scale_factor=self.scale_factor, mode="bilinear", align_corners=False)
            height, width = own.shape[2:]
            is_last = step == self.subdivision_steps - 1
            # The next step decides all cells of this size anew.
            if self.subdivision_num_points >= self.scale_factor**2 * height * width and not is_last:
                continue
            cells, points = most_uncertain(own[:, 0], self.subdivision_num_points)
            fine = self._fine_features(x, rois, points, [len(rois)])
            logits = self.point_head(fine, point_sample(coarse, points)).float()
            decided = of_own_class(logits.unsqueeze(2), labels)
            own = own.flatten(2).scatter(2, cells.unsqueeze(1), decided).unflatten(2, (height, width))
        return own
