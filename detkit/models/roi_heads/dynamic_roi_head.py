"""The second stage of Dynamic R-CNN, Zhang et al., https://arxiv.org/abs/2004.06002."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from detkit.losses import SmoothL1Loss
from detkit.losses.reduction import check_number, reduce_mean
from detkit.models.roi_heads.sampling import SampledRoIs
from detkit.models.roi_heads.standard_roi_head import Proposed, StandardRoIHead
from detkit.models.roi_heads.train_cfg import ROI_TRAIN_CFG_KEYS
from detkit.registry import MODELS, check_keys
from detkit.structures import DetDataSample

__all__ = ["DynamicCfg", "DynamicRoIHead"]

Cfg = Mapping[str, Any]
# A median of targets below this is no measure of how well boxes are predicted.
LEAST_BETA = 1e-15


@dataclass(frozen=True)
class DynamicCfg:
    """What ``train_cfg.rcnn.dynamic_rcnn`` says (K_I, K_beta and C of the paper, section 3).

    Attributes:
        iou_topk: The IoU of an image is that of its so-manieth best proposal, objects that the sampler adds included.
        beta_topk: The target of an image is its so-manieth smallest.
        update_iter_interval: Steps between changes of threshold and beta.
        initial_iou: Least threshold.
        initial_beta: Greatest beta.
    """

    iou_topk: int
    beta_topk: int
    update_iter_interval: int
    initial_iou: float
    initial_beta: float

    @classmethod
    def of(cls, cfg: Cfg | None, head: str) -> DynamicCfg:
        """Read the dict; ``head`` is whose it is, for messages."""
        place, names = "train_cfg.dynamic_rcnn", [field.name for field in fields(cls)]
        check_keys(cfg, names, place)
        missing = [name for name in names if name not in (cfg or {})]
        if missing:
            raise ValueError(f"{head}: {place} lacks {', '.join(missing)}")
        built = cls(**(cfg or {}))
        for name in names[:3]:
            check_number(f"{head}: {place}", name, getattr(built, name), low=1, whole=True)
        check_number(f"{head}: {place}", "initial_iou", built.initial_iou, low=0, high=1)
        check_number(f"{head}: {place}", "initial_beta", built.initial_beta, above=0)
        return built


@MODELS.register_module()
class DynamicRoIHead(StandardRoIHead):
    """As proposals get better, an object is asked a higher IoU of, and the box loss looks at smaller errors.

    Every so many steps the IoU threshold of the assigner becomes the mean of what images had (eq. 2), and beta of
    the smooth L1 loss the median (eq. 4). All of that stays on the device, so that no step waits for it, and is the
    same in each process: the mean over them. It is no part of the state dict, but of what a run is resumed from.

    Args:
        bbox_roi_extractor: See :class:`StandardRoIHead`, as all that follows.
        bbox_head: Registered box head, with a SmoothL1Loss as ``loss_bbox``.
        mask_roi_extractor: Registered RoI extractor of masks.
        mask_head: Registered mask head.
        shared_head: Registered layers between the extractor and both heads.
        train_cfg: As there, and ``dynamic_rcnn``, see :class:`DynamicCfg`; the assigner is a MaxIoUAssigner with one
            ``neg_iou_thr``.
        test_cfg: ``score_thr``, ``nms``, ``max_per_img`` and ``mask_thr_binary``.
        init_cfg: Initialisation.

    Raises:
        ValueError: ``dynamic_rcnn`` lacks something or is out of range, or parts without what is to change.
    """

    train_cfg_keys = (*ROI_TRAIN_CFG_KEYS, "dynamic_rcnn")
    thresholds: Tensor
    beta: Tensor
    num_steps: Tensor
    iou_history: Tensor
    beta_history: Tensor

    def __init__(
        self,
        bbox_roi_extractor: Cfg,
        bbox_head: Cfg,
        mask_roi_extractor: Cfg | None = None,
        mask_head: Cfg | None = None,
        shared_head: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(
            bbox_roi_extractor, bbox_head, mask_roi_extractor, mask_head, shared_head, train_cfg, test_cfg, init_cfg
        )
        loss = getattr(self.bbox_head, "loss_bbox", None)
        if not isinstance(loss, SmoothL1Loss):
            raise ValueError(f"DynamicRoIHead: loss_bbox must be a SmoothL1Loss, with beta, got {type(loss).__name__}")
        assigner = self.train_cfg.assigner
        if assigner is None:
            return
        self.dynamic = DynamicCfg.of(self.train_cfg.extra.get("dynamic_rcnn"), "DynamicRoIHead")
        initial = [getattr(assigner, name, None) for name in ("pos_iou_thr", "neg_iou_thr", "min_pos_iou")]
        if not all(isinstance(value, (int, float)) for value in initial):
            raise ValueError(
                "DynamicRoIHead: train_cfg.assigner must have pos_iou_thr, neg_iou_thr and min_pos_iou, each a number, "
                f"as MaxIoUAssigner; {type(assigner).__name__} has {initial}"
            )
        nothing = torch.full((self.dynamic.update_iter_interval,), torch.nan)
        state = {
            "thresholds": torch.tensor(initial, dtype=torch.float32),
            "beta": torch.tensor(loss.beta, dtype=torch.float32),
            "num_steps": torch.zeros((), dtype=torch.int64),
            "iou_history": nothing.clone(),
            "beta_history": nothing,
        }
        for name, value in state.items():
            self.register_buffer(name, value, persistent=False)
        self.state_names = tuple(state)

    def loss(
        self, x: Sequence[Tensor], rpn_results_list: Proposed, batch_data_samples: Sequence[DetDataSample]
    ) -> dict[str, Tensor]:
        """As of :class:`StandardRoIHead`; ``iou_thr`` and ``beta`` beside them are to be logged.

        Args:
            x: Levels (N, C, H_l, W_l).
            rpn_results_list: Proposals of N images.
            batch_data_samples: Their annotations.
        """
        assigner = self.train_cfg.assigner
        if assigner is not None:
            assigner.pos_iou_thr, assigner.neg_iou_thr, assigner.min_pos_iou = self.thresholds.clone().unbind()
            self.bbox_head.loss_bbox.beta = self.beta.clone()
        return super().loss(x, rpn_results_list, batch_data_samples)

    def _bbox_loss(self, outputs: Mapping[str, Tensor], sampled: SampledRoIs) -> dict[str, Tensor]:
        found = self.bbox_head.loss_and_target(outputs["cls_score"], outputs["bbox_pred"], sampled, self.train_cfg)
        logged = {"iou_thr": self.thresholds[0].clone(), "beta": self.beta.clone()}
        if self.training:
            _, _, targets, weights = found["bbox_targets"]
            self._learn(*_statistics(sampled, targets, weights[:, 0] > 0, self.dynamic))
        return {**found["loss_bbox"], **logged}

    @torch.no_grad()
    def _learn(self, iou: Tensor, target: Tensor) -> None:
        """Remember what a step had, each () and NaN where it had none, and change threshold and beta if it is time."""
        interval = self.dynamic.update_iter_interval
        place = (self.num_steps % interval).view(1)
        self.iou_history.scatter_(0, place, iou.view(1))
        self.beta_history.scatter_(0, place, target.view(1))
        self.num_steps += 1
        due = self.num_steps % interval == 0
        iou = self.iou_history.nanmean().clamp(min=self.dynamic.initial_iou)
        self.thresholds.copy_(torch.where(due & iou.isfinite(), iou, self.thresholds))
        beta = _median(self.beta_history)
        learnt = due & (beta >= LEAST_BETA)  # NaN is not
        self.beta.copy_(torch.where(learnt, beta.clamp(max=self.dynamic.initial_beta), self.beta))
        for history in (self.iou_history, self.beta_history):
            history.copy_(torch.where(due, torch.nan, history))

    def resume_state(self) -> dict[str, Tensor]:
        """What a resumed run needs besides weights: thresholds, and what the steps since the last change had."""
        return {name: getattr(self, name) for name in self.state_names} if self.train_cfg.assigner is not None else {}

    def load_resume_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up :meth:`resume_state`.

        Raises:
            ValueError: It is of another ``update_iter_interval``.
        """
        for name, value in state.items():
            own = getattr(self, name)
            if own.shape != value.shape:
                raise ValueError(
                    f"DynamicRoIHead: {name} was saved with update_iter_interval {len(value)}, and it is {len(own)} now"
                )
            own.copy_(value)


