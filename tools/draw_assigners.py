"""Draw what each assigner marks positive, by running it: docs/images/assigners/<name>.png, shown in docs/assigners.md.

python tools/draw_assigners.py
python tools/draw_assigners.py --only ATSSAssigner --out-dir work_dirs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw what each assigner marks positive.")
    parser.add_argument("--out-dir", default=str(ROOT / "docs/images/assigners"), help="folder for the pictures")
    parser.add_argument("--only", nargs="+", choices=sorted(CASES), metavar="ASSIGNER", help="these (default: all)")
    parser.add_argument("--dpi", type=int, default=120, help="dots per inch of 10 inches (default: %(default)s)")
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    return parser.parse_args(arguments)


Boxes = Sequence[tuple[float, float, float, float]]
# The image: a small, a middle and a large object, the last two overlapping, and a region in which nothing is counted.
SIZE = (192, 320)  # height, width
OBJECTS: Boxes = ((40, 34, 70, 68), (52, 104, 120, 168), (100, 66, 250, 182))
REGION = (254, 8, 314, 60)
STRIDES = (8, 16, 32)
CELLS = [(SIZE[0] // stride, SIZE[1] // stride) for stride in STRIDES]
NUM_CELLS = [height * width for height, width in CELLS]
FACTS = [{"img_shape": SIZE}]


def assign(
    config: dict[str, Any], priors: Any, objects: Boxes = OBJECTS, with_region: bool = False, **inputs: Any
) -> Any:
    """What the assigner makes of A priors and the objects of one image, as a batch."""
    import torch
    from mmengine.structures import InstanceData

    from detkit.registry import TASK_UTILS
    from detkit.structures.ground_truth import GroundTruth
    from detkit.task_modules import assign_batch

    boxes = torch.tensor(objects, dtype=torch.float32)
    region = InstanceData(bboxes=torch.tensor([REGION], dtype=torch.float32)) if with_region else None
    truth = GroundTruth.from_instances([InstanceData(bboxes=boxes, labels=torch.arange(len(boxes)))], [region])
    return assign_batch(TASK_UTILS.build(config), priors, truth, **inputs)


def anchors(scales: Sequence[float], ratios: Sequence[float] = (1.0,)) -> list[Any]:
    """Per level (P, 4), boxes ``scales`` cells wide around the middle of each cell."""
    from detkit.task_modules import AnchorGenerator

    return AnchorGenerator(list(STRIDES), list(ratios), scales=list(scales), center_offset=0.5).grid_priors(CELLS)


def middles(boxes: Any) -> Any:
    """Centres (..., 2) of boxes (..., 4)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def distances(centres: Any) -> Any:
    """Distances (G, P) of centres (P, 2) from the middles of the objects."""
    import torch

    return (middles(torch.tensor(OBJECTS)).unsqueeze(1) - centres).norm(dim=2)


def predictions(priors: Any, progress: float = 0.8) -> dict[str, Any]:
    """``bboxes`` (1, A, 4) and ``scores`` (1, A, C) of a network that has learnt some: best amid objects of their size.

    Args:
        priors: (A, 4) boxes.
        progress: How far the best boxes have come from their prior to the object, in [0, 1].
    """
    import torch

    from detkit.structures.boxes import bbox_xyxy_to_cxcywh

    generator, objects = torch.Generator().manual_seed(0), torch.tensor(OBJECTS)
    own, gt = bbox_xyxy_to_cxcywh(priors).unsqueeze(1), bbox_xyxy_to_cxcywh(objects.float())
    offset = ((own[..., :2] - gt[:, :2]) / gt[:, 2:]).square().sum(dim=-1)
    growth = (own[..., 2:] / gt[:, 2:]).log2().square().mean(dim=-1)
    quality = torch.exp(-6 * offset - 0.5 * growth)  # (A, G)
    best, nearest = quality.max(dim=1)
    boxes = priors + (objects[nearest] - priors) * progress * best.sqrt().unsqueeze(1)
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    boxes = boxes + 0.05 * size * torch.randn(len(priors), 4, generator=generator)
    scores = 0.02 + 0.9 * progress * quality * (0.8 + 0.2 * torch.rand(quality.shape, generator=generator))
    return {"bboxes": boxes.unsqueeze(0), "scores": scores.unsqueeze(0)}


def picture(config: dict[str, Any], panels: Sequence[Any], **facts: Any) -> Any:
    """An AssignmentPicture headed by the assigner's name and its numbers."""
    from detkit.visualization import AssignmentPicture

    numbers = ", ".join(f"{name}={value}" for name, value in config.items() if isinstance(value, (int, float)))
    return AssignmentPicture(config["type"], numbers, SIZE, facts.pop("objects", OBJECTS), panels, **facts)


