"""Seconds of Faster and Mask R-CNN R50-FPN beside torchvision's models of that name.

python tools/benchmark.py two-stage
python tools/benchmark.py two-stage --what targets --size 800 1344 --objects 100 --runs 5
python tools/benchmark.py two-stage --what infer --batch 4
python tools/benchmark.py two-stage --device cuda --batch 16 --dtype bfloat16

``step`` is a training step: preprocessing, forward, losses, backward and an update by SGD. ``targets`` is what in it is
neither layers nor losses: proposals, assignment, sampling and what is to be learnt, masks too. ``infer`` is a
prediction from normalised images to boxes and masks. Both models have the same images, objects and weights, frozen
batch norms, as many proposals and sampled regions, and neither resizes. They run in turn; the table gives the medians
and the median of the ratios of the pairs.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    "faster-rcnn": "configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "mask-rcnn": "configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
}
WHAT = ("step", "targets", "infer")
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    from benchmark_step import add_device_options  # beside this file

    parser = argparse.ArgumentParser(prog="benchmark.py two-stage", description="Time R-CNNs beside torchvision's.")
    parser.add_argument("--only", nargs="+", choices=CONFIGS, help="these models (default: both)")
    parser.add_argument("--what", choices=WHAT, default="step", help="what is timed (default: step)")
    parser.add_argument("--batch", type=int, default=2, help="images (default: 2)")
    size = {"type": int, "nargs": 2, "metavar": ("H", "W")}
    parser.add_argument("--size", **size, default=[320, 320], help="pixels, multiples of 32 (default: 320 320)")
    parser.add_argument("--objects", type=int, default=10, help="objects of an image (default: 10)")
    parser.add_argument("--runs", type=int, default=9, help="pairs of runs that count (default: 9)")
    parser.add_argument("--warmup", type=int, default=1, help="pairs before that (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    add_device_options(parser)
    parser.add_argument("--contiguous", action="store_true", help="leave detkit's model in torch's usual memory format")
    args = parser.parse_args(arguments)
    if min(args.batch, args.objects, args.runs, args.threads, *args.size) < 1 or args.warmup < 0:
        parser.error("--batch, --size, --objects, --runs and --threads must be at least 1, --warmup at least 0")
    if any(side % 32 for side in args.size):
        parser.error(f"--size must be multiples of 32, which neither model pads, got {args.size[0]} {args.size[1]}")
    return args


def torchvision_model(name: str) -> Any:
    """As ``<name>_resnet50_fpn`` builds it for pretrained weights, but for these; as many proposals as detkit's."""
    from torchvision.models import resnet50
    from torchvision.models.detection import FasterRCNN, MaskRCNN
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.ops import FrozenBatchNorm2d

    backbone = _resnet_fpn_extractor(resnet50(norm_layer=FrozenBatchNorm2d), 3)
    cls = {"faster-rcnn": FasterRCNN, "mask-rcnn": MaskRCNN}[name]
    return cls(backbone, 81, _skip_resize=True, rpn_post_nms_top_n_train=1000)


def detkit_model(name: str) -> Any:
    """Of the shipped config, with what torchvision does otherwise: frozen norms, normalisation, two samples a cell."""
    from detkit.config import load
    from detkit.registry import MODELS

    cfg = load(ROOT / CONFIGS[name]).model
    cfg.backbone.update(init_cfg=None, norm_cfg={"type": "BN", "requires_grad": False})
    cfg.data_preprocessor.update(mean=MEAN, std=STD, bgr_to_rgb=False)
    for extractor in ("bbox_roi_extractor", "mask_roi_extractor"):
        if extractor in cfg.roi_head:
            cfg.roi_head[extractor].roi_layer.sampling_ratio = 2
    logging.disable(logging.INFO)  # a line for each parameter
    model = MODELS.build(cfg)
    model.init_weights()
    logging.disable(logging.NOTSET)
    return model


def copy_weights(ours: Any, theirs: Any) -> None:
    """Give torchvision's backbone and first stage detkit's weights; the second's classes are in another order."""
    from benchmark_step import layers  # beside this file

    head = ours.rpn_head
    sources = layers(ours.backbone, ours.neck, head.rpn_conv, head.rpn_cls, head.rpn_reg)
    for source, target in zip(sources, layers(theirs.backbone, theirs.rpn.head), strict=True):
        target.load_state_dict(source.state_dict())


def make_data(name: str, args: argparse.Namespace) -> tuple[dict[str, Any], list[Any], list[dict[str, Any]]]:
    """A batch as a data loader gives it, and its images and objects as torchvision takes them."""
    import torch
    from benchmark_gpu import make_batch

    from detkit.structures import BitmapMasks

    batch = make_batch(args, 80, args.device)
    images = [image / 255 for image in batch["inputs"]]
    objects = []
    for sample in batch["data_samples"]:
        found = sample.gt_instances
        target = {"boxes": found.bboxes, "labels": found.labels + 1}
        if name == "mask-rcnn":
            target["masks"] = discs(found.bboxes, args.size)
            found.masks = BitmapMasks(target["masks"].cpu().numpy(), *args.size)
        objects.append(target)
        sample.set_metainfo({"scale_factor": (1.0, 1.0)})
    assert torch.stack(images).isfinite().all()
    return batch, images, objects


def discs(boxes: Any, size: Sequence[int]) -> Any:
    """An ellipse in each box (G, 4): (G, H, W) uint8."""
    import torch

    x, y = (torch.arange(side, device=boxes.device) + 0.5 for side in (size[1], size[0]))
    x1, y1, x2, y2 = (boxes[:, i, None] for i in range(4))
    across, down = (2 * x - x1 - x2) / (x2 - x1), (2 * y - y1 - y2) / (y2 - y1)
    return (across[:, None, :] ** 2 + down[:, :, None] ** 2 <= 1).to(torch.uint8)