def _statistics(sampled: SampledRoIs, targets: Tensor, positive: Tensor, cfg: DynamicCfg) -> tuple[Tensor, Tensor]:
    """Mean IoU of the images' ``iou_topk``-th best proposals, and the step's ``beta_topk * N``-th smallest target."""
    assert sampled.proposal_ious is not None
    best = sampled.proposal_ious.sort(dim=1, descending=True).values
    proposed = best.isfinite().sum(dim=1, keepdim=True)  # (N, 1)
    counted = proposed > 0
    iou = _at(best, proposed.clamp(max=cfg.iou_topk) - 1) if best.shape[1] > 0 else counted.float()
    size = torch.where(positive, targets[:, :2].abs().mean(dim=1), torch.inf).sort().values
    num_positive = positive.sum().clamp(max=cfg.beta_topk * len(counted)).view(1)
    target = _at(size, num_positive - 1) if len(size) > 0 else num_positive.float()
    has_target = num_positive > 0
    # One sum over the processes: of the images' IoUs and of the targets, and of how many there were of each.
    iou, target = torch.where(counted, iou, 0.0), torch.where(has_target, target, 0.0)
    sums = [iou.sum(), counted.sum(), target.sum(), has_target.sum()]
    iou_sum, images, target_sum, steps = reduce_mean(torch.stack([value.float() for value in sums])).unbind()
    return iou_sum / images, target_sum / steps  # NaN where there were none


def _at(values: Tensor, place: Tensor) -> Tensor:
    """Values at ``place``, of which negative ones mean nothing."""
    return values.gather(-1, place.clamp(min=0))


def _median(values: Tensor) -> Tensor:
    """Median () of values (S,) that are not NaN, of an even number the mean of both in the middle."""
    count = (~values.isnan()).sum().view(1)
    ordered = values.sort().values  # NaN last
    return (0.5 * (_at(ordered, (count - 1) // 2) + _at(ordered, count // 2))).view(())
