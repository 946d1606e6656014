"""From dense predictions to the proposals that a second stage looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.models.dense_heads.prediction.flatten import flatten_level
from detkit.models.dense_heads.prediction.postprocess import Candidates, DenseTestCfg, rescaled_boxes, select_candidates
from detkit.ops import NMSCfg
from detkit.structures.boxes import get_box_wh
from detkit.structures.proposals import Proposals

__all__ = ["level_candidates", "proposals_of_images", "propose"]


def level_candidates(
    logits: Sequence[Tensor],
    predictions: Sequence[Tensor],
    priors: Sequence[Tensor],
    decode: Callable[[Tensor, Tensor], Tensor],
    cfg: DenseTestCfg,
    encode_size: int = 4,
) -> Candidates:
    """The best boxes of each level; as its label, each has its level, in place of a class in the suppression.

    Args:
        logits: Per level (N, A, H_l, W_l), of an object of any class.
        predictions: Per level (N, A * encode_size, H_l, W_l) encoded boxes.
        priors: Per level (A_l, P).
        decode: ``(priors (N, K, P), predictions (N, K, encode_size)) -> (N, K, 4)``.
        cfg: Thresholds.
        encode_size: Numbers that encode a box.
    """

    def decode_and_keep_level(chosen: Tensor, encoded: Tensor) -> Tensor:
        own, level = chosen.split((chosen.shape[-1] - 1, 1), dim=-1)
        return torch.cat([decode(own, encoded), level], dim=-1)

    candidates = select_candidates(
        [flatten_level(level, 1) for level in logits],
        [flatten_level(level, encode_size) for level in predictions],
        [F.pad(level, (0, 1), value=float(number)) for number, level in enumerate(priors)],
        decode_and_keep_level,
        cfg,
        logits=True,
    )
    assert candidates.extra is not None
    # Not a stable sort: of many boxes with one saturated score, MMDetection's order decides which are proposed.
    scores, order = candidates.scores.sort(dim=1, descending=True)
    corners = order.unsqueeze(-1).expand(-1, -1, 4)
    return Candidates(
        scores,
        candidates.extra.squeeze(-1).long().gather(1, order),
        candidates.boxes.gather(1, corners),
        candidates.kept.gather(1, order),
    )


@torch.no_grad()
def propose(candidates: Candidates, cfg: DenseTestCfg) -> Proposals:
    """Suppress the candidates of N images in one call, and keep a fixed number of each, best first.

    Suppression alone waits for the device: what is kept is put into rows of a fixed length without another look.

    Args:
        candidates: K of each image; their labels are groups that do not suppress each other.
        cfg: Thresholds; ``max_per_img`` is the length of the rows, ``nms_post`` what a group may have of them.
    """
    assert isinstance(cfg.nms, NMSCfg)
    boxes, scores, kept = candidates.boxes, candidates.scores, candidates.kept
    num_images, num_candidates = scores.shape
    if cfg.min_bbox_size >= 0:
        width, height = get_box_wh(boxes)
        kept = kept & (width > cfg.min_bbox_size) & (height > cfg.min_bbox_size)
    image = torch.arange(num_images, device=boxes.device).unsqueeze(1)
    groups = image.expand_as(kept)
    if not cfg.nms.class_agnostic:
        groups = groups + num_images * candidates.labels
    # What the thresholds leave out comes last, in groups of its own, so that it suppresses only its like.
    groups = (2 * groups + kept).flatten()
    scores = torch.where(kept, scores, -1.0).flatten()
    if cfg.nms.suppress is None:
        scores, keep = scores.sort(descending=True, stable=True)
    else:
        scores, keep = cfg.nms.suppress(boxes.flatten(0, 1), scores, groups, None)
    length = num_candidates if cfg.max_per_img < 0 else min(cfg.max_per_img, num_candidates)
    of_image = keep // max(num_candidates, 1)
    taken = kept.flatten()[keep]
    if cfg.nms_post is not None and cfg.nms_post >= 0:
        taken = taken & (_before(groups[keep]) < cfg.nms_post)
    rank = _before(torch.where(taken, of_image, num_images))
    # Rows that are full drop the rest into one place at the end.
    place = torch.where(taken & (rank < length), of_image * length + rank, num_images * length)
    size = num_images * length + 1
    rows = (
        boxes.new_zeros(size, 4).scatter_(0, place.unsqueeze(1).expand(-1, 4), boxes.flatten(0, 1)[keep]),
        scores.new_zeros(size).scatter_(0, place, scores),
        torch.zeros(size, dtype=torch.bool, device=boxes.device).scatter_(0, place, taken),
    )
    return Proposals(*(values[:-1].unflatten(0, (num_images, length)) for values in rows))


def _before(groups: Tensor) -> Tensor:
    """How many of its own group come before each (D,) of ``groups`` (D,) int64."""
    in_order, order = groups.sort(stable=True)
    rank = torch.arange(len(groups), device=groups.device) - torch.searchsorted(in_order, in_order)
    return torch.empty_like(rank).scatter_(0, order, rank)


def proposals_of_images(
    proposals: Proposals, metas: Sequence[Mapping[str, Any]], rescale: bool = False
) -> list[InstanceData]:
    """Proposals of each image as ``bboxes`` (D, 4), ``scores`` (D,) and ``labels`` (D,) of 0.

    Args:
        proposals: Of N images.
        metas: Image facts; ``scale_factor`` (w, h) is 1 where no step of the pipeline has resized.
        rescale: Return boxes in the frame of the original image.
    """
    boxes = rescaled_boxes(proposals.boxes, metas) if rescale else proposals.boxes
    return [
        InstanceData(bboxes=own[valid], scores=scores[valid], labels=torch.zeros_like(scores[valid]).long())
        for own, scores, valid in zip(boxes, proposals.scores, proposals.valid, strict=True)
    ]
