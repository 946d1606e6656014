"""What the box head of a RoI head says of priors that its sampler is to choose from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detkit.task_modules.samplers.pool import Pool

__all__ = ["RUNS_ROI_HEAD", "RoIOutputs", "bbox_head_of", "roi_outputs", "statistics_kept"]


# What a sampler is only for that needs the RoI head.
RUNS_ROI_HEAD = "runs the RoI head"


class RoIOutputs(NamedTuple):
    """Outputs for the A priors of N images.

    Attributes:
        scores: (N, A, C) in [0, 1].
        bbox_pred: (N, A, 4) or (N, A, 4 C) encoded boxes; None where the head predicts none of that form.
        loss: (N, A) the loss that was asked for.
    """

    scores: Tensor
    bbox_pred: Tensor | None
    loss: Tensor


def bbox_head_of(context: Any, name: str) -> Any:
    """The box head of a RoI head; of a cascade, that of its stage now.

    Raises:
        ValueError: Its classification loss is several by name, so that there is no one loss of a region; ``name`` is
            the sampler's.
    """
    head = context.bbox_head[context.current_stage] if hasattr(context, "num_stages") else context.bbox_head
    loss = getattr(head, "loss_cls", None)
    if getattr(loss, "return_dict", False):
        raise ValueError(
            f"{type(context).__name__}: train_cfg.sampler: {name} needs one classification loss for each region, and "
            f"{type(loss).__name__} gives several; set return_dict=False of the loss"
        )
    return head


@contextmanager
def statistics_kept(head: Any) -> Iterator[None]:
    """What the layers and losses of a head count of what they see inside is forgotten: it is not yet learnt."""
    kept = [(buffer, buffer.clone()) for buffer in head.buffers()] if isinstance(head, nn.Module) else []
    try:
        yield
    finally:
        for buffer, before in kept:
            buffer.copy_(before)


@torch.no_grad()
def roi_outputs(context: Any, bbox_head: Any, pool: Pool, loss_key: str, name: str) -> RoIOutputs:
    """Run the box head on every prior of the pool, the ignored ones too, so that shapes are fixed.

    Args:
        context: RoI head with ``_bbox_forward``.
        bbox_head: Whose loss it is.
        pool: With priors; ``feats`` among its inputs.
        loss_key: Entry of the head's losses.
        name: Of the sampler, for messages.

    Raises:
        ValueError: The sampler was given no priors, or the head has no such loss.
    """
    if pool.priors is None:
        raise ValueError(f"{name}: needs the priors, to run the box head on them")
    batch_size, count = pool.gt_inds.shape
    image = torch.arange(batch_size, device=pool.priors.device, dtype=pool.priors.dtype)
    rois = torch.cat([image.repeat_interleave(count).unsqueeze(1), pool.priors.flatten(0, 1)], dim=1)
    stage = (context.current_stage,) if hasattr(context, "num_stages") else ()
    # The RoI head's, as its extractor and its shared head run too.
    with statistics_kept(context):
        outputs = context._bbox_forward(*stage, pool.inputs.get("feats"), rois)
        logits = outputs["cls_score"]
        losses = bbox_head.loss(
            cls_score=logits,
            bbox_pred=None,
            rois=rois,
            labels=torch.where(pool.gt_inds > 0, pool.labels, bbox_head.num_classes).flatten(),
            label_weights=logits.new_ones(len(logits)),
            bbox_targets=None,
            bbox_weights=None,
            reduction_override="none",
        )
    if loss_key not in losses:
        raise ValueError(f"{name}: the box head has no loss {loss_key!r}, only {', '.join(sorted(losses))}")
    shape = (batch_size, count)
    bbox_pred, loss = outputs["bbox_pred"], losses[loss_key]
    # A sigmoid loss has a value per class.
    loss = loss if loss.dim() == 1 else loss.flatten(1).sum(dim=1)
    return RoIOutputs(
        _probabilities(bbox_head, logits).unflatten(0, shape),
        bbox_pred.unflatten(0, shape) if isinstance(bbox_pred, Tensor) else None,
        loss.unflatten(0, shape),
    )


def _probabilities(bbox_head: Any, logits: Tensor) -> Tensor:
    """Scores (R, C); a head of one's own that does not say how has a softmax, the background last."""
    if hasattr(bbox_head, "scores"):
        return bbox_head.scores(logits).float()
    return logits.float().softmax(dim=-1)[:, :-1]
