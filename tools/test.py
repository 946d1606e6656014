"""Evaluate a checkpoint: the metrics of the config's test set, and a table per class.

python tools/test.py CONFIG work_dirs/run/best_coco_bbox_mAP_epoch_12.pth
python tools/test.py CONFIG CHECKPOINT --tta
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    from detkit.arguments import default_argument_parser

    parser = default_argument_parser("Evaluate a checkpoint on the config's test set.")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--work-dir", help="folder of the results (default: work_dirs/<name of the config>/test)")
    parser.add_argument(
        "--tta",
        action="store_true",
        help="merge predictions of several views of each image: tta_model and tta_pipeline of the config, else a flip",
    )
    return parser.parse_args(arguments)


def configure(args: argparse.Namespace) -> Any:
    """The config that the arguments describe."""
    from detkit.config import load
    from detkit.engine.cli import set_launcher
    from detkit.engine.run.tta import use_tta

    cfg = load(args.config, args.cfg_options)
    cfg.work_dir = args.work_dir or str(Path("work_dirs", Path(args.config).stem, "test"))
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.tta:
        use_tta(cfg)
    set_launcher(cfg, args)
    if args.device is not None:
        cfg.device = args.device
    show_classes(cfg.get("test_evaluator") or [])
    return cfg


def show_classes(evaluator: Any) -> None:
    """Ask for the table per class where a metric has one and the config does not decide."""
    from detkit.registry import METRICS
    from detkit.signature import accepted_arguments

    if isinstance(evaluator, (list, tuple)):  # several metrics, or those of each of several datasets
        for one in evaluator:
            show_classes(one)
        return
    kind = evaluator.get("type")
    cls = METRICS.get(kind) if isinstance(kind, str) else kind
    if cls is not None and "classwise" in accepted_arguments(cls).accepted:
        evaluator.setdefault("classwise", True)


def test(args: argparse.Namespace) -> None:
    from detkit.checkpoints import open_checkpoint, write_text
    from detkit.engine import Runner

    cfg = configure(args)
    open_checkpoint(args.checkpoint)  # a wrong file is refused before data and model are built
    runner = Runner.from_cfg(cfg)
    metrics = plain(runner.test())
    if runner.rank:
        return
    path = Path(runner.work_dir, "metrics.json")
    write_text(path, json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    print(f"metrics   {path}")
    pictures = sorted(Path(runner.work_dir).glob("predictions/*.png"))
    if pictures:
        print(f"pictures  {pictures[0].parent} ({len(pictures)} images)")


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: null for what is not a finite number."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy, torch
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed
    args = parse_args()
    from detkit.engine.cli import run_cli, run_processes

    run_cli(run_processes, test, args, configure, show_traceback=args.traceback)


if __name__ == "__main__":
    main()
