"""The numbers of a run as files: ``metrics.jsonl`` for programs, TensorBoard events for the browser."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from detkit.checkpoints import write_text
from detkit.engine.reporting.event_file import EventFile
from detkit.events import Histogram, Picture

__all__ = ["MetricFiles", "scalars"]

_JSON = json.JSONEncoder(allow_nan=False)


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of ``values`` that are one number each, as floats."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float, np.number))
        or (isinstance(value, (np.ndarray, Tensor)) and math.prod(value.shape) == 1)
    }


class MetricFiles:
    """Appends to ``metrics.jsonl`` and to the events in ``tensorboard/``; opens them at the first number.

    Args:
        folder: The work directory.
        step: Iterations done when the run starts or goes on. At 0 the numbers of an earlier run in the same
            folder are put aside as ``metrics_<time>.jsonl``. Else what an earlier run wrote beyond that step is
            discarded, as those steps are made again.
        lines: Of ``metrics.jsonl`` at the checkpoint the run goes on from, if known; what came later goes too.
        tensorboard: Whether to write events.

    Attributes:
        lines: Of ``metrics.jsonl`` so far.
    """

    def __init__(self, folder: str | Path, step: int = 0, tensorboard: bool = True, lines: int | None = None) -> None:
        self._path = Path(folder) / "metrics.jsonl"
        self._folder = Path(folder) / "tensorboard" if tensorboard else None
        self._step = step
        self.lines = 0
        self._file: IO[str] | None = None
        self._events: EventFile | None = None
        if not self._path.exists():
            return
        if step == 0:
            written = time.strftime("%Y%m%d_%H%M%S", time.localtime(self._path.stat().st_mtime))
            self._path.rename(self._path.with_name(f"metrics_{written}.jsonl"))
        else:
            self.lines = _drop_lines(self._path, step, lines)

    def write(self, step: int, epoch: int, values: Mapping[str, float], prefix: str) -> None:
        """Add one line.

        Args:
            step: Iterations done.
            epoch: Epoch the line belongs to, from 1.
            values: Numbers by name; those not finite become null in the file, as JSON knows no NaN.
            prefix: Put before a name without a ``/`` in TensorBoard: ``train`` or ``val``.
        """
        line: dict[str, float | None] = {"step": step, "epoch": epoch}
        line.update({name: value if math.isfinite(value) else None for name, value in values.items()})
        if self._file is None:
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - open until the run ends
        self._file.write(_JSON.encode(line) + "\n")
        self._file.flush()
        self.lines += 1
        if self._folder is not None:
            tags = {name if "/" in name else f"{prefix}/{name}": value for name, value in values.items()}
            self._tensorboard().scalars(tags, step)

    def write_picture(self, picture: Picture) -> None:
        """Add an image to the events."""
        if self._folder is not None:
            self._tensorboard().picture(picture)

    def write_histogram(self, histogram: Histogram) -> None:
        """Add a histogram to the events."""
        if self._folder is not None and any(histogram.counts):
            self._tensorboard().histogram(histogram)

    def sync(self) -> None:
        """See to it that what was written survives a crash of the machine."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.sync()

    def close(self) -> None:
        """Close both files."""
        self.sync()
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._events is not None:
            self._events.close()
            self._events = None

    def _tensorboard(self) -> EventFile:
        if self._events is None:
            assert self._folder is not None
            self._events = EventFile(self._folder, self._step + 1)
        return self._events


def _drop_lines(path: Path, step: int, number: int | None) -> int:
    """Take out lines of later steps and those after the first ``number``; return how many are left.

    What a killed run left after the last line break goes too: the next line would be glued to it.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)[:number]
    kept = [line for line in lines if _parsed(line)["step"] <= step]
    if "".join(kept) != text:
        write_text(path, "".join(kept))
    return len(kept)


def _parsed(line: str) -> Mapping[str, Any]:
    """What another program wrote there stays where it is."""
    try:
        parsed = json.loads(line)
    except ValueError:
        parsed = None
    return parsed if isinstance(parsed, dict) and isinstance(parsed.get("step"), int) else {"step": 0}
