"""Seconds of a training step of RetinaNet and FCOS R50-FPN beside torchvision's models of that name.

python tools/benchmark.py step
python tools/benchmark.py step --split --size 800 1344 --warmup 0 --runs 1
python tools/benchmark.py step --device cuda --batch 16 --dtype bfloat16 --compile

A step is preprocessing, forward, losses, backward and an update by SGD, of the same images, objects and weights. Batch
norms are frozen in both, as are the stem and the first stage, and neither resizes. Both models run in turn; the table
gives the medians, the median of the ratios of the pairs, and the first losses.

With ``--split`` each convolution, forward and backward, has a clock besides: the rest is what the step takes without.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    "retinanet": "configs/retinanet/retinanet_r50_fpn_1x_coco.py",
    "fcos": "configs/fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py",
}
# Layers of detkit's heads in the order of torchvision's.
HEADS = {
    "retinanet": ("cls_convs", "retina_cls", "reg_convs", "retina_reg"),
    "fcos": ("cls_convs", "conv_cls", "reg_convs", "conv_reg", "conv_centerness"),
}
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmark.py step", description="Time training steps beside torchvision's.")
    parser.add_argument("--only", nargs="+", choices=CONFIGS, help="these models (default: both)")
    parser.add_argument("--batch", type=int, default=2, help="images (default: 2)")
    size = {"type": int, "nargs": 2, "metavar": ("H", "W")}
    parser.add_argument("--size", **size, default=[320, 320], help="pixels, multiples of 32 (default: 320 320)")
    parser.add_argument("--objects", type=int, default=10, help="objects of an image (default: 10)")
    parser.add_argument("--runs", type=int, default=15, help="pairs of steps that count (default: 15)")
    parser.add_argument("--warmup", type=int, default=1, help="pairs before that (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    add_device_options(parser)
    parser.add_argument("--contiguous", action="store_true", help="leave detkit's model in torch's usual memory format")
    parser.add_argument("--channels-last", action="store_true", help="put torchvision's model in channels_last too")
    parser.add_argument("--split", action="store_true", help="convolutions and the rest apart")
    args = parser.parse_args(arguments)
    if min(args.batch, args.runs, args.threads, *args.size) < 1 or min(args.objects, args.warmup) < 0:
        parser.error("--batch, --size, --runs and --threads must be at least 1, --objects and --warmup at least 0")
    if args.split and args.dtype != "float32":
        parser.error("--split times convolutions in float32 alone")
    if any(side % 32 for side in args.size):
        parser.error(f"--size must be multiples of 32, which neither model pads, got {args.size[0]} {args.size[1]}")
    return args


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Where and how both models run."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile the layers of both")


def prepare(args: argparse.Namespace) -> None:
    """Set the threads, and refuse a device that is not there."""
    import torch

    from detkit.engine import select_device

    select_device(args.device)
    torch.set_num_threads(args.threads)


def autocast(args: argparse.Namespace) -> Any:
    """In what a model runs."""
    import torch

    device = torch.device(args.device).type
    return torch.autocast(device, dtype=torch.bfloat16) if args.dtype == "bfloat16" else nullcontext()


def compile_both(ours: Any, theirs: Any, args: argparse.Namespace) -> None:
    """Compile, where it is asked for, what in both goes from tensors to tensors."""
    import torch

    from detkit.engine import compile_model

    if not args.compile:
        return
    torch._dynamo.reset()
    compile_model(ours, True, torch.device(args.device))
    theirs.backbone.compile()
    heads = [theirs.head] if hasattr(theirs, "head") else [theirs.rpn.head, theirs.roi_heads.box_head]
    for head in heads:
        head.compile()


def conditions(args: argparse.Namespace, clock_of_cpu: str = "CPU time") -> str:
    """What a table's numbers depend on."""
    import torch

    height, width = args.size
    compiled = ", compiled" if args.compile else ""
    if args.device == "cpu":
        where = f"{args.threads} thread(s), {clock_of_cpu}"
    else:
        where = f"{torch.cuda.get_device_name(args.device)}, torch {torch.__version__}"
    return f"{args.batch} x {height} x {width}, {args.dtype}{compiled}, {where}"


