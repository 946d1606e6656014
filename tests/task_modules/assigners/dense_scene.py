"""Images of 96 x 96 with random objects and predictions, and how each assigner of dense heads is called on them."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.ground_truth import GroundTruth

SIZE, STRIDES, NUM_CLASSES = 96, (8, 16, 32), 4
NUM_LEVEL_PRIORS = [(SIZE // stride) ** 2 for stride in STRIDES]
NUM_PRIORS = sum(NUM_LEVEL_PRIORS)

CONFIGS: dict[str, dict[str, Any]] = {
    "MaxIoU": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.4, "neg_iou_thr": 0.3, "ignore_iof_thr": 0.5},
    "MaxIoU_first": {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": 0.5,
        "neg_iou_thr": (0.1, 0.5),
        "gt_max_assign_all": False,
    },
    "ATSS": {"type": "ATSSAssigner", "topk": 9, "ignore_iof_thr": 0.5},
    "ATSS_alpha": {"type": "ATSSAssigner", "topk": 5, "alpha": 0.8},
    "SimOTA": {"type": "SimOTAAssigner", "candidate_topk": 6},
    "TaskAligned": {"type": "TaskAlignedAssigner", "topk": 7},
    "DynamicSoftLabel": {"type": "DynamicSoftLabelAssigner", "topk": 6},
}


def points() -> Tensor:
    """(A, 4) centres and strides."""
    levels = []
    for stride in STRIDES:
        center = (torch.arange(SIZE // stride) + 0.5) * stride
        y, x = torch.meshgrid(center, center, indexing="ij")
        levels.append(torch.stack([x, y, *torch.full((2, *x.shape), float(stride))], dim=-1).view(-1, 4))
    return torch.cat(levels)


def anchors() -> Tensor:
    """(A, 4) squares of three strides."""
    x, y, stride, _ = points().unbind(-1)
    return torch.stack([x - 1.5 * stride, y - 1.5 * stride, x + 1.5 * stride, y + 1.5 * stride], dim=-1)


def objects(count: int, seed: int) -> InstanceData:
    generator = torch.Generator().manual_seed(seed)
    size = 18 + torch.rand(count, 2, generator=generator) * 40
    corner = torch.rand(count, 2, generator=generator) * (SIZE - size)
    labels = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
    return InstanceData(bboxes=torch.cat([corner, corner + size], dim=1), labels=labels)


def regions(count: int, seed: int) -> InstanceData:
    return InstanceData(bboxes=objects(count, seed + 77).bboxes)


def predictions(num_images: int, seed: int) -> dict[str, Tensor]:
    """Boxes (N, A, 4) around the points, and probabilities (N, A, C)."""
    generator = torch.Generator().manual_seed(seed + 1)
    x, y, stride, _ = points().unbind(-1)
    sides = (1 + torch.rand(num_images, 4, NUM_PRIORS, generator=generator) * 2) * stride
    boxes = torch.stack([x - sides[:, 0], y - sides[:, 1], x + sides[:, 2], y + sides[:, 3]], dim=-1)
    return {"bboxes": boxes, "scores": torch.rand(num_images, NUM_PRIORS, NUM_CLASSES, generator=generator)}


def call(name: str, truth: GroundTruth, seed: int = 0, prior_valid: Tensor | None = None, keep: Any = None) -> Any:
    """``assign_batch`` of one of ``CONFIGS``; ``keep`` picks some of the priors, as many of each level as it says."""
    assigner = TASK_UTILS.build(dict(CONFIGS[name]))
    inputs: dict[str, Any] = {}
    if name not in ("MaxIoU", "MaxIoU_first", "ATSS"):
        inputs = predictions(len(truth.boxes), seed)
        if name in ("ATSS_alpha", "DynamicSoftLabel"):
            inputs["scores"] = inputs["scores"].logit()
    counts = NUM_LEVEL_PRIORS
    priors = points() if name in ("SimOTA", "DynamicSoftLabel") else anchors()
    if keep is not None:
        priors, inputs = priors[keep], {key: value[:, keep] for key, value in inputs.items()}
        counts = [int(level.sum()) for level in keep.split(NUM_LEVEL_PRIORS)]
    if name.startswith("ATSS"):
        inputs["num_level_priors"] = counts
    return assigner.assign_batch(priors, truth, prior_valid, **inputs)


def match_by_the_rules(cost: Tensor, iou: Tensor, allowed: list[int], topk: int) -> list[int]:
    """The matching of SimOTA and RTMDet as loops: objects of the A priors, by their cost and IoU (A, G)."""
    takers: dict[int, list[int]] = {}
    for g in range(cost.shape[1]):
        quota = max(1, int(iou[:, g].sort(descending=True).values[:topk].sum()))
        for p in sorted(allowed, key=lambda p, g=g: float(cost[p, g]))[:quota]:
            takers.setdefault(p, []).append(g)
    result = [0] * len(cost)
    for p, wanting in takers.items():
        result[p] = 1 + (wanting[0] if len(wanting) == 1 else int(cost[p].argmin()))
    return result