def targets(ours: Any, theirs: Any, data: tuple[Any, ...]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Proposals, assignment, sampling and targets of torchvision's model and of detkit's, from the same outputs."""
    import torch
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.roi_heads import project_masks_on_boxes
    from torchvision.models.detection.rpn import concat_box_prediction_layers

    from detkit.models.dense_heads.prediction.flatten import featmap_sizes
    from detkit.models.dense_heads.prediction.proposals import propose
    from detkit.models.roi_heads.sampling import positive_rois
    from detkit.structures.ground_truth import GroundTruth

    batch, _, objects = data
    prepared = ours.data_preprocessor(batch, True)
    images, samples = prepared["inputs"], prepared["data_samples"]
    sizes = [tuple(images.shape[2:])] * len(images)
    ours.train()
    theirs.train()
    with torch.no_grad():
        features = ours.extract_feat(images)
        logits, deltas = ours.rpn_head(features)

    def yardstick() -> Any:
        rpn, rois = theirs.rpn, theirs.roi_heads
        anchors = rpn.anchor_generator(ImageList(images, sizes), list(features))
        per_level = [level[0].numel() for level in logits]
        objectness, encoded = concat_box_prediction_layers(list(logits), list(deltas))
        decoded = rpn.box_coder.decode(encoded, anchors).view(len(images), -1, 4)
        boxes, _ = rpn.filter_proposals(decoded, objectness, sizes, per_level)
        labels, matched = rpn.assign_targets_to_anchors(anchors, objects)
        rpn.box_coder.encode(matched, anchors)
        rpn.fg_bg_sampler(labels)
        boxes, indices, labels, _ = rois.select_training_samples(boxes, objects)
        if rois.has_mask():
            for box, index, label, target in zip(boxes, indices, labels, objects, strict=True):
                positive = label > 0
                project_masks_on_boxes(target["masks"], box[positive], index[positive], 28)

    def own() -> Any:
        head, roi_head = ours.rpn_head, ours.roi_head
        levels = head.prior_generator.grid_priors(featmap_sizes(logits))
        proposals = propose(head._candidates(logits, deltas, samples, ours.proposal_cfg), ours.proposal_cfg)
        head.train_cfg.targets(
            levels, head.prior_generator, featmap_sizes(logits), samples, 1, {}, head.bbox_coder, one_class=True
        )
        sampled = roi_head.train_cfg.sample(proposals, GroundTruth.from_samples(samples), 80)
        roi_head.bbox_head.get_targets(sampled, roi_head.train_cfg)
        if roi_head.with_mask:
            from detkit.models.roi_heads.mask_heads.mask_targets import mask_targets

            masks = [sample.gt_instances.masks for sample in samples]
            mask_targets(positive_rois([sampled])[0], masks, 28)

    return yardstick, own


def predictions(ours: Any, theirs: Any, data: tuple[Any, ...], args: argparse.Namespace) -> Any:
    """A prediction of torchvision's model and one of detkit's."""
    import torch

    batch, images, _ = data
    ours.eval()
    theirs.eval()
    # Random layers say the same of every region: larger weights make detections of them.
    for layer in (ours.roi_head.bbox_head.fc_cls, theirs.roi_heads.box_predictor.cls_score):
        torch.nn.init.normal_(layer.weight, std=0.3)
    prepared = ours.data_preprocessor(batch, False)

    def own() -> Any:
        inputs = prepared["inputs"]
        inputs = inputs if args.contiguous else inputs.contiguous(memory_format=torch.channels_last)
        return ours.predict(inputs, prepared["data_samples"])

    return lambda: theirs(images), own


def row(name: str, args: argparse.Namespace) -> list[str]:
    """The line of a model."""
    import torch
    from benchmark_step import autocast, clock, compile_both, training

    torch.manual_seed(0)
    ours, theirs = (model.to(args.device) for model in (detkit_model(name), torchvision_model(name)))
    copy_weights(ours, theirs)
    if not args.contiguous:
        ours.to(memory_format=torch.channels_last)
    data = make_data(name, args)
    compile_both(ours, theirs, args)
    if args.what == "step":
        both = training(ours.train(), theirs.train(), *data, args)
    else:
        both = targets(ours, theirs, data) if args.what == "targets" else predictions(ours, theirs, data, args)

    def seconds(function: Callable[[], Any]) -> float:
        start = clock(args.device)
        function()
        return clock(args.device) - start

    with (
        nullcontext() if args.what == "step" else torch.no_grad(),
        nullcontext() if args.what == "step" else autocast(args),
    ):
        pairs = [[seconds(function) for function in both] for _ in range(args.warmup + args.runs)]
    del pairs[: args.warmup]
    yardstick, own = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(second / first for first, second in pairs)
    return [name, f"{yardstick * 1e3:.1f}", f"{own * 1e3:.1f}", f"{ratio:.3f}"]


def benchmark(args: argparse.Namespace) -> None:
    from benchmark_step import conditions, prepare
    from terminaltables import GithubFlavoredMarkdownTable

    prepare(args)
    rows = [["model", "torchvision ms", "detkit ms", "ratio"], *(row(name, args) for name in args.only or CONFIGS)]
    print(f"{args.what}, {args.objects} objects an image, {conditions(args)}")
    print(GithubFlavoredMarkdownTable(rows).table)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    sys.path.insert(0, str(ROOT))  # a checkout runs without being installed
    from detkit.engine.cli import run_cli

    run_cli(benchmark, args)


if __name__ == "__main__":
    main()
