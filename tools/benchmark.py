"""Time detkit's targets and losses beside forms that anybody can run.

python tools/benchmark.py assign
python tools/benchmark.py assign --only simota_100 --runs 15
python tools/benchmark.py gpu   # the whole training step: tools/benchmark_gpu.py
python tools/benchmark.py step   # a training step beside torchvision's: tools/benchmark_step.py
python tools/benchmark.py infer   # a whole prediction beside torchvision's: tools/benchmark_inference.py
python tools/benchmark.py two-stage   # both for Faster and Mask R-CNN: tools/benchmark_two_stage.py

Each case is run in pairs, yardstick and detkit in turn, on two images of random objects. The table gives the medians,
the median of the ratios of the pairs, and on how many of the priors both agree.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Commands with a file of their own beside this one.
ELSEWHERE = {
    "gpu": ("benchmark_gpu", "a training step of RetinaNet on a GPU"),
    "step": ("benchmark_step", "a training step of RetinaNet and FCOS beside torchvision's"),
    "infer": ("benchmark_inference", "a prediction of RetinaNet and FCOS beside torchvision's"),
    "two-stage": ("benchmark_two_stage", "Faster and Mask R-CNN beside torchvision's"),
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time targets and losses beside plain torch and torchvision.")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, (_, text) in ELSEWHERE.items():
        commands.add_parser(command, help=f"{text}; see {command} --help")
    assign = commands.add_parser("assign", help="assigners, and the loss paths of dense heads")
    assign.add_argument("--only", nargs="+", choices=sorted(CASES), help="these cases (default: all)")
    assign.add_argument("--runs", type=int, default=7, help="pairs of runs, after one that does not count (default: 7)")
    assign.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    assign.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    args = parser.parse_args(arguments)
    if args.runs < 1 or args.threads < 1:
        parser.error(f"--runs and --threads must be at least 1, got {args.runs} and {args.threads}")
    return args


class Case(NamedTuple):
    """Two ways to one result; each call returns the objects (N, A) of the priors, numbered from 1, or a loss ()."""

    ours: Callable[[], Any]
    yardstick: Callable[[], Any]
    of: str


IMAGE = (800, 1333)
PADDED = (800, 1344)
STRIDES = (8, 16, 32, 64, 128)


def objects(num_gts: int, size: tuple[int, int], num_classes: int, device: str) -> Any:
    """Two images of random objects, sides from 12 to 240 pixels, as padded ground truth."""
    import torch
    from mmengine.structures import InstanceData

    from detkit.structures.ground_truth import GroundTruth

    generator = torch.Generator().manual_seed(0)
    images = []
    for _ in range(2):
        center = torch.rand(num_gts, 2, generator=generator) * torch.tensor(size[::-1])
        half = torch.exp(torch.rand(num_gts, 2, generator=generator) * 3 + 2.5) / 2
        boxes = torch.cat([center - half, center + half], dim=1)
        boxes = torch.stack([boxes[:, i].clamp(0, size[1 - i % 2]) for i in range(4)], dim=1)
        labels = torch.randint(0, num_classes, (num_gts,), generator=generator)
        images.append(InstanceData(bboxes=boxes.to(device), labels=labels.to(device)))
    return GroundTruth.from_instances(images)


def level_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    return [(-(-size[0] // s), -(-size[1] // s)) for s in STRIDES]


def retina_anchors(size: tuple[int, int], device: str) -> Any:
    import torch

    from detkit.task_modules import AnchorGenerator

    generator = AnchorGenerator(list(STRIDES), [0.5, 1.0, 2.0], octave_base_scale=4, scales_per_octave=3)
    return torch.cat(generator.grid_priors(level_sizes(size), device=device))


def max_iou(num_gts: int, device: str) -> Case:
    """RetinaNet's assignment at 800x1333, against torchvision's Matcher over box_iou."""
    import torch
    from torchvision.models.detection._utils import Matcher
    from torchvision.ops import box_iou

    from detkit.task_modules import MaxIoUAssigner

    truth, anchors = objects(num_gts, IMAGE, 80, device), retina_anchors(IMAGE, device)
    assigner, matcher = MaxIoUAssigner(0.5, 0.4, min_pos_iou=0), Matcher(0.5, 0.4, allow_low_quality_matches=True)

    def yardstick() -> Any:
        return torch.stack([matcher(box_iou(boxes, anchors)) for boxes in truth.boxes]) + 1

    return Case(lambda: assigner.assign_batch(anchors, truth).gt_inds, yardstick, f"{len(anchors)} priors")


def atss(num_gts: int, device: str) -> Case:
    """ATSS at 800x1333, against a loop over images and levels with a distance matrix each."""
    import torch

    from detkit.task_modules import AnchorGenerator, ATSSAssigner

    generator = AnchorGenerator(list(STRIDES), [1.0], scales=[8.0])
    levels = generator.grid_priors(level_sizes(IMAGE), device=device)
    truth, counts, priors = objects(num_gts, IMAGE, 80, device), [len(level) for level in levels], torch.cat(levels)
    assigner = ATSSAssigner(topk=9)
    return Case(
        lambda: assigner.assign_batch(priors, truth, num_level_priors=counts).gt_inds,
        lambda: torch.stack([atss_by_level(levels, boxes, 9) for boxes in truth.boxes]),
        f"{len(priors)} priors",
    )


def atss_by_level(levels: list[Any], boxes: Any, topk: int) -> Any:
    """Algorithm 1 of the paper, line by line: objects (A,) of one image."""
    import torch
    from torchvision.ops import box_iou

    priors = torch.cat(levels)
    overlaps = box_iou(priors, boxes)
    centers, gt_centers = (priors[:, :2] + priors[:, 2:]) / 2, (boxes[:, :2] + boxes[:, 2:]) / 2
    candidates, start = [], 0
    for level in levels:
        own = (level[:, :2] + level[:, 2:]) / 2
        distance = (own[:, None, :] - gt_centers[None, :, :]).pow(2).sum(-1).sqrt()
        candidates.append(distance.topk(min(topk, len(level)), dim=0, largest=False).indices + start)
        start += len(level)
    index = torch.cat(candidates)
    of_candidates = overlaps.gather(0, index)
    threshold = of_candidates.mean(0) + of_candidates.std(0)
    x, y = centers[index].unbind(-1)
    sides = torch.stack([x - boxes[:, 0], y - boxes[:, 1], boxes[:, 2] - x, boxes[:, 3] - y])
    positive = (of_candidates >= threshold) & (sides.amin(0) > 0.01)
    best = torch.full_like(overlaps, -1.0)
    best.scatter_(0, index, torch.where(positive, of_candidates, -1.0))
    value, gt_index = best.max(dim=1)
    return torch.where(value > -1, gt_index + 1, 0)


def sim_ota(num_gts: int, device: str) -> Case:
    """SimOTA at 640x640 with 80 classes, against the form with a one-hot target per prior, object and class."""
    import torch

    from detkit.task_modules import MlvlPointGenerator, SimOTAAssigner

    generator = MlvlPointGenerator([8, 16, 32], offset=0)
    priors = torch.cat(generator.grid_priors([(80, 80), (40, 40), (20, 20)], device=device, with_stride=True))
    truth, draw = objects(num_gts, (640, 640), 80, device), torch.Generator().manual_seed(1)
    scores = torch.rand(2, len(priors), 80, generator=draw).to(device) ** 4
    half = (torch.rand(2, len(priors), 2, generator=draw) * 60 + 4).to(device)
    boxes = torch.cat([priors[:, :2] - half, priors[:, :2] + half], dim=2)
    assigner = SimOTAAssigner()
    return Case(
        lambda: assigner.assign_batch(priors, truth, bboxes=boxes, scores=scores).gt_inds,
        lambda: torch.stack(
            [textbook_sim_ota(priors, boxes[i], scores[i], truth.boxes[i], truth.labels[i]) for i in range(2)]
        ),
        f"{len(priors)} priors",
    )


def textbook_sim_ota(priors: Any, boxes: Any, scores: Any, gt_boxes: Any, gt_labels: Any) -> Any:
    """Section 2.1 of YOLOX, line by line: objects (A,) of one image."""
    import torch
    import torch.nn.functional as F
    from torchvision.ops import box_iou

    x, y, radius = priors[:, 0, None], priors[:, 1, None], 2.5 * priors[:, 2, None]
    x1, y1, x2, y2 = gt_boxes.unbind(-1)
    inside = torch.stack([x - x1, y - y1, x2 - x, y2 - y]).amin(0) > 0
    central = torch.maximum((x - (x1 + x2) / 2).abs(), (y - (y1 + y2) / 2).abs()) < radius
    near = (inside | central).any(dim=1)
    overlaps = box_iou(boxes[near], gt_boxes)
    target = F.one_hot(gt_labels, scores.shape[1]).float().expand(len(overlaps), -1, -1)  # (P, G, C)
    repeated = scores[near].unsqueeze(1).expand_as(target)
    cls_cost = F.binary_cross_entropy(repeated, target, reduction="none").sum(-1)
    cost = cls_cost - 3 * torch.log(overlaps + 1e-7) + 1e5 * ~(inside & central)[near]
    quota = overlaps.topk(10, dim=0).values.sum(0).int().clamp(min=1)
    takes = torch.zeros_like(cost, dtype=torch.bool)
    for index in range(len(gt_boxes)):
        takes[cost[:, index].topk(int(quota[index]), largest=False).indices, index] = True
    shared = takes.sum(dim=1) > 1
    takes[shared] = F.one_hot(cost[shared].argmin(dim=1), len(gt_boxes)).bool()
    gt_inds = torch.zeros(len(priors), dtype=torch.int64, device=priors.device)
    gt_inds[near] = torch.where(takes.any(1), takes.int().argmax(1) + 1, 0)
    return gt_inds


def retinanet_loss(num_gts: int, device: str) -> Case:
    """Targets, losses and their backward of RetinaNet at 800x1344, against torchvision's compute_loss."""
    from torchvision.models.detection import retinanet_resnet50_fpn

    from detkit.losses import FocalLoss, L1Loss
    from detkit.models.dense_heads.targets.anchor_targets import anchor_targets
    from detkit.task_modules import DeltaXYWHBBoxCoder, MaxIoUAssigner, PseudoSampler

    truth, anchors = objects(num_gts, PADDED, 80, device), retina_anchors(PADDED, device)
    logits, offsets = predictions(len(anchors), (80, 4), device)
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=80)
    labelled = [{"boxes": b, "labels": label} for b, label in zip(truth.boxes, truth.labels, strict=True)]
    parts = MaxIoUAssigner(0.5, 0.4, min_pos_iou=0), PseudoSampler(), DeltaXYWHBBoxCoder()
    loss_cls, loss_bbox = FocalLoss(), L1Loss()

    def ours() -> Any:
        targets = anchor_targets(anchors, truth, None, *parts, num_classes=80)
        cls = loss_cls(
            logits.flatten(0, 1),
            targets.labels.flatten(),
            targets.label_weights.flatten(),
            avg_factor=targets.avg_factor,
        )
        weights = targets.bbox_weights.flatten().unsqueeze(-1)
        bbox = loss_bbox(
            offsets.flatten(0, 1), targets.bbox_targets.flatten(0, 1), weights, avg_factor=targets.avg_factor
        )
        return backward(cls + bbox, logits, offsets)

    def yardstick() -> Any:
        losses = model.compute_loss(labelled, {"cls_logits": logits, "bbox_regression": offsets}, [anchors] * 2)
        return backward(sum(losses.values()), logits, offsets)

    return Case(ours, yardstick, f"{len(anchors)} priors, 80 classes")


