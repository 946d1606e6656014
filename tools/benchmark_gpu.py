"""Images per second and peak memory of a training step on a GPU, and how often in it the host waits for the device.

python tools/benchmark_gpu.py   # RetinaNet R50-FPN
python tools/benchmark_gpu.py --config configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py
python tools/benchmark_gpu.py --only fp32 bf16 --batch 4
python tools/benchmark_gpu.py --device cpu --size 64 64 --batch 1 --steps 1 --warmup 1 --only fp32   # does it run?

A step is that of a run: preprocessing, forward, losses, backward, update; of one batch of random images and objects
that lies on the device.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/retinanet/retinanet_r50_fpn_1x_coco.py"


class Case(NamedTuple):
    """How a model is run."""

    float32_precision: str = "highest"
    dtype: str | None = None
    channels_last: bool = False
    compiled: bool = False


CASES = {
    "fp32": Case(),
    "tf32": Case(float32_precision="high"),
    "bf16": Case(dtype="bfloat16"),
    "bf16+channels_last": Case(dtype="bfloat16", channels_last=True),
    "bf16+channels_last+compile": Case(dtype="bfloat16", channels_last=True, compiled=True),
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmark.py gpu", description="Time a detector's training step on a GPU.")
    parser.add_argument("--config", default=str(ROOT / CONFIG), help=f"a detector's config (default: {CONFIG})")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 ..., or cpu to see whether it runs")
    parser.add_argument("--batch", type=int, default=8, help="images (default: 8)")
    size = {"type": int, "nargs": 2, "metavar": ("H", "W")}
    parser.add_argument("--size", **size, default=[800, 1344], help="pixels (default: 800 1344)")
    parser.add_argument("--objects", type=int, default=20, help="objects of an image (default: 20)")
    parser.add_argument("--steps", type=int, default=30, help="steps that count (default: 30)")
    parser.add_argument("--warmup", type=int, default=10, help="steps before that (default: 10)")
    parser.add_argument("--only", nargs="+", choices=CASES, help="these cases (default: all)")
    parser.add_argument("--backend", default="inductor", help="what compiles (default: inductor)")
    args = parser.parse_args(arguments)
    if min(args.batch, args.steps, args.warmup, *args.size) < 1 or args.objects < 0:
        parser.error("--batch, --size, --steps and --warmup must be at least 1, --objects at least 0")
    return args


def make_batch(args: argparse.Namespace, num_classes: int, device: Any) -> dict[str, Any]:
    """Random images and objects, as a data loader gives them, but on the device."""
    import torch
    from mmengine.structures import InstanceData

    from detkit.structures import DetDataSample

    draw = torch.Generator().manual_seed(0)
    height, width = args.size
    images, samples = [], []
    for _ in range(args.batch):
        images.append(torch.randint(0, 256, (3, height, width), generator=draw).to(torch.uint8).to(device))
        corner = torch.rand(args.objects, 2, generator=draw) * torch.tensor([width, height]) * 0.8
        extent = torch.exp(torch.rand(args.objects, 2, generator=draw) * 3 + 2.5)
        boxes = torch.cat([corner, torch.minimum(corner + extent, torch.tensor([width, height]))], dim=1)
        sample = DetDataSample(metainfo={"img_shape": (height, width), "ori_shape": (height, width)})
        labels = torch.randint(0, num_classes, (args.objects,), generator=draw)
        sample.gt_instances = InstanceData(bboxes=boxes.to(device), labels=labels.to(device))
        samples.append(sample)
    return {"inputs": images, "data_samples": samples}


def make_step(case: Case, args: argparse.Namespace, device: Any) -> Callable[[], Any]:
    """A function that makes one training step of a new model, as a run would."""
    import torch

    from detkit.config import load
    from detkit.engine import OptimWrapper, compile_model
    from detkit.engine.environment import set_float32_precision
    from detkit.engine.run.train_step import train_step
    from detkit.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS

    set_float32_precision(case.float32_precision)
    cfg = load(args.config)
    cfg.model.backbone.pop("init_cfg", None)  # weights do not matter here
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    logging.disable(logging.INFO)  # a line for each parameter
    model.init_weights()
    logging.disable(logging.NOTSET)
    model.to(device)
    if case.channels_last:
        model.to(memory_format=torch.channels_last)
    wrapper: dict[str, Any] = {"optimizer": {**cfg.optim_wrapper.optimizer, "lr": 1e-4}}
    if case.dtype is not None:
        wrapper |= {"type": "AmpOptimWrapper", "dtype": case.dtype}
    constructor = {"type": "DefaultOptimWrapperConstructor", "optim_wrapper_cfg": wrapper}
    optim_wrapper: OptimWrapper = OPTIM_WRAPPER_CONSTRUCTORS.build(constructor)(model)
    optim_wrapper.initialize_count_status(model, 0, args.warmup + args.steps)
    if case.compiled:
        torch._dynamo.reset()
        compile_model(model, {"backend": args.backend}, device)
    model.train()
    head = cfg.model.bbox_head if "bbox_head" in cfg.model else cfg.model.roi_head.bbox_head
    batch = make_batch(args, (head[0] if isinstance(head, list) else head).num_classes, device)
    return lambda: train_step(model, batch, optim_wrapper)


@contextmanager
def counted_waits(device: Any) -> Iterator[list[Any]]:
    """Within, the list gets a warning for each CUDA operation for which the host waits; on a CPU nothing is counted."""
    import torch

    with warnings.catch_warnings(record=True) as found:
        warnings.filterwarnings("ignore")
        warnings.filterwarnings("always", message="called a synchronizing CUDA operation")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def measure(case: Case, args: argparse.Namespace, device: Any) -> tuple[float, int, int]:
    """Seconds of a step (median over the steps), the peak of the memory in bytes, and waits of a step; 0 on a CPU."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    step = make_step(case, args, device)
    for _ in range(args.warmup):
        step()
    with counted_waits(device) as waits:
        step()
    times, memory = (time_on_gpu if device.type == "cuda" else time_on_cpu)(step, args.steps)
    loss = step()["loss"].item()
    if not math.isfinite(loss):
        raise RuntimeError(f"the loss is {loss} after {args.warmup + args.steps + 2} steps")
    return statistics.median(times), memory, len(waits)