def torchvision_model(name: str) -> Any:
    """As ``<name>_resnet50_fpn`` builds it for pretrained weights, but for these."""
    from torchvision.models import resnet50
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.models.detection.fcos import FCOS
    from torchvision.models.detection.retinanet import RetinaNet
    from torchvision.ops import FrozenBatchNorm2d
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    extra = LastLevelP6P7(2048 if name == "retinanet" else 256, 256)
    body = resnet50(norm_layer=FrozenBatchNorm2d)
    backbone = _resnet_fpn_extractor(body, 3, returned_layers=[2, 3, 4], extra_blocks=extra)
    return {"retinanet": RetinaNet, "fcos": FCOS}[name](backbone, 80, _skip_resize=True)


def detkit_model(name: str) -> Any:
    """Of the shipped config, with what torchvision does otherwise: frozen norms, the stride's place, normalisation."""
    from detkit.config import load
    from detkit.registry import MODELS

    cfg = load(ROOT / CONFIGS[name]).model
    cfg.backbone.update(init_cfg=None, style="pytorch", norm_cfg={"type": "BN", "requires_grad": False})
    cfg.data_preprocessor.update(mean=MEAN, std=STD, bgr_to_rgb=False)
    logging.disable(logging.INFO)  # a line for each parameter
    model = MODELS.build(cfg)
    model.init_weights()
    logging.disable(logging.NOTSET)
    return model


def layers(*modules: Any) -> Iterator[Any]:
    """Convolutions and norms, in order."""
    for module in modules:
        yield from (one for one in module.modules() if getattr(one, "weight", None) is not None)


def copy_weights(name: str, ours: Any, theirs: Any) -> None:
    """Give torchvision's model the weights of detkit's."""
    head = (getattr(ours.bbox_head, part) for part in HEADS[name])
    pairs = zip(layers(ours.backbone, ours.neck, *head), layers(theirs.backbone, theirs.head), strict=True)
    for source, target in pairs:
        target.load_state_dict(source.state_dict())


def clock(device: str) -> float:
    """Seconds: on a CPU those of this process, as what else the machine does must not count."""
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def convolution_clock(device: str) -> Iterator[list[float]]:
    """Within, the list gets the seconds of each convolution, forward and backward."""
    import torch

    taken: list[float] = []

    def clocked(function: Callable[..., Any], *arguments: Any) -> Any:
        start = clock(device)
        out = function(*arguments)
        taken.append(clock(device) - start)
        return out

    class Convolution(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, bias: Any, *layout: Any) -> Any:
            ctx.save_for_backward(x, weight)
            ctx.layout = None if bias is None else list(bias.shape), *layout
            return clocked(torch.ops.aten.convolution, x, weight, bias, *layout)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            wanted = list(ctx.needs_input_grad[:3])
            grads = clocked(torch.ops.aten.convolution_backward, grad, *ctx.saved_tensors, *ctx.layout, wanted)
            return *grads, *(None for _ in ctx.layout[1:])

    def forward(layer: Any, x: Any, weight: Any, bias: Any) -> Any:
        layout = layer.stride, layer.padding, layer.dilation, False, (0, 0), layer.groups
        return Convolution.apply(x, weight, bias, *layout)

    on_cpu = importlib.import_module("detkit.models.layers.cpu_convolution")
    originals = torch.nn.Conv2d._conv_forward, on_cpu.MANY_IMAGES, on_cpu.MANY_WEIGHTS
    # What another function convolves is without a clock.
    torch.nn.Conv2d._conv_forward, on_cpu.MANY_IMAGES, on_cpu.MANY_WEIGHTS = forward, 0, math.inf
    try:
        yield taken
    finally:
        torch.nn.Conv2d._conv_forward, on_cpu.MANY_IMAGES, on_cpu.MANY_WEIGHTS = originals


