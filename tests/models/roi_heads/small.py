"""A small RoI head, what it learns from, and two steps of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.registry import MODELS
from detkit.structures import DetDataSample
from detkit.structures.proposals import Proposals

# Classes, and a box head of two linear layers for them.
C = 3
TWO_FCS = {"type": "Shared2FCBBoxHead", "in_channels": 4, "roi_feat_size": 2, "fc_out_channels": 8, "num_classes": C}
ASSIGNER = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.5}
SAMPLER = {"type": "RandomSampler", "num": 16, "pos_fraction": 0.5}

Cfg = Mapping[str, Any]


def roi_head(
    bbox_head: Cfg = TWO_FCS,
    assigner: Cfg = ASSIGNER,
    sampler: Cfg = SAMPLER,
    kind: str = "StandardRoIHead",
    train_cfg: Cfg | None = None,
    **arguments: Any,
) -> nn.Module:
    """A RoI head of this box head, for features of 4 channels and stride 4."""
    torch.manual_seed(0)
    return MODELS.build(
        {
            "type": kind,
            "bbox_roi_extractor": {
                "type": "SingleRoIExtractor",
                "roi_layer": {"type": "RoIAlign", "output_size": 2, "sampling_ratio": 1},
                "out_channels": 4,
                "featmap_strides": [4],
            },
            "bbox_head": bbox_head,
            "train_cfg": {"assigner": assigner, "sampler": sampler, **(train_cfg or {})},
            **arguments,
        }
    )


def scene() -> tuple[list[Tensor], Proposals, list[DetDataSample]]:
    """Features, proposals and annotations of two images of 48 x 48, the second without objects and with padding."""
    generator = torch.Generator().manual_seed(0)
    feats = [torch.randn(2, 4, 12, 12, generator=generator)]
    corner = torch.rand(2, 12, 2, generator=generator) * 30
    boxes = torch.cat([corner, corner + 4 + torch.rand(2, 12, 2, generator=generator) * 14], dim=-1)
    boxes[0, :3] = torch.tensor([[3.0, 2, 21, 22], [10, 13, 44, 44], [11, 12, 43, 46]])
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[1, 5:] = False
    boxes = torch.where(valid.unsqueeze(-1), boxes, 0.0)
    samples = []
    for objects in ([[2.0, 2, 20, 22], [10, 12, 44, 46]], []):
        sample = DetDataSample(metainfo={"img_shape": (48, 48)})
        labels = torch.arange(len(objects)) % C
        sample.gt_instances = InstanceData(bboxes=torch.tensor(objects).view(-1, 4), labels=labels)
        sample.ignored_instances = InstanceData(bboxes=torch.tensor([[30.0, 0, 48, 12]]), labels=torch.zeros(1).long())
        samples.append(sample)
    return feats, Proposals(boxes, torch.rand(2, 12, generator=generator), valid), samples


def train(head: nn.Module) -> None:
    """Two steps: the losses are finite and the weights move."""
    feats, proposals, samples = scene()
    head.train()
    optimizer = torch.optim.SGD(head.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in head.parameters()]
    for _ in range(2):
        losses = head.loss(feats, proposals, samples)
        optimizer.zero_grad()
        sum(value for name, value in losses.items() if "loss" in name).backward()
        assert all(torch.isfinite(value).all() for value in losses.values())
        assert all(torch.isfinite(p.grad).all() for p in head.parameters())
        optimizer.step()
    assert any(not torch.equal(old, new) for old, new in zip(before, head.parameters(), strict=True))