def by_level(titles: Sequence[str], centres: Sequence[Any], gt_inds: Any, boxes: Any = None, **marks: Any) -> list[Any]:
    """A panel per level; of each object, the positive nearest to its middle has its box outlined.

    Args:
        titles: Of the levels.
        centres: Per level (P, 2), A in all.
        gt_inds: (A,).
        boxes: (A, 4); None outlines nothing.
        marks: ``rings`` or ``fit`` of the panels, (A,) each.
    """
    import torch

    from detkit.visualization import AssignmentPanel

    panels, start = [], 0
    for title, own in zip(titles, centres, strict=True):
        piece = slice(start, start + len(own))
        outlines, inds = [], gt_inds[piece]
        for number, distance in enumerate(distances(own), start=1):
            if boxes is not None and (inds == number).any():
                nearest = torch.where(inds == number, distance, torch.inf).argmin()
                outlines.append((boxes[piece][nearest].tolist(), number))
        panels.append(AssignmentPanel(title, own, inds, outlines, **{k: values[piece] for k, values in marks.items()}))
        start = piece.stop
    return panels


def on_anchors(config: dict[str, Any], scale: int = 4, with_region: bool = False, **inputs: Any) -> Any:
    """Assign square anchors, one per cell and ``scale`` cells wide."""
    import torch

    levels = anchors([scale])
    result = assign(config, torch.cat(levels), with_region=with_region, **inputs)
    titles = [f"stride {stride}, anchors of {stride * scale} pixels" for stride in STRIDES]
    panels = by_level(titles, [middles(level) for level in levels], result.gt_inds[0], torch.cat(levels))
    return picture(config, panels, outline="one of the anchors", region=REGION if with_region else None)


def on_predictions(config: dict[str, Any], logits: bool = False, points: bool = False, **inputs: Any) -> Any:
    """Assign predictions at anchors, or at points (x, y, stride, stride); scores or logits."""
    import torch

    from detkit.structures.boxes import bbox_overlaps
    from detkit.task_modules import MlvlPointGenerator

    levels = anchors([4])
    given = predictions(torch.cat(levels))
    boxes = given["bboxes"][0]
    if logits:
        given["scores"] = given["scores"].logit()
    priors = MlvlPointGenerator(list(STRIDES)).grid_priors(CELLS, with_stride=True) if points else levels
    result = assign(config, torch.cat(priors), **given, **inputs)
    fit = bbox_overlaps(boxes, torch.tensor(OBJECTS, dtype=torch.float32)).amax(dim=1)
    titles = [f"stride {stride}" for stride in STRIDES]
    panels = by_level(titles, [middles(level) for level in levels], result.gt_inds[0], boxes, fit=fit)
    return picture(config, panels, outline="one predicted box", fit="larger where the predicted box fits better")


def with_scaled_objects(shown: Any, outline: str, scales: Sequence[float]) -> Any:
    """The picture with each object's box scaled about its middle, instead of anchors."""
    outlines = []
    for number, (x1, y1, x2, y2) in enumerate(OBJECTS, start=1):
        for scale in scales:
            dx, dy = (x2 - x1) * (1 - scale) / 2, (y2 - y1) * (1 - scale) / 2
            outlines.append(((x1 + dx, y1 + dy, x2 - dx, y2 - dy), number))
    return replace(shown, panels=[replace(panel, outlines=outlines) for panel in shown.panels], outline=outline)


def max_iou() -> Any:
    config = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "ignore_iof_thr": 0.5}
    return on_anchors(config, with_region=True)


def approx_max_iou() -> Any:
    """Nine shapes of each anchor, of which the best is outlined."""
    import torch

    from detkit.structures.boxes import bbox_overlaps

    config = {"type": "ApproxMaxIoUAssigner", "pos_iou_thr": 0.6, "neg_iou_thr": 0.5, "ignore_iof_thr": 0.5}
    shapes = torch.cat(anchors([3.0, 4.0, 5.0], [0.7, 1.0, 1.4])).view(-1, 9, 4)
    shown = on_anchors(config, with_region=True, approxs=shapes)
    overlaps = bbox_overlaps(shapes, torch.tensor(OBJECTS, dtype=torch.float32)).amax(dim=2)  # (A, 9)
    best = shapes[torch.arange(len(shapes)), overlaps.argmax(dim=1)]
    gt_inds = torch.cat([panel.gt_inds for panel in shown.panels])
    panels = by_level([panel.title for panel in shown.panels], [p.centres for p in shown.panels], gt_inds, best)
    return replace(shown, panels=panels, outline="best shape of one of the anchors")


