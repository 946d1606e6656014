"""Loss and average-precision curves of a run, from its ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

# The figure class alone: pyplot would keep global state and look for a display.
from matplotlib.figure import Figure

__all__ = ["plot_run", "read_metrics"]

Record = dict[str, Any]


def plot_run(work_dir: str | Path) -> list[Path]:
    """Draw the curves of a run beside its metrics.

    Args:
        work_dir: Folder with ``metrics.jsonl``.

    Returns:
        ``loss.png``, and ``ap.png`` where there was an evaluation, of those that have anything to show.

    Raises:
        FileNotFoundError: There is no ``metrics.jsonl``.
        ValueError: A line of it is not JSON.
    """
    work_dir = Path(work_dir)
    records = read_metrics(work_dir / "metrics.jsonl")
    names = list(dict.fromkeys(name for record in records for name in record))
    losses = [name for name in names if "loss" in name and "/" not in name and name != "loss_scale"]
    precisions = [name for name in names if "mAP" in name]
    written = []
    if losses:
        panels = [("loss", losses)] + [(name, [name]) for name in ("lr",) if name in names]
        written.append(_plot(records, panels, work_dir / "loss.png"))
    if precisions:
        written.append(_plot(records, [("average precision", precisions)], work_dir / "ap.png"))
    return written


def read_metrics(path: str | Path) -> list[Record]:
    """Lines of ``metrics.jsonl`` in the order of their steps.

    Where a run went on from a checkpoint, what had been logged beyond that is superseded. A last line that was
    cut off when the run was killed is left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another line is not a JSON object with a ``step``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; curves are drawn from the metrics that a training run writes")
    lines = path.read_text(encoding="utf-8").split("\n")
    records: list[Record] = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line break is nothing, or cut off
        try:
            record = json.loads(line)
            step = record["step"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}, line {number}: a JSON object with 'step' was expected, got {line!r}") from None
        while records and records[-1]["step"] > step:
            records.pop()
        records.append(record)
    return records


def _plot(records: Sequence[Record], panels: Sequence[tuple[str, Sequence[str]]], path: Path) -> Path:
    """One panel above the other, each with its title and the names drawn in it."""
    with matplotlib.rc_context({"font.size": 10, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(8, 4.5 * len(panels) ** 0.5), dpi=120, layout="constrained")
        ratios = [3] + [1] * (len(panels) - 1)
        all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        for axes, (title, names) in zip(all_axes, panels, strict=True):
            for name in names:
                points = _points(records, name)
                marker = "o" if len(points) < 50 else None
                width = 2.2 if name in ("loss", "lr") or name.endswith("mAP") else 1.3
                if any(math.isfinite(value) for value in points.values()):
                    axes.plot(*zip(*points.items(), strict=True), label=name, marker=marker, markersize=3, lw=width)
            if axes.dataLim.y0 >= 0:
                axes.set_ylim(bottom=0)
            axes.set_ylabel(title)
            if len(axes.lines) > 1:
                axes.legend(fontsize=8)
        all_axes[-1].set_xlabel("iteration")
        figure.savefig(path)
    return path


def _points(records: Sequence[Record], name: str) -> dict[int, float]:
    """Value by step; not a number where it is null, or -1 as COCO's precision of nothing."""
    points = {record["step"]: record[name] for record in records if name in record}
    gap = float("nan")
    return {step: gap if value is None or ("mAP" in name and value < 0) else value for step, value in points.items()}
