"""A file of TensorBoard events, written at once and in place.

torch's ``SummaryWriter`` makes an event of each number and hands it to a thread, for 0.4 ms a line of ten.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from detkit.events import Histogram, Picture

__all__ = ["EventFile"]

_numbers = count()


class EventFile:
    """``events.out.tfevents.*`` in a folder, which is made with it.

    Args:
        folder: Where the browser looks for it.
        first_step: TensorBoard discards what earlier files have of this step and later ones.
    """

    def __init__(self, folder: str | Path, first_step: int) -> None:
        # With this module present, however empty, TensorBoard does not look for TensorFlow, whose import takes
        # many seconds where it is installed.
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._file = open(folder / name, "wb")  # noqa: SIM115 - open until close
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add numbers by tag."""
        value = self._summary.Value
        self._add(self._summary(value=[value(tag=tag, simple_value=number) for tag, number in values.items()]), step)

    def picture(self, picture: Picture) -> None:
        """Add an image."""
        from torch.utils.tensorboard.summary import image

        self._add(image(picture.name, picture.image, dataformats="CHW"), picture.step)

    def histogram(self, histogram: Histogram) -> None:
        """Add a histogram of at least one value."""
        from torch.utils.tensorboard.summary import histogram_raw

        edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
        summary = histogram_raw(
            histogram.name,
            min=histogram.low,
            max=histogram.high,
            num=sum(histogram.counts),
            sum=histogram.total,
            sum_squares=histogram.total_squares,
            bucket_limits=edges[1:].tolist(),
            bucket_counts=histogram.counts,
        )
        self._add(summary, histogram.step)

    def sync(self) -> None:
        """See to it that what was written survives a crash of the machine."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, summary: Any, step: int) -> None:
        self._write(step=step, summary=summary)

    def _write(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._file.flush()