def atss() -> Any:
    """Rings around the nine priors of each level that are nearest to an object."""
    import torch

    config = {"type": "ATSSAssigner", "topk": 9, "ignore_iof_thr": 0.5}
    shown = on_anchors(config, with_region=True, num_level_priors=NUM_CELLS)
    panels = []
    for panel in shown.panels:
        rings = torch.zeros_like(panel.gt_inds)
        for number, distance in enumerate(distances(panel.centres), start=1):
            rings[distance.topk(9, largest=False).indices] = number
        panels.append(replace(panel, rings=rings))
    return replace(shown, panels=panels, ring="candidate of an object")


def center_region() -> Any:
    """Anchors as large as cells, as FSAF has them; rings around those that an object shadows."""
    import torch

    config = {"type": "CenterRegionAssigner", "pos_scale": 0.3, "neg_scale": 0.6}
    levels = anchors([1])
    result = assign(config, torch.cat(levels), with_region=True)
    shadowed = result.extra["shadowed"][0] != 0  # (A, G)
    rings = torch.where(shadowed.any(dim=1), shadowed.int().argmax(dim=1) + 1, 0)
    titles = [f"stride {stride}, anchors of {stride} pixels" for stride in STRIDES]
    panels = by_level(titles, [middles(level) for level in levels], result.gt_inds[0], rings=rings)
    shown = picture(config, panels, ring="no loss for the class of this object", region=REGION)
    return with_scaled_objects(shown, "core and shadow", (0.3, 0.6))


