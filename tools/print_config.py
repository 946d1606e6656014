"""Print a config as a run would see it: bases merged, overrides made, checked.

python tools/print_config.py configs/retinanet/retinanet_r50_fpn_1x_coco.py --cfg-options model.backbone.depth=101
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Print a config as a run would see it.")
    parser.add_argument("config", help="config file")
    parser.add_argument("--save-path", help="write the text to this file instead of the terminal")
    parser.add_argument("--no-check", action="store_true", help="print at once, without looking up what it names")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override config values; +KEY=VALUE adds",
    )
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    return parser.parse_args(arguments)


def print_config(args: argparse.Namespace) -> None:
    from detkit.config import dump, load

    text = dump(load(args.config, args.cfg_options, checked=not args.no_check))
    if args.save_path:
        Path(args.save_path).write_text(text, encoding="utf-8")
    else:
        print(text, end="")


def main() -> None:
    args = parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed
    from detkit.engine.cli import run_cli

    run_cli(print_config, args, show_traceback=args.traceback)


if __name__ == "__main__":
    main()
