"""Train every method on the example data, one after another, and keep the table of docs/methods.md.

python tools/train_all.py                 # or: make train-all
python tools/train_all.py configs/fcos/*_shapes.py --again
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
METRIC, OF_MASKS = "coco/bbox_mAP", "coco/segm_mAP"
BEGIN, END = "<!-- table: tools/train_all.py -->", "<!-- end of table -->"
HEADER = ("method", "config", "bbox mAP", "segm mAP", "minutes", "CPU minutes", "command")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train every method on the example data and write a table of results.")
    parser.add_argument("configs", nargs="*", help="config files (default: every configs/*/*_shapes.py)")
    parser.add_argument("--work-dir", default="work_dirs/train_all", help="folder of the runs (default: %(default)s)")
    parser.add_argument("--page", default=str(ROOT / "docs/methods.md"), help="the page that has the table")
    parser.add_argument("--again", action="store_true", help="train also what has a result already")
    parser.add_argument("--device", help="of the runs (default: the config's, else CUDA if present)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="override values of each")
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    return parser.parse_args(arguments)


def train_all(args: argparse.Namespace) -> None:
    """Train what has no result yet, and write the table after each run.

    Raises:
        RuntimeError: Some runs failed; the others were done.
    """
    page = Path(args.page)
    read_rows(page)  # before hours are spent
    configs = [Path(path) for path in args.configs] or sorted(ROOT.glob("configs/*/*_shapes.py"))
    failed = []
    for path in configs:
        folder = Path(args.work_dir, path.stem)
        if args.again or not (folder / "result.json").is_file():
            print(f"{path.stem}: training in {folder}", flush=True)
            if not train(path, folder, args):
                failed.append(f"{path.stem} (see {folder})")
                continue
        result = json.loads((folder / "result.json").read_text())
        print(f"{path.stem}: {METRIC} {result['metric']:.3f}, {result['minutes']:.1f} minutes", flush=True)
        write_row(page, result)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(configs)} runs failed: {', '.join(failed)}")


def train(config: Path, folder: Path, args: argparse.Namespace) -> bool:
    """Train one config in a process of its own; its result is in ``result.json``, and False if it failed."""
    (folder / "result.json").unlink(missing_ok=True)
    options = ["--device", args.device] if args.device else []
    options += ["--cfg-options", *args.cfg_options] if args.cfg_options else []
    command = [sys.executable, str(ROOT / "tools/train.py"), str(config), "--work-dir", str(folder), *options]
    start, used = time.perf_counter(), cpu_seconds()
    done = subprocess.run(command, check=False).returncode == 0
    minutes, cpu_minutes = (time.perf_counter() - start) / 60, (cpu_seconds() - used) / 60
    if not done:
        return False
    config = config.resolve()
    shown = config.relative_to(ROOT) if config.is_relative_to(ROOT) else config
    result = {
        "config": shown.as_posix(),
        "metric": last_metric(folder / "metrics.jsonl", METRIC),
        "of_masks": last_metric(folder / "metrics.jsonl", OF_MASKS, needed=False),
        "minutes": minutes,
        "cpu_minutes": cpu_minutes,
        "command": shlex.join(["python", "tools/train.py", shown.as_posix(), *options]),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    return True


def cpu_seconds() -> float:
    """Seconds that the cores have spent on the runs so far; what else the machine does is not among them."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def last_metric(path: Path, metric: str, needed: bool = True) -> float | None:
    """A metric of the last validation in a run's ``metrics.jsonl``; None if there is none and none is needed.

    Raises:
        ValueError: There is none.
    """
    values = [line[metric] for line in map(json.loads, path.read_text().splitlines()) if metric in line]
    if needed and not values:
        raise ValueError(f"{path}: no validation gave {metric}")
    return values[-1] if values else None


def read_rows(page: Path) -> dict[str, str]:
    """The rows of the table in ``page`` by config.

    Raises:
        ValueError: The page lacks the marks between which the table stands.
    """
    text = page.read_text()
    if BEGIN not in text or END not in text.partition(BEGIN)[2]:
        raise ValueError(f"{page}: the lines {BEGIN!r} and {END!r} were expected, between which the table is written")
    table = text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
    return {row.split("|")[2].strip().strip("`"): row for row in table}


def write_row(page: Path, result: dict[str, Any]) -> None:
    """Put one result into the table of ``page``, in place of an older one of the same config."""
    config = Path(result["config"])
    method = config.parent.name
    readme = ROOT / "configs" / method / "README.md"
    cells = (
        f"[{method}](../configs/{method}/README.md)" if readme.is_file() else method,
        f"`{config.stem}`",
        f"{result['metric']:.3f}",
        "" if result["of_masks"] is None else f"{result['of_masks']:.3f}",
        f"{result['minutes']:.1f}",
        f"{result['cpu_minutes']:.1f}",
        f"`{result['command']}`",
    )
    rows = {**read_rows(page), config.stem: "| " + " | ".join(cells) + " |"}
    head = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    table = "\n".join(head + [rows[name] for name in sorted(rows)])
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


def main() -> None:
    sys.path.insert(0, str(ROOT))  # a checkout runs without being installed
    args = parse_args()
    from detkit.engine.cli import run_cli

    run_cli(train_all, args, show_traceback=args.traceback)


if __name__ == "__main__":
    main()
