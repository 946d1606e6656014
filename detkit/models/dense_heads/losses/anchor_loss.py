"""Losses of anchors over their targets: one form for RetinaNet, the RPN and heads like them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from detkit.models.dense_heads.targets.anchor_targets import AnchorTargets

__all__ = ["Decoder", "anchor_losses"]


class Decoder(Protocol):
    """What a loss on boxes needs of a box coder."""

    def decode(self, bboxes: Tensor, pred_bboxes: Tensor) -> Tensor:
        """Boxes of predictions."""


def anchor_losses(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    targets: AnchorTargets,
    loss_cls: nn.Module,
    loss_bbox: nn.Module,
    avg_factor: Tensor,
    decoder: Decoder | None = None,
) -> tuple[Tensor, Tensor]:
    """Losses of A anchors in N images, all in one call each.

    Args:
        logits: (N, A, C), with a channel for the background where ``loss_cls`` is a softmax.
        deltas: (N, A, 4) encoded boxes.
        anchors: (A, 4).
        targets: Of these anchors; boxes as they are where there is a ``decoder``, else encoded.
        loss_cls: Over labels (N * A,).
        loss_bbox: Over boxes or their encoding, (N * A, 4).
        avg_factor: () what both are divided by.
        decoder: Box coder, for a ``loss_bbox`` on boxes (IoU losses).

    Returns:
        Classification and box loss, each ().
    """
    if decoder is not None:
        deltas = decoder.decode(anchors.expand_as(deltas), deltas)
    of_labels = loss_cls(
        logits.flatten(0, 1), targets.labels.flatten(), targets.label_weights.flatten(), avg_factor=avg_factor
    )
    weights = targets.bbox_weights.flatten().unsqueeze(-1).expand(-1, deltas.shape[-1])
    of_boxes = loss_bbox(deltas.flatten(0, 1), targets.bbox_targets.flatten(0, 1), weights, avg_factor=avg_factor)
    return of_labels, of_boxes
