"""What the heads of a cascade share: a part of each stage, the way through the stages, and names of their losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import ModuleList
from torch import Tensor

from detkit.models.roi_heads.sampling import SampledRoIs, positive_rois
from detkit.models.roi_heads.train_cfg import RoITrainCfg
from detkit.registry import MODELS
from detkit.structures import DetDataSample
from detkit.structures.proposals import Proposals, boxes_to_rois

__all__ = [
    "OfStages",
    "build_stages",
    "check_stages",
    "mask_losses",
    "refine_through_stages",
    "stage_losses",
    "train_cfg_of_stages",
]

Cfg = Mapping[str, Any]
# A config for each stage, or one for all.
OfStages = Cfg | Sequence[Cfg]


def build_stages(cfg: OfStages, num_stages: int, name: str) -> Any:
    """ModuleList of the registered part of each stage: those of a list of configs, or of one config for all.

    Raises:
        ValueError: Another number than there are stages; ``name`` is the argument's, for the message.
    """
    cfgs = [cfg] * num_stages if isinstance(cfg, Mapping) else cfg
    check_stages(cfgs, num_stages, name)
    # Not that of torch, through which mmengine would not reach their initialisation.
    return ModuleList([MODELS.build(one) for one in cfgs])


def check_stages(values: Sequence[Any], num_stages: int, name: str) -> None:
    """Refuse another number of values than there are stages."""
    if len(values) != num_stages:
        raise ValueError(f"{name} must have one entry for each of num_stages={num_stages} stages, got {len(values)}")


def train_cfg_of_stages(train_cfg: Sequence[Cfg] | None, context: Any) -> list[RoITrainCfg]:
    """What ``train_cfg`` says to each stage of the RoI head ``context``, whose ``current_stage`` it moves meanwhile.

    Raises:
        TypeError: It is no list of dicts.
        ValueError: There are more or fewer than stages.
    """
    name = type(context).__name__
    if isinstance(train_cfg, Mapping):
        raise TypeError(
            f"{name}: train_cfg must be a list with a dict for each of num_stages={context.num_stages} stages, got a "
            f"dict with the keys {', '.join(train_cfg)}"
        )
    if train_cfg is not None:
        check_stages(train_cfg, context.num_stages, f"{name}: train_cfg")
    found = []
    for stage in range(context.num_stages):
        # A sampler that runs the head takes the box head of its own stage.
        context.current_stage = stage
        cfg = None if train_cfg is None else train_cfg[stage]
        found.append(RoITrainCfg.of(cfg, context, name=f"train_cfg[{stage}]"))
    context.current_stage = 0
    return found


def stage_losses(losses: Mapping[str, Tensor], stage: int, weight: float) -> dict[str, Tensor]:
    """``s{stage}.`` before the names, losses weighed; what is only logged, such as an accuracy, is not."""
    return {f"s{stage}.{name}": value * weight if "loss" in name else value for name, value in losses.items()}


def mask_losses(
    heads: Sequence[Any],
    train_cfg: Sequence[RoITrainCfg],
    mask_forward: Callable[[int, Sequence[Tensor], Tensor], Tensor],
    x: Sequence[Tensor],
    samples: Sequence[SampledRoIs],
    batch_data_samples: Sequence[DetDataSample],
) -> list[Mapping[str, Tensor]]:
    """Losses of the masks of each stage; the device is asked once, how many positives they all have.

    Args:
        heads: Mask head of each stage.
        train_cfg: Of each stage.
        mask_forward: Mask logits of a stage, for ``x`` and RoIs (K, 5).
        x: Levels (N, C, H_l, W_l).
        samples: What each stage learns from.
        batch_data_samples: With the masks of the objects.
    """
    masks = [sample.gt_instances.masks for sample in batch_data_samples]
    losses = []
    for stage, positives in enumerate(positive_rois(samples)):
        mask_preds = mask_forward(stage, x, positives.rois)
        losses.append(heads[stage].loss_and_target(mask_preds, positives, masks, train_cfg[stage])["loss_mask"])
    return losses


def refine_through_stages(
    heads: Sequence[Any],
    bbox_forward: Callable[[int, Sequence[Tensor], Tensor], Mapping[str, Any]],
    x: Sequence[Tensor],
    proposals: Proposals,
    metas: Sequence[Mapping[str, Any]],
) -> tuple[Proposals, Tensor, Any]:
    """Proposals through all stages, in prediction.

    Args:
        heads: Box head of each stage.
        bbox_forward: ``cls_score`` and ``bbox_pred`` of a stage, for ``x`` and RoIs (N * P, 5).
        x: Levels (N, C, H_l, W_l).
        proposals: P of each of N images.
        metas: Image facts.

    Returns:
        The proposals as the last stage gets them, the mean (N * P, C + 1) of all stages' logits, and the encoded
        boxes of the last.
    """
    logits = []
    for stage, head in enumerate(heads):
        outputs = bbox_forward(stage, x, boxes_to_rois(proposals.boxes))
        logits.append(outputs["cls_score"])
        if stage < len(heads) - 1:
            regions = SampledRoIs.without_objects(proposals, head.num_classes)
            proposals = head.refine(regions, outputs["cls_score"], outputs["bbox_pred"], metas)
    return proposals, torch.stack(logits).float().mean(dim=0), outputs["bbox_pred"]
