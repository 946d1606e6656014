"""Matrix NMS of masks, SOLOv2, Wang et al., https://arxiv.org/abs/2003.10152, section 3.3."""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.signature import nearest

__all__ = ["mask_matrix_nms"]

KERNELS = ("gaussian", "linear")


def mask_matrix_nms(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    filter_thr: float = -1,
    nms_pre: int = -1,
    max_num: int = -1,
    kernel: str = "gaussian",
    sigma: float = 2.0,
    mask_area: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lower the scores of masks by their IoU with better masks of their class, all at once.

    Args:
        masks: (D, H, W), 0 and 1.
        labels: (D,).
        scores: (D,).
        filter_thr: Masks must keep at least this score; off where not positive.
        nms_pre: Masks looked at, the best; all where not positive.
        max_num: Masks kept; all where not positive.
        kernel: ``gaussian`` or ``linear``.
        sigma: Of ``gaussian``.
        mask_area: (D,) pixels of each mask; None counts them.

    Returns:
        New scores (K,), best first, labels (K,), masks (K, H, W) and indices (K,) in the input.

    Raises:
        ValueError: Another kernel, or lengths that differ.
    """
    if kernel not in KERNELS:
        raise ValueError(
            f"mask_matrix_nms: unknown kernel {kernel!r}; did you mean {nearest(str(kernel), KERNELS)[0]!r}?"
        )
    lengths = [len(masks), len(labels), len(scores)] + ([] if mask_area is None else [len(mask_area)])
    if len(set(lengths)) > 1:
        raise ValueError(f"mask_matrix_nms: masks, labels, scores (and areas) differ in number: {lengths}")
    values, index = scores.sort(descending=True, stable=True)
    if nms_pre > 0:
        values, index = values[:nms_pre], index[:nms_pre]
    flat = masks[index].flatten(1).float()
    area = flat.sum(dim=1) if mask_area is None else mask_area[index]
    if len(index) > 0:
        values = values * _decay(flat, area, labels[index], kernel, sigma)
    if filter_thr > 0:
        kept = (values >= filter_thr).nonzero().squeeze(1)
        values, index = values[kept], index[kept]
    values, order = values.sort(descending=True, stable=True)
    index = index[order]
    if max_num > 0:
        values, index = values[:max_num], index[:max_num]
    return values, labels[index], masks[index], index


def _decay(flat: Tensor, area: Tensor, labels: Tensor, kernel: str, sigma: float) -> Tensor:
    """Factor (D,) of each score; the masks (D, H * W) come best first."""
    inter = flat @ flat.t()
    union = area[:, None] + area[None] - inter
    rivals = (labels[:, None] == labels[None]).triu(diagonal=1)
    # Row i, column j: how far the better mask i overlaps j, 0 where it is none of its class.
    iou = torch.where(rivals, inter / union.clamp(min=1e-12), 0.0)
    # A mask that is itself suppressed suppresses less: divided by its own decay (eq. 4).
    own = iou.amax(dim=0)[:, None]
    if kernel == "gaussian":
        decay = torch.exp(-sigma * iou**2) / torch.exp(-sigma * own**2)
    else:
        decay = (1 - iou) / (1 - own).clamp(min=1e-12)
    return decay.amin(dim=0)
