"""Region proposals in a pipeline, beside the annotated objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform, Compose
from mmcv.transforms.utils import cache_random_params

from detkit.registry import TRANSFORMS

__all__ = ["LoadProposals", "ProposalBroadcaster"]

# What the second way through the steps must not see: it is of the objects.
_OF_OBJECTS = ("gt_masks", "gt_seg_map", "gt_ignore_flags", "instances", "mix_results")


@TRANSFORMS.register_module()
class LoadProposals(BaseTransform):
    """Take the proposals that the dataset's ``proposal_file`` has for the image.

    Sets ``proposals`` (P, 4) float32 xyxy and ``proposals_scores`` (P,) float32.

    Args:
        num_max_proposals: Only the first so many, which are the best; None takes all.

    Raises:
        ValueError: The record has no proposals, or a number that is none.
    """

    def __init__(self, num_max_proposals: int | None = None) -> None:
        if num_max_proposals is not None and num_max_proposals < 1:
            raise ValueError(f"num_max_proposals: a number of at least 1 or None was expected, got {num_max_proposals}")
        self.num_max_proposals = num_max_proposals

    def transform(self, results: dict) -> dict:
        """Take what the record has."""
        proposals = results.get("proposals")
        if proposals is None:
            raise ValueError(f"{results.get('img_path', 'image')}: no proposals; set proposal_file of the dataset")
        boxes = np.asarray(proposals["bboxes"], dtype=np.float32).reshape(-1, 4)
        scores = np.asarray(proposals["scores"], dtype=np.float32) if "scores" in proposals else np.zeros(len(boxes))
        if len(scores) != len(boxes):
            raise ValueError(f"{results.get('img_path', 'image')}: {len(boxes)} proposals, but {len(scores)} scores")
        results["proposals"] = boxes[: self.num_max_proposals]
        results["proposals_scores"] = scores[: self.num_max_proposals].astype(np.float32)
        return results


@TRANSFORMS.register_module()
class ProposalBroadcaster(BaseTransform):
    """Steps that move ``proposals`` as they move ``gt_bboxes``: the same size, flip or window.

    The steps run twice, with the same draws: once with the objects, once with the proposals in their place.
    Proposals that a step drops lose their score too.

    Args:
        transforms: The steps, as configs or callables.

    Raises:
        ValueError: There are no proposals.
    """

    def __init__(self, transforms: Sequence[Mapping[str, Any] | Callable] = ()) -> None:
        built = [TRANSFORMS.build(step) if isinstance(step, Mapping) else step for step in transforms]
        self.transforms = Compose(built)

    def transform(self, results: dict) -> dict | None:
        """Take both through the steps."""
        proposals = results.get("proposals")
        if not isinstance(proposals, np.ndarray):
            raise ValueError(
                f"{results.get('img_path', 'image')}: no proposals; put LoadProposals before ProposalBroadcaster"
            )
        scores = results["proposals_scores"]
        copy = {key: value for key, value in results.items() if key not in _OF_OBJECTS}
        # In place of labels go numbers, which tell which proposals were kept.
        copy.update(gt_bboxes=proposals, gt_bboxes_labels=np.arange(len(proposals)))
        with cache_random_params(self.transforms):
            moved = self.transforms(results)
            if moved is None:
                return None
            other = self.transforms(copy)
        if other is None:  # no proposal was left
            moved["proposals"], moved["proposals_scores"] = proposals[:0], scores[:0]
            return moved
        moved["proposals"] = other["gt_bboxes"]
        moved["proposals_scores"] = scores[other["gt_bboxes_labels"]]
        return moved
