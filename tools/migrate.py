"""Rewrite a config of MMDetection as one flat file for detkit, and tell what was changed.

python tools/migrate.py my_mmdetection_config.py configs/mine.py
python tools/migrate.py mmdet::retinanet/retinanet_r50_fpn_1x_coco.py configs/mine.py --cfg-options data_root=data/mine/

MMDetection's configs run here as they are; rewrite one to keep it. Where parts of it are not in detkit, they are all
listed and nothing is written.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

# What is most often the same twice.
SAME_AS = {"test_dataloader": "val_dataloader", "test_evaluator": "val_evaluator"}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rewrite a config of MMDetection as one flat file for detkit.")
    parser.add_argument("config", help="config file of MMDetection")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
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


def flat_text(cfg: Any, source: str) -> str:
    """The config as assignments of literals, in one file."""
    from detkit.config import dump

    values = {key: value for key, value in cfg.items() if key not in cfg.variables}
    aliases = {key: other for key, other in SAME_AS.items() if key in values and values[key] == values.get(other)}
    body = dump({key: value for key, value in values.items() if key not in aliases})
    lines = [f"{key} = {other}\n" for key, other in aliases.items()]
    return f'"""Made from {source} of MMDetection, by tools/migrate.py."""\n\n{body}{"".join(lines)}'


def changes_of(cfg: Any) -> list[str]:
    """What differs from the original, a line each."""
    from detkit.config.locating import locate

    main = locate(cfg.filename)
    bases = sorted({str(file) for file in cfg.origins.values() if file != main})
    lines = [f"_base_: what this file and {', '.join(bases)} give is in one file"] if bases else []
    lines += [str(change) for change in cfg.changes]
    if cfg.variables:
        names = ", ".join(sorted(cfg.variables))
        lines.append(f"{names}: variables; their values stand where they are used")
    return lines


def migrate(args: argparse.Namespace) -> None:
    import torch

    from detkit.config import examine, load
    from detkit.config.problems import refuse
    from detkit.registry import MODELS, building

    if args.output.exists() and not args.overwrite:
        raise FileExistsError(f"{args.output} exists; --overwrite replaces it")
    if args.output.suffix != ".py":
        raise ValueError(f"{args.output}: a Python file (.py) is written")
    cfg, problems = examine(args.config, args.cfg_options)
    refuse(problems)
    if "model" in cfg:
        with torch.device("meta"), building("model", cfg.model):
            MODELS.build(cfg.model)
    text = flat_text(cfg, args.config)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, args.output.name)
        path.write_text(text, encoding="utf-8")
        written = load(path).to_dict()
    kept = {key: value for key, value in cfg.to_dict().items() if key not in cfg.variables}
    if written != kept:
        raise AssertionError(f"{args.output}: the text that was made does not read as the config does")
    args.output.write_text(text, encoding="utf-8")
    changes = changes_of(cfg)
    print("\n".join([f"{args.output} is the same run, but for", *(f"  {line}" for line in changes)]))


def main() -> None:
    args = parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed
    from detkit.engine.cli import run_cli

    run_cli(migrate, args, show_traceback=args.traceback)


if __name__ == "__main__":
    main()
