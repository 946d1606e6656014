"""From the queries of the last decoder layer to detections, without suppression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.models.dense_heads.prediction.postprocess import rescaled_boxes
from detkit.ops.image_sizes import image_sizes
from detkit.structures.boxes import bbox_cxcywh_to_xyxy

__all__ = ["inverse_sigmoid", "query_detections"]


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of ``x`` (...) in [0, 1], finite at both ends: ``x`` and ``1 - x`` count as ``eps`` at least."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def query_detections(
    logits: Tensor,
    boxes: Tensor,
    metas: Sequence[Mapping[str, Any]],
    softmax: bool,
    max_per_img: int | None,
    rescale: bool,
) -> list[InstanceData]:
    """The best of each image: of all pairs of query and class by sigmoid, or of all queries by softmax.

    Args:
        logits: (N, Q, C), or by softmax (N, Q, C + 1), the background last.
        boxes: (N, Q, 4) centre and size in shares of the image.
        metas: Image facts with ``img_shape`` and, where resized, ``scale_factor``.
        softmax: Whether classes exclude each other.
        max_per_img: Detections of an image, at most as many as there are: None is as many as queries, a negative
            number all.
        rescale: Return boxes in the frame of the original image.

    Returns:
        Per image ``bboxes`` (D, 4), ``scores`` (D,) and ``labels`` (D,), best first.
    """
    logits = logits.float()
    num_classes = logits.shape[2] - softmax
    if softmax:
        scores, labels = logits.softmax(dim=2)[..., :-1].max(dim=2)
    else:
        scores = logits.sigmoid().flatten(1)
    wanted = logits.shape[1] if max_per_img is None else max_per_img
    count = scores.shape[1] if wanted < 0 else min(wanted, scores.shape[1])
    scores, index = scores.topk(count, dim=1)
    query = index if softmax else index // num_classes
    labels = labels.gather(1, index) if softmax else index % num_classes
    sizes = image_sizes(metas, boxes, "data_samples")
    chosen = boxes.float().gather(1, query.unsqueeze(2).expand(-1, -1, 4))
    corners = (bbox_cxcywh_to_xyxy(chosen) * sizes).clamp(min=0).minimum(sizes)
    if rescale:
        corners = rescaled_boxes(corners, metas)
    return [
        InstanceData(bboxes=own, scores=score, labels=label)
        for own, score, label in zip(corners, scores, labels, strict=True)
    ]
