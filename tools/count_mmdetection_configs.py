"""Count how many configs of MMDetection load, pass the check and build here, unmodified, and what the others need.

python tools/count_mmdetection_configs.py .venv/lib/python3.12/site-packages/mmdet/.mim/configs
pip download mmdet==3.3.0 --no-deps && python tools/count_mmdetection_configs.py mmdet-3.3.0-py3-none-any.whl
python tools/count_mmdetection_configs.py FOLDER --save-path refused.txt --processes 8

A config counts if everything in it is known (model, data, metrics, hooks, loops, optimizer) and its model is built on
the meta device. Files without a model, which others take parts from, are left out.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
INSIDE_A_WHEEL = "mmdet/.mim/configs/"
NOT_READ = " at loading"


class Outcome(NamedTuple):
    """What became of one config.

    Attributes:
        name: Path below the folder.
        missing: The parts that it needs and that are not there; empty where it builds.
        message: All that stands against it.
    """

    name: str
    missing: tuple[str, ...]
    message: str


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Count the configs of MMDetection that load and build unmodified.")
    parser.add_argument("source", type=Path, help="a folder of configs, or a wheel of mmdet")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="how many at a time")
    parser.add_argument("--save-path", type=Path, help="also write what stands against each refused config")
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    return parser.parse_args(arguments)


def try_config(root: Path, path: Path) -> Outcome | None:
    """Load, check and build one config; None for a file without a model."""
    import torch

    from detkit.config import ConfigProblems, examine
    from detkit.registry import MODELS

    name = path.relative_to(root).as_posix()
    try:
        cfg, problems = examine(path)
    except Exception as error:  # whatever it is stands against the config
        return Outcome(name, (type(error).__name__ + NOT_READ,), str(error.args[0] if error.args else error))
    if "model" not in cfg:
        return None
    if problems:
        return Outcome(name, tuple({problem.part: None for problem in problems}), str(ConfigProblems(problems)))
    try:
        with torch.device("meta"):
            MODELS.build(cfg.model)
    except Exception as error:
        return Outcome(name, (f"{type(error).__name__} at building",), str(error.args[0] if error.args else error))
    return Outcome(name, (), "")


def try_all(root: Path, processes: int) -> list[Outcome]:
    """Every config below ``root``, but for bases."""
    paths = sorted(path for path in root.rglob("*.py") if "_base_" not in path.relative_to(root).parts)
    if not paths:
        raise ValueError(f"{root}: no config file (*.py) in it")
    with ProcessPoolExecutor(processes, initializer=_start, initargs=(root,)) as pool:
        outcomes = pool.map(try_config, [root] * len(paths), paths, chunksize=4)
        return [outcome for outcome in outcomes if outcome is not None]


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """What is missing, by how many configs each part blocks, and how many it blocks alone."""
    blocked = Counter(part for outcome in outcomes for part in outcome.missing)
    alone = Counter(outcome.missing[0] for outcome in outcomes if len(outcome.missing) == 1)
    lines = ["blocked  alone  missing"]
    for part, count in sorted(blocked.items(), key=lambda item: (-item[1], -alone[item[0]], item[0])):
        lines.append(f"{count:7}  {alone[part] or '':5}  {part}")
    return lines


def count(args: argparse.Namespace) -> None:
    if not args.source.exists():
        raise FileNotFoundError(f"{args.source}: a folder of configs or a wheel of mmdet was expected")
    with tempfile.TemporaryDirectory() as unpacked:
        root = args.source
        if root.is_file():
            with zipfile.ZipFile(root) as wheel:
                wheel.extractall(unpacked, [name for name in wheel.namelist() if name.startswith(INSIDE_A_WHEEL)])
            root = Path(unpacked, INSIDE_A_WHEEL)
        outcomes = try_all(root, args.processes)
    refused = [outcome for outcome in outcomes if outcome.missing]
    if args.save_path:
        args.save_path.write_text("".join(f"{each.name}: {each.message}\n" for each in refused), encoding="utf-8")
    if refused:
        print("\n".join([*table(refused), ""]))
    unread = sum(outcome.missing[0].endswith(NOT_READ) for outcome in refused)
    print(f"{len(outcomes) - len(refused)} of {len(outcomes)} configs load, pass the check and build", end="")
    print(f"; {unread} others name files that are not there" if unread else "")


def _start(root: Path) -> None:
    """In a process: configs find each other, and warnings of 800 of them do not hide the table."""
    sys.path.insert(0, str(ROOT))
    os.environ["DETKIT_MMDET_CONFIGS"] = str(root.resolve())
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)


def main() -> None:
    args = parse_args()
    sys.path.insert(0, str(ROOT))  # a checkout runs without being installed
    from detkit.engine.cli import run_cli

    run_cli(count, args, show_traceback=args.traceback)


if __name__ == "__main__":
    main()