def grid() -> Any:
    import torch

    priors = torch.cat(anchors([4]))
    from_middle = (middles(torch.tensor(OBJECTS)) - middles(priors).unsqueeze(1)).abs()
    cell = (priors[:, 2:] - priors[:, :2]).unsqueeze(1) / 4
    holds_middle = (from_middle <= cell / 2).all(dim=2).any(dim=1)
    config = {"type": "GridAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5}
    return on_anchors(config, responsible_flags=holds_middle.unsqueeze(0))


def region() -> Any:
    shown = on_anchors(
        {"type": "RegionAssigner", "center_ratio": 0.3, "ignore_ratio": 0.6},
        img_metas=FACTS,
        featmap_sizes=CELLS,
        num_level_anchors=NUM_CELLS,
        anchor_scale=4,
        anchor_strides=STRIDES,
        allowed_border=-1,
    )
    return with_scaled_objects(shown, "centre region and ignore region", (0.3, 0.6))


def uniform() -> Any:
    """One level with anchors of three sizes, as YOLOF has it; a panel for each size."""
    sizes = (32, 64, 128)
    by_size = anchors([size / STRIDES[1] for size in sizes])[1].view(-1, len(sizes), 4).transpose(0, 1)
    priors = by_size.flatten(0, 1)
    config = {"type": "UniformAssigner", "pos_ignore_thr": 0.15, "neg_ignore_thr": 0.7, "match_times": 4}
    result = assign(config, priors, decoder_priors=predictions(priors)["bboxes"])
    titles = [f"stride {STRIDES[1]}, anchors of {size} pixels" for size in sizes]
    return picture(config, by_level(titles, middles(by_size), result.gt_inds[0], priors), outline="one of the anchors")


def on_points(config: dict[str, Any], columns: int, **inputs: Any) -> Any:
    """Points of all levels, of which the assigner sees x, y and this many columns in all."""
    import torch

    from detkit.task_modules import MlvlPointGenerator

    levels = MlvlPointGenerator(list(STRIDES)).grid_priors(CELLS, with_stride=True)
    result = assign(config, torch.cat(levels)[:, :columns], **inputs)
    titles = [f"stride {stride}" for stride in STRIDES]
    return picture(config, by_level(titles, [level[:, :2] for level in levels], result.gt_inds[0]))


def fcos() -> Any:
    ranges = [(-1, 64), (64, 128), (128, 256)][: len(STRIDES)]
    config = {"type": "FCOSAssigner", "regress_ranges": ranges, "center_sample_radius": 1.5}
    return on_points(config, columns=4, num_level_priors=NUM_CELLS)


def fovea() -> Any:
    config = {"type": "FoveaAssigner", "scale_ranges": [(16, 64), (32, 128), (64, 256)], "sigma": 0.4}
    return on_points(config, columns=4, featmap_sizes=CELLS)


def of_boxes(title: str, boxes: Any, gt_inds: Any) -> Any:
    """A panel of predicted boxes, all of them outlined."""
    from detkit.visualization import AssignmentPanel

    outlines = list(zip(boxes.tolist(), gt_inds.tolist(), strict=True))
    return AssignmentPanel(title, middles(boxes), gt_inds, outlines)


def hungarian() -> Any:
    """Predictions of three decoder layers, each matched by itself: three queries near each object."""
    import torch

    costs = [{"type": "ClassificationCost"}, {"type": "BBoxL1Cost", "weight": 5.0}, {"type": "IoUCost", "weight": 2.0}]
    config = {"type": "HungarianAssigner", "match_costs": costs}
    objects = torch.tensor(OBJECTS, dtype=torch.float32).unsqueeze(1)
    size = objects[..., 2:] - objects[..., :2]
    centre = middles(objects) + size * torch.tensor([[0.25, -0.3], [-0.25, 0.1], [0.3, 0.3]])
    half = size / 2 * torch.tensor([[0.7], [0.9], [0.6]])
    queries = torch.cat([centre - half, centre + half], dim=2).flatten(0, 1)
    panels = []
    for layer, progress in ((1, 0.0), (3, 0.6), (6, 1.2)):
        given = predictions(queries, progress)
        scores = given["scores"].clamp(min=0.1).log()
        result = assign(config, None, img_metas=FACTS, bboxes=given["bboxes"], scores=scores)
        panels.append(of_boxes(f"predictions of decoder layer {layer}", given["bboxes"][0], result.gt_inds[0]))
    return picture(config, panels, outline="prediction")


def multi_instance() -> Any:
    """Proposals in a crowd: first themselves, then with their first and their second object."""
    import torch

    config = {"type": "MultiInstanceAssigner", "num_instance": 2, "pos_iou_thr": 0.5, "neg_iou_thr": 0.5}
    crowd = ((40, 34, 70, 68), (100, 48, 180, 172), (132, 40, 212, 164))
    boxes = torch.tensor(
        [
            (36.0, 30, 68, 60),
            (78, 56, 160, 182),
            (112, 56, 192, 164),
            (118, 42, 198, 160),
            (152, 30, 230, 160),
            (240, 90, 300, 160),
        ]
    )
    result = assign(config, boxes, crowd)
    # The objects themselves are proposals too; they come last.
    index, labels = result.gt_inds[0, : len(boxes)], result.labels[0, : len(boxes)]
    learnt = (index + 1) * (labels == 1)  # (A, K)
    panels = [of_boxes("proposals", boxes, index[:, 0] * 0)]
    panels += [of_boxes(f"their {nth} objects", boxes, learnt[:, k]) for k, nth in enumerate(("first", "second"))]
    return picture(config, panels, outline="proposal", objects=crowd)


CASES: dict[str, Callable[[], Any]] = {
    "MaxIoUAssigner": max_iou,
    "ApproxMaxIoUAssigner": approx_max_iou,
    "ATSSAssigner": atss,
    "GridAssigner": grid,
    "UniformAssigner": uniform,
    "RegionAssigner": region,
    "CenterRegionAssigner": center_region,
    "PointAssigner": lambda: on_points({"type": "PointAssigner", "scale": 4, "pos_num": 3}, columns=3),
    "FCOSAssigner": fcos,
    "FoveaAssigner": fovea,
    "SimOTAAssigner": lambda: on_predictions({"type": "SimOTAAssigner", "candidate_topk": 10}, points=True),
    "DynamicSoftLabelAssigner": lambda: on_predictions(
        {"type": "DynamicSoftLabelAssigner", "topk": 13}, logits=True, points=True
    ),
    "TaskAlignedAssigner": lambda: on_predictions({"type": "TaskAlignedAssigner", "topk": 9}),
    "HungarianAssigner": hungarian,
    "TopkHungarianAssigner": lambda: on_predictions({"type": "TopkHungarianAssigner", "topk": 5}, img_metas=FACTS),
    "MultiInstanceAssigner": multi_instance,
}


def draw_assigners(args: argparse.Namespace) -> None:
    from detkit.visualization import draw_assignment

    folder = Path(args.out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.only or CASES:
        draw_assignment(CASES[name](), folder / f"{name}.png", args.dpi)
    print(f"pictures: {folder}")


def main() -> None:
    args = parse_args()
    sys.path.insert(0, str(ROOT))  # a checkout runs without being installed
    from detkit.engine.cli import run_cli

    run_cli(draw_assigners, args, show_traceback=args.traceback)


if __name__ == "__main__":
    main()
