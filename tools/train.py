"""Train a detector.

python tools/train.py configs/retinanet/retinanet_r18_fpn_shapes.py
python tools/train.py CONFIG --dry-run
python tools/train.py CONFIG --resume
python tools/train.py CONFIG --num-processes 8
torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST tools/train.py CONFIG
python tools/train.py CONFIG --cfg-options optim_wrapper.optimizer.lr=0.001 train_cfg.max_epochs=6
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    from detkit.arguments import default_argument_parser

    parser = default_argument_parser(
        "Train a detector, validate it, and leave checkpoints, metrics, curves and pictures."
    )
    parser.add_argument("--work-dir", help="folder of the run (default: work_dirs/<name of the config>)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="CHECKPOINT",
        help="go on from this checkpoint; without a value, from the newest intact one in the work directory",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, train two iterations, predict two validation batches, leave nothing behind",
    )
    parser.add_argument("--deterministic", action="store_true", help="use algorithms that repeat to the bit")
    parser.add_argument("--amp", action="store_true", help="mixed precision: float16 on CUDA, bfloat16 on a CPU")
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate, and what is counted in iterations, to the batch size (config: auto_scale_lr)",
    )
    parser.add_argument("--seed", type=int, help="of every random number (default: the config's, else 0)")
    return parser.parse_args(arguments)


def configure(args: argparse.Namespace) -> Any:
    """The config that the arguments describe."""
    from detkit.config import load
    from detkit.engine.cli import set_launcher

    cfg = load(args.config, args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or str(Path("work_dirs", Path(args.config).stem))
    cfg.resume = args.resume or cfg.get("resume", False)
    set_launcher(cfg, args)
    if args.device is not None:
        cfg.device = args.device
    if args.seed is not None:
        cfg.randomness = {**cfg.get("randomness", {}), "seed": args.seed}
    if args.deterministic:
        cfg.randomness = {**cfg.get("randomness", {}), "deterministic": True}
    if args.auto_scale_lr:
        if "base_batch_size" not in (cfg.get("auto_scale_lr") or {}):
            raise KeyError(
                "--auto-scale-lr needs auto_scale_lr.base_batch_size in the config: the batch size it is for"
            )
        cfg.auto_scale_lr.enable = True
    if args.amp:
        kind = cfg.optim_wrapper.get("type", "OptimWrapper")
        if kind not in ("OptimWrapper", "AmpOptimWrapper"):
            raise ValueError(f"--amp replaces an OptimWrapper, but optim_wrapper.type is {kind!r}; leave --amp out")
        cfg.optim_wrapper.type = "AmpOptimWrapper"
    return cfg


def train(args: argparse.Namespace) -> None:
    from detkit.engine import Runner, dry_run
    from detkit.engine.distributed import is_main_process
    from detkit.engine.hooks.checkpoint import CheckpointHook, checkpoint_folder
    from detkit.engine.reporting.console import duration
    from detkit.visualization.curves import plot_run

    if args.dry_run:
        lines = dry_run(configure(args))
        if is_main_process():
            print("\n".join(lines))
        return
    start = time.perf_counter()
    runner = Runner.from_cfg(configure(args))
    runner.train()
    if runner.rank:
        return
    folder = Path(runner.work_dir)
    lines = [f"trained to epoch {runner.epoch}, iteration {runner.iter}, in {duration(time.perf_counter() - start)}"]
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    for metric, best in [item for hook in hooks for item in hook.best.items()]:
        path = hooks[0].folder(runner) / best["file"]
        lines.append(f"best      {metric} {best['score']:.4f} at epoch {best['epoch']}: {path}")
    pointer = checkpoint_folder(runner) / "last_checkpoint"
    if pointer.is_file():
        lines.append(f"last      {pointer.with_name(pointer.read_text())}")
    lines.append(f"metrics   {folder / 'metrics.jsonl'}")
    if (folder / "tensorboard").is_dir():
        lines.append(f"          tensorboard --logdir {folder / 'tensorboard'}")
    lines += [f"curve     {path}" for path in plot_run(folder)]
    pictures = sorted((folder / "predictions").glob("*.png"))
    if pictures:
        lines.append(f"pictures  {pictures[0].parent} ({len(pictures)} images)")
    print("\n".join(lines))


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed
    args = parse_args()
    from detkit.engine.cli import run_cli, run_processes

    run_cli(run_processes, train, args, configure, show_traceback=args.traceback)


if __name__ == "__main__":
    main()
