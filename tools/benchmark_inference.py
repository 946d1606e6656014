"""Seconds of a prediction of RetinaNet and FCOS R50-FPN beside torchvision's models of that name.

python tools/benchmark.py infer
python tools/benchmark.py infer --only fcos --size 800 1344 --runs 3
python tools/benchmark.py infer --device cuda --batch 16 --dtype bfloat16 --compile

Both have the same backbone weights and random heads, whose bias is set so that some 1000 pairs of an image score above
the threshold. They predict the same batch in turn, from normalised images to boxes; the table gives medians, the median
of the ratios of the pairs, and the share of detkit's time that is neither backbone nor head.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Case(NamedTuple):
    """A config, torchvision's function, and the layers of logits and of encoded boxes in detkit's head."""

    config: str
    yardstick: str
    logits: str
    deltas: str | None = None


CASES = {
    "retinanet": Case(
        "configs/retinanet/retinanet_r50_fpn_1x_coco.py", "retinanet_resnet50_fpn", "retina_cls", "retina_reg"
    ),
    "fcos": Case(
        "configs/fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py",
        "fcos_resnet50_fpn",
        "conv_cls",
    ),
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    from benchmark_step import add_device_options  # beside this file

    parser = argparse.ArgumentParser(prog="benchmark.py infer", description="Time predictions beside torchvision's.")
    parser.add_argument("--only", nargs="+", choices=CASES, help="these cases (default: all)")
    parser.add_argument("--batch", type=int, default=4, help="images (default: 4)")
    size = {"type": int, "nargs": 2, "metavar": ("H", "W")}
    parser.add_argument("--size", **size, default=[320, 320], help="pixels (default: 320 320)")
    parser.add_argument("--runs", type=int, default=7, help="pairs of runs, after one that does not count (default: 7)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    add_device_options(parser)
    parser.add_argument("--contiguous", action="store_true", help="leave detkit's model in torch's usual memory format")
    args = parser.parse_args(arguments)
    if min(args.batch, args.runs, args.threads, *args.size) < 1:
        parser.error("--batch, --size, --runs and --threads must be at least 1")
    return args


def models(case: Case, size: tuple[int, int], device: str) -> tuple[Any, Any]:
    """detkit's model and torchvision's, with one backbone's weights."""
    import torch
    from torchvision.models import detection

    from detkit.config import load
    from detkit.registry import MODELS

    torch.manual_seed(0)
    options = {"num_classes": 80, "min_size": min(size), "max_size": max(size)}
    theirs = getattr(detection, case.yardstick)(weights=None, weights_backbone=None, **options).eval()
    cfg = load(ROOT / case.config).model
    cfg.backbone.init_cfg = None
    cfg.backbone.style = "pytorch"
    ours = MODELS.build(cfg).eval()
    weights = {name[5:]: value for name, value in theirs.backbone.state_dict().items() if name.startswith("body.")}
    ours.backbone.load_state_dict(weights, strict=False)
    for model in (ours, theirs):
        for layer in model.modules():
            if isinstance(layer, torch.nn.Conv2d) and layer.weight.std() < 0.011:
                # Deep random towers fade out; boxes that wander off have no area.
                torch.nn.init.normal_(layer.weight, std=0.003 if layer.out_channels in (4, 36) else 0.03)
    return ours.to(device), theirs.to(device)


def raise_scores(bias: Any, logits: Callable[[], Any], pairs: int, threshold: float) -> None:
    """Set the bias so that so many pairs score above the threshold."""
    import torch

    bias.fill_(0)
    best = torch.cat([level.flatten() for level in logits()]).topk(pairs).values[-1]
    bias.fill_(float(torch.logit(torch.tensor(threshold)) - best))


def seconds(function: Callable[[], Any], device: str) -> float:
    """On a clock on the wall: threads count too."""
    import torch

    def now() -> float:
        if device != "cpu":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    function()
    return now() - start


def row(name: str, args: argparse.Namespace) -> list[str]:
    """The line of a case."""
    import torch
    from benchmark_step import compile_both

    from detkit.structures import DetDataSample

    case, size, device = CASES[name], tuple(args.size), args.device
    ours, theirs = models(case, size, device)
    images = torch.rand(args.batch, 3, *size).to(device)
    head, own_images = ours.bbox_head, images
    if not args.contiguous:
        ours = ours.to(memory_format=torch.channels_last)
        own_images = images.contiguous(memory_format=torch.channels_last)
    pairs = 1000 * args.batch
    raise_scores(getattr(head, case.logits).bias, lambda: head(ours.extract_feat(own_images))[0], pairs, 0.05)
    if case.deltas is not None:  # random ones move boxes out of the image, where detkit drops them
        layer = getattr(head, case.deltas)
        layer.weight.div_(5 * torch.cat([level.flatten() for level in head(ours.extract_feat(own_images))[1]]).std())
    their_head = theirs.head.classification_head
    of_theirs = lambda: [theirs.head(list(theirs.backbone(images).values()))["cls_logits"]]  # noqa: E731
    raise_scores(their_head.cls_logits.bias, of_theirs, pairs, theirs.score_thresh)
    facts = {"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0)}
    samples = [DetDataSample(metainfo=facts) for _ in range(args.batch)]
    compile_both(ours, theirs, args)
    found = [len(sample.pred_instances.scores) for sample in ours.predict(own_images, samples)]
    expected = [len(one["boxes"]) for one in theirs(list(images))]
    runs = [
        (seconds(lambda: theirs(list(images)), device), seconds(lambda: ours.predict(own_images, samples), device))
        for _ in range(args.runs)
    ]
    features = ours.extract_feat(own_images)
    outputs = head(features)
    head.forward, head._compiled_call_impl = lambda _: outputs, None
    post = min(seconds(lambda: head.predict(features, samples, rescale=True), device) for _ in range(3))
    yardstick, own = (statistics.median(column) for column in zip(*runs, strict=True))
    ratio = statistics.median(second / first for first, second in runs)
    counts = f"{sum(expected)}, {sum(found)}"
    return [name, f"{yardstick:.3f}", f"{own:.3f}", f"{ratio:.3f}", f"{post * 1e3:.1f} ms", f"{post / own:.1%}", counts]


def benchmark(args: argparse.Namespace) -> None:
    import torch
    from benchmark_step import autocast, conditions, prepare
    from terminaltables import AsciiTable

    prepare(args)
    header = ["model", "torchvision s", "detkit s", "ratio", "postprocessing", "its share", "detections"]
    print(conditions(args, "wall time"))
    with torch.no_grad(), autocast(args):
        print(AsciiTable([header, *(row(name, args) for name in args.only or CASES)]).table)


def main(arguments: list[str]) -> None:
    args = parse_args(arguments)
    sys.path.insert(0, str(ROOT))  # a checkout runs without being installed
    from detkit.engine.cli import run_cli

    run_cli(benchmark, args)


if __name__ == "__main__":
    main(sys.argv[1:])