def time_on_gpu(step: Callable[[], Any], steps: int) -> tuple[list[float], int]:
    """Seconds of each step, and the peak of the memory in bytes."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()  # compilation and cuDNN's search are over
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize()
    times = [first.elapsed_time(second) / 1e3 for first, second in pairwise(marks)]
    return times, torch.cuda.max_memory_allocated()


def time_on_cpu(step: Callable[[], Any], steps: int) -> tuple[list[float], int]:
    """Seconds of each step; memory is not measured."""
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times, 0


def benchmark(args: argparse.Namespace) -> None:
    import torch
    from terminaltables import GithubFlavoredMarkdownTable

    from detkit.engine.environment import describe_environment, select_device

    device = select_device(args.device)
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    print(", ".join(f"{name} {value}" for name, value in describe_environment(device).items()))
    height, width = args.size
    print(f"{Path(args.config).stem}, {args.batch} x {height} x {width}, {args.objects} objects an image")
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    rows = [["step", "images/s", "ms", "peak MiB", "waits"]]
    try:
        for name in args.only or CASES:
            seconds, memory, waits = measure(CASES[name], args, device)
            counted = [f"{memory / 2**20:.0f}", f"{waits}"] if device.type == "cuda" else ["not measured"] * 2
            rows.append([name, f"{args.batch / seconds:.1f}", f"{seconds * 1e3:.1f}", *counted])
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    print(GithubFlavoredMarkdownTable(rows).table)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    sys.path.insert(0, str(ROOT))  # a checkout runs without being installed
    from detkit.engine.cli import run_cli

    run_cli(benchmark, args)


if __name__ == "__main__":
    main()
