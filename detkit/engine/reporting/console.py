"""What a person sees while a run goes on: lines, and on a terminal a progress display below them."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import Any

from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

__all__ = ["ConsoleHandler", "ProgressDisplay", "duration", "only_errors", "use_console"]

_MMENGINES_RUNNER = os.path.join("mmengine", "runner", "runner.py")


def duration(seconds: float) -> str:
    """``0:01:23``."""
    return str(timedelta(seconds=max(0, round(seconds))))


class ConsoleHandler(logging.Handler):
    """Prints log records to a rich console, so that they do not tear a progress display.

    A record made with ``extra={'console': False}`` goes to the log file only, and so do those that mmengine's
    runner makes below a warning.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        runner_says = record.pathname.endswith(_MMENGINES_RUNNER)
        if not getattr(record, "console", True) or (runner_says and record.levelno < logging.WARNING):
            return
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        text = prefix + record.getMessage()
        if self.console.is_terminal:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:  # laying it out takes rich a quarter of a millisecond
            self.console.file.write(f"{text}\n")
            self.console.file.flush()


def use_console(logger: MMLogger, console: Console) -> None:
    """Let ``logger`` print through ``console`` instead of its own stream; its file stays as it is."""
    handler = ConsoleHandler(console)
    handler.setLevel(logger.handlers[0].level)
    handler.filters = logger.handlers[0].filters
    logger.handlers[0] = handler


def only_errors(logger: MMLogger, file: str | os.PathLike[str]) -> None:
    """Let ``logger`` write errors to ``file``, made with the first one, and print nothing."""
    handler = logging.FileHandler(file, delay=True)
    handler.setLevel(logging.ERROR)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers = [handler]
    logger._log_file = os.fspath(file)


class ProgressDisplay:
    """Epoch, iterations, losses, learning rate, time left and the last metric, on one line of a terminal.

    Args:
        console: The terminal.
        max_iters: Iterations of the whole run.
    """

    def __init__(self, console: Console, max_iters: int) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[head]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[tail]}"),
            TextColumn("[bold]{task.fields[metric]}"),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("train", total=max_iters, head="", tail="", metric="")
        self._progress.start()

    def update(self, done: int, head: str | None = None, tail: str | None = None, metric: str | None = None) -> None:
        """Show ``done`` iterations and new texts."""
        fields: dict[str, Any] = {"head": head, "tail": tail, "metric": metric}
        shown = {name: text for name, text in fields.items() if text is not None}
        self._progress.update(self._task, completed=done, **shown)

    def close(self) -> None:
        """Give the terminal back."""
        self._progress.stop()