def fcos_loss(num_gts: int, device: str) -> Case:
    """Targets, losses and their backward of FCOS at 800x1344, against torchvision's compute_loss."""
    import torch
    from torchvision.models.detection import fcos_resnet50_fpn

    from detkit.losses import CrossEntropyLoss, FocalLoss, GIoULoss
    from detkit.models.dense_heads.losses.fcos_loss import fcos_losses
    from detkit.models.dense_heads.targets.point_targets import point_targets
    from detkit.task_modules import FCOSAssigner, MlvlPointGenerator, PseudoSampler

    levels = MlvlPointGenerator(list(STRIDES)).grid_priors(level_sizes(PADDED), device=device, with_stride=True)
    points, truth = torch.cat(levels), objects(num_gts, PADDED, 80, device)
    bounds = (-1.0, 64.0, 128.0, 256.0, 512.0, 1e8)
    assigner = FCOSAssigner(list(itertools.pairwise(bounds)), center_sample_radius=1.5)
    counts = [len(level) for level in levels]
    logits, raw, central = predictions(len(points), (80, 4, 1), device)
    parts = FocalLoss(), GIoULoss(), CrossEntropyLoss(use_sigmoid=True)
    model = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=80)
    labelled = [{"boxes": b, "labels": label} for b, label in zip(truth.boxes, truth.labels, strict=True)]
    half = points[:, 2:] / 2
    anchors = [torch.cat([points[:, :2] - half, points[:, :2] + half], dim=1)] * 2
    head = {"cls_logits": logits, "bbox_ctrness": central}

    def ours() -> Any:
        targets = point_targets(points, truth, assigner, PseudoSampler(), 80, 8, {"num_level_priors": counts})
        distances = raw.relu() * points[:, 2:3]
        losses = fcos_losses(logits, distances, central.squeeze(2), points, targets, *parts, normed=True)
        return backward(sum(losses.values()), logits, raw, central)

    def yardstick() -> Any:
        losses = model.compute_loss(labelled, {**head, "bbox_regression": raw.relu()}, anchors, counts)
        return backward(sum(losses.values()), logits, raw, central)

    return Case(ours, yardstick, f"{len(points)} points, 80 classes")


