"""What each of two gloo processes does in ``test_two_ranks.py``: a module, so that processes can import it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from detkit.losses import CrossEntropyLoss, FocalLoss, GIoULoss, L1Loss
from detkit.models.dense_heads import RetinaHead
from detkit.models.dense_heads.losses.fcos_loss import fcos_losses
from detkit.models.dense_heads.losses.rpn_loss import rpn_losses
from detkit.models.dense_heads.targets.anchor_targets import AnchorTargets
from detkit.models.dense_heads.targets.point_targets import point_targets
from detkit.models.roi_heads.fast_rcnn_loss import fast_rcnn_losses
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder, FCOSAssigner, MlvlPointGenerator, PseudoSampler

# The first two images have objects, the other two none: the processes count very different numbers.
OBJECTS = ([[4.0, 4, 30, 34], [20, 10, 60, 50], [8, 8, 24, 24]], [[2.0, 2, 62, 60]], [], [])


class Retina(nn.Module):
    """The head alone, called as DDP calls a model."""

    def __init__(self, loss_normalizer: Any = "num_pos") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = RetinaHead(
            num_classes=3,
            in_channels=4,
            feat_channels=4,
            stacked_convs=1,
            anchor_generator={
                "type": "AnchorGenerator",
                "octave_base_scale": 2,
                "scales_per_octave": 2,
                "ratios": [1.0],
                "strides": [8, 16],
            },
            train_cfg={"assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4}},
            loss_normalizer=loss_normalizer,
        )
        self.head.init_weights()

    def forward(self, images: list[int]) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        levels = [torch.randn(4, 4, 64 // s, 64 // s, generator=generator)[images] for s in (8, 16)]
        samples = []
        for index in images:
            shape = (64, 64)
            sample = DetDataSample(metainfo={"img_shape": shape, "pad_shape": shape, "batch_input_shape": shape})
            sample.gt_instances = truth_of(index)
            samples.append(sample)
        return sum(self.head.loss(levels, samples).values())


class FCOS(nn.Module):
    """Free predictions of each point of each image, and the losses of FCOS over them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.logits = nn.Parameter(torch.randn(4, 64, 3, generator=generator))
        self.distances = nn.Parameter(torch.randn(4, 64, 4, generator=generator))
        self.centerness = nn.Parameter(torch.randn(4, 64, generator=generator))

    def forward(self, images: list[int]) -> Tensor:
        (points,) = MlvlPointGenerator([8]).grid_priors([(8, 8)], with_stride=True)
        truth = GroundTruth.from_instances([truth_of(i) for i in images])
        rule = FCOSAssigner([(-1, 64)]), PseudoSampler()
        targets = point_targets(points, truth, *rule, 3, 8, {"num_level_priors": [64]})
        losses = fcos_losses(
            self.logits[images],
            self.distances[images].exp() * 8,
            self.centerness[images],
            points,
            targets,
            FocalLoss(),
            GIoULoss(),
            CrossEntropyLoss(use_sigmoid=True),
            normed=False,
        )
        return sum(losses.values())


class Proposals(nn.Module):
    """Free predictions of anchors and of sampled proposals, and the losses of a two-stage detector over them.

    The sampler gave the first image few anchors and the second few proposals.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.rpn = nn.Parameter(torch.randn(4, 64, 5, generator=generator))
        self.roi = nn.Parameter(torch.randn(4, 10, 8, generator=generator))
        self.sampled = torch.rand(4, 64, generator=generator) < torch.tensor([[0.1], [0.9], [0.5], [0.5]])
        self.counted = (torch.rand(4, 10, generator=generator) < torch.tensor([[0.9], [0.2], [0.5], [0.5]])).float()

    def forward(self, images: list[int]) -> Tensor:
        (anchors,) = AnchorGenerator([8], [1.0], [1.0]).grid_priors([(8, 8)])
        labels = torch.arange(64).expand(len(images), 64) % 2
        sampled = self.sampled[images].float()
        shifted = (anchors + 1).expand(len(images), 64, 4)
        targets = AnchorTargets(labels, sampled, shifted, sampled * (labels == 0), sampled.sum())
        logits, deltas = self.rpn[images].split([1, 4], dim=-1)
        parts = targets, CrossEntropyLoss(use_sigmoid=True), L1Loss()
        rpn = rpn_losses(logits.squeeze(-1), deltas, anchors, *parts)
        of_classes, of_boxes = self.roi[images].flatten(0, 1).split([4, 4], dim=-1)
        count, boxes = len(of_classes), anchors[:10].repeat(len(images), 1)
        roi = fast_rcnn_losses(
            of_classes,
            of_boxes,
            boxes,
            boxes + 1,
            torch.arange(count) % 4,
            DeltaXYWHBBoxCoder(),
            CrossEntropyLoss(),
            L1Loss(),
            weights=self.counted[images].flatten(),
        )
        return sum(value for losses in (rpn, roi) for name, value in losses.items() if "loss" in name)


# The moving average starts at a number per process.
MODELS: dict[str, Callable[[int], nn.Module]] = {
    "retina": lambda processes: Retina(),
    "retina, moving": lambda processes: Retina({"type": "EMA", "init": 20.0 / processes}),
    "proposals": lambda processes: Proposals(),
    "fcos": lambda processes: FCOS(),
}


def truth_of(index: int) -> InstanceData:
    boxes = torch.tensor(OBJECTS[index]).view(-1, 4)
    return InstanceData(bboxes=boxes, labels=torch.arange(len(boxes)) % 3)


def gradients(module: nn.Module, images: list[int]) -> dict[str, Tensor]:
    module(images).backward()
    found = {name.removeprefix("module."): p.grad for name, p in module.named_parameters()}
    assert all(grad is not None for grad in found.values())
    return found


def work(rank: int, folder: str) -> None:
    """Gradients of each model over the rank's two images, written by the first rank."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for name, build in MODELS.items():
        for kind, images in (("even", [[0, 1], [2, 3]]), ("no objects", [[2, 3], [3, 2]])):
            found[f"{name}, {kind}"] = gradients(DistributedDataParallel(build(2)), images[rank])
    compiled = Retina()
    compiled.head.loss = torch.compile(compiled.head.loss, backend="eager", fullgraph=True)
    found["retina, compiled"] = gradients(DistributedDataParallel(compiled), [[0, 1], [2, 3]][rank])
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
        # Only this rank asks: without gradients it must not wait for the other.
        with torch.no_grad():
            Retina()([0])
    distributed.destroy_process_group()
