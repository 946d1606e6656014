"""The numbers of a run as files: ``metrics.jsonl`` for programs, TensorBoard events for the browser."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["MetricFiles", "scalars"]


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
            folder are put aside as ``metrics_<time>.jsonl``; events from ``step`` on are discarded.
        tensorboard: Whether to write events.
    """

    def __init__(self, folder: str | Path, step: int = 0, tensorboard: bool = True) -> None:
        self._path = Path(folder) / "metrics.jsonl"
        self._events = Path(folder) / "tensorboard" if tensorboard else None
        self._step = step
        self._file: IO[str] | None = None
        self._writer: SummaryWriter | None = None
        if step == 0 and self._path.exists():
            written = time.strftime("%Y%m%d_%H%M%S", time.localtime(self._path.stat().st_mtime))
            self._path.rename(self._path.with_name(f"metrics_{written}.jsonl"))

    def write(self, step: int, epoch: int, values: Mapping[str, float], prefix: str) -> None:
        """Add one line.

        Args:
            step: Iterations done.
            epoch: Epoch the line belongs to, from 1.
            values: Numbers by name; those not finite become null in the file, as JSON knows no NaN.
            prefix: Put before a name without a ``/`` in TensorBoard: ``train`` or ``val``.
        """
        if self._file is None:
            _drop_torn_line(self._path)
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - open until the run ends
        line: dict[str, float | None] = {"step": step, "epoch": epoch}
        line.update({name: value if math.isfinite(value) else None for name, value in values.items()})
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            if self._writer is None:
                self._writer = _event_writer(self._events, self._step)
            for name, value in values.items():
                self._writer.add_scalar(name if "/" in name else f"{prefix}/{name}", value, step)

    def close(self) -> None:
        """Close both files."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _drop_torn_line(path: Path) -> None:
    """Cut off what a killed run left after the last line break; the next line would be glued to it."""
    if path.exists():
        with open(path, "r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def _event_writer(folder: Path, step: int) -> SummaryWriter:
    # With this module present, however empty, TensorBoard writes its files itself and does not look for
    # TensorFlow, whose import takes many seconds where it is installed.
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
    from torch.utils.tensorboard import SummaryWriter  # 0.3 s, spent only where events are written

    return SummaryWriter(str(folder), purge_step=step + 1)