def predictions(num_priors: int, widths: tuple[int, ...], device: str) -> list[Any]:
    """Leaf tensors (2, A, width) like those of a network that has begun to train."""
    import torch

    draw = torch.Generator().manual_seed(2)
    made = [torch.randn(2, num_priors, width, generator=draw) for width in widths]
    made[0] -= 4
    return [tensor.to(device).requires_grad_() for tensor in made]


def backward(loss: Any, *leaves: Any) -> Any:
    for leaf in leaves:
        leaf.grad = None
    loss.backward()
    return loss.detach()


CASES: dict[str, Callable[[str], Case]] = {
    "maxiou_100": lambda device: max_iou(100, device),
    "maxiou_20": lambda device: max_iou(20, device),
    "atss_100": lambda device: atss(100, device),
    "simota_100": lambda device: sim_ota(100, device),
    "retinanet_loss": lambda device: retinanet_loss(20, device),
    "fcos_loss": lambda device: fcos_loss(20, device),
}


def seconds(function: Callable[[], Any], device: str) -> float:
    import torch

    start = time.perf_counter()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def agreement(first: Any, second: Any) -> str:
    """How many priors have the same object, ignored ones counted as background; or the two losses."""
    if first.dim() == 0:
        return f"{float(second):.4f}, {float(first):.4f}"
    return f"{(first.clamp(min=0) == second.clamp(min=0)).float().mean():.3%}"


def benchmark(args: argparse.Namespace) -> None:
    import torch
    from terminaltables import AsciiTable

    torch.set_num_threads(args.threads)
    rows = [["case", "of", "yardstick ms", "detkit ms", "ratio", "agree"]]
    for name in args.only or CASES:
        case = CASES[name](args.device)
        same = agreement(case.ours(), case.yardstick())
        pairs = [(seconds(case.yardstick, args.device), seconds(case.ours, args.device)) for _ in range(args.runs)]
        yardstick, ours = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
        ratio = statistics.median(first / second for first, second in pairs)
        rows.append([name, case.of, f"{yardstick:.1f}", f"{ours:.1f}", f"{ratio:.1f}", same])
    print(AsciiTable(rows).table)


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in ELSEWHERE:
        return importlib.import_module(ELSEWHERE[sys.argv[1]][0]).main(sys.argv[2:])
    args = parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed
    from detkit.engine.cli import run_cli

    run_cli(benchmark, args)


if __name__ == "__main__":
    main()
