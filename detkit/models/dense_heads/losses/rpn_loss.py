"""Losses of a region proposal network (Faster R-CNN, https://arxiv.org/abs/1506.01497, eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.losses.anchor_loss import Decoder, anchor_losses
from detkit.models.dense_heads.targets.anchor_targets import AnchorTargets
from detkit.signature import nearest, quoted

__all__ = ["rpn_losses"]

AVG_FACTORS = ("sampled", "fixed")


def rpn_losses(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    targets: AnchorTargets,
    loss_cls: nn.Module,
    loss_bbox: nn.Module,
    decoder: Decoder | None = None,
    avg_factor: str = "sampled",
    batch_size_per_image: int = 256,
) -> dict[str, Tensor]:
    """Whether an anchor holds an object, and where: losses of the sampled anchors of N images, of every process.

    Args:
        logits: (N, A).
        deltas: (N, A, 4) encoded boxes.
        anchors: (A, 4).
        targets: Of these anchors, with one class: label 0 is an object, 1 is background.
        loss_cls: Sigmoid loss over labels.
        loss_bbox: Over boxes or their encoding.
        decoder: Box coder, for a ``loss_bbox`` on boxes (IoU losses).
        avg_factor: What the losses are divided by: ``sampled`` is the number of anchors that were sampled
            (MMDetection), ``fixed`` is ``batch_size_per_image`` for each image, however few there were (Detectron2).
        batch_size_per_image: Anchors that the sampler wants of an image, for ``fixed``.

    Returns:
        ``loss_rpn_cls`` and ``loss_rpn_bbox``; to be logged, ``num_pos_anchors`` and ``num_neg_anchors``: means per
        image of this process, detached.

    Raises:
        ValueError: An unknown ``avg_factor``, or a ``batch_size_per_image`` below 1.
    """
    if avg_factor not in AVG_FACTORS:
        close = quoted(nearest(str(avg_factor), AVG_FACTORS))
        raise ValueError(
            f"rpn_losses: avg_factor {avg_factor!r} is not one of {quoted(AVG_FACTORS)}; did you mean {close}?"
        )
    if batch_size_per_image < 1:
        raise ValueError(f"rpn_losses: batch_size_per_image must be at least 1, got {batch_size_per_image}")
    num_images = len(logits)
    if avg_factor == "fixed":
        divisor = torch.full((), float(batch_size_per_image * num_images), device=logits.device)
    else:
        divisor = targets.avg_factor
    of_labels, of_boxes = anchor_losses(
        logits.unsqueeze(-1), deltas, anchors, targets, loss_cls, loss_bbox, reduce_mean(divisor, least=1), decoder
    )
    sampled, positive = targets.label_weights > 0, targets.bbox_weights > 0
    return {
        "loss_rpn_cls": of_labels,
        "loss_rpn_bbox": of_boxes,
        "num_pos_anchors": positive.sum() / num_images,
        "num_neg_anchors": (sampled & ~positive).sum() / num_images,
    }