def steps(name: str, args: argparse.Namespace) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A training step of torchvision's model and one of detkit's; each returns its loss."""
    import torch
    from benchmark_gpu import make_batch  # beside this file

    torch.manual_seed(0)
    ours, theirs = (model.to(args.device).train() for model in (detkit_model(name), torchvision_model(name)))
    copy_weights(name, ours, theirs)
    for model, channels_last in ((ours, not args.contiguous), (theirs, args.channels_last)):
        if channels_last:
            model.to(memory_format=torch.channels_last)
    compile_both(ours, theirs, args)
    batch = make_batch(args, 80, args.device)
    images = [image / 255 for image in batch["inputs"]]
    objects = [
        {"boxes": sample.gt_instances.bboxes, "labels": sample.gt_instances.labels} for sample in batch["data_samples"]
    ]

    return training(ours, theirs, batch, images, objects, args)


def training(
    ours: Any, theirs: Any, batch: dict[str, Any], images: list[Any], objects: list[Any], args: argparse.Namespace
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A step of torchvision's model and one of detkit's, from images to the update; each returns its loss."""
    import torch

    from detkit.engine import AmpOptimWrapper, OptimWrapper
    from detkit.engine.run.train_step import train_step

    def optimizer(model: Any) -> Any:
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.SGD(learning, lr=1e-4, momentum=0.9, weight_decay=1e-4)

    of_theirs = optimizer(theirs)
    low = args.dtype == "bfloat16"
    of_ours = AmpOptimWrapper(optimizer(ours), dtype=args.dtype) if low else OptimWrapper(optimizer(ours))
    of_ours.initialize_count_status(ours, 0, args.warmup + args.runs)

    def yardstick() -> Any:
        with autocast(args):
            loss = sum(theirs(images, objects).values())
        of_theirs.zero_grad()
        loss.backward()
        of_theirs.step()
        return loss.detach()

    return yardstick, lambda: train_step(ours, batch, of_ours)["loss"]


def measure(step: Callable[[], Any], args: argparse.Namespace) -> tuple[float, float, float]:
    """Seconds of a step, those of what in it is no convolution (all without ``split``), and the loss."""
    with convolution_clock(args.device) if args.split else nullcontext([]) as convolutions:
        start = clock(args.device)
        loss = step()
        taken = clock(args.device) - start
    return taken, taken - sum(convolutions), float(loss)


def benchmark(args: argparse.Namespace) -> None:
    from terminaltables import GithubFlavoredMarkdownTable

    prepare(args)
    what = ("step", "rest") if args.split else ("step",)
    rows = [
        ["model", *(f"{part} {text}" for part in what for text in ("torchvision ms", "detkit ms", "ratio")), "loss"]
    ]
    for name in args.only or CONFIGS:
        both = steps(name, args)
        pairs = [[measure(step, args) for step in both] for _ in range(args.warmup + args.runs)]
        losses = ", ".join(f"{loss:.3f}" for _, _, loss in pairs[0])
        del pairs[: args.warmup]
        cells = []
        for part in range(len(what)):
            yardstick, ours = ([run[model][part] for run in pairs] for model in (0, 1))
            ratio = statistics.median(own / other for own, other in zip(ours, yardstick, strict=True))
            cells += [
                f"{statistics.median(yardstick) * 1e3:.0f}",
                f"{statistics.median(ours) * 1e3:.0f}",
                f"{ratio:.3f}",
            ]
        rows.append([name, *cells, losses])
    print(f"{args.objects} objects an image, {conditions(args)}")
    print(GithubFlavoredMarkdownTable(rows).table)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    sys.path.insert(0, str(ROOT))  # a checkout runs without being installed
    from detkit.engine.cli import run_cli

    run_cli(benchmark, args)


if __name__ == "__main__":
    main()
