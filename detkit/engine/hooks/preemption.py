"""Leaving in good order when the machine is taken away."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from torch import distributed

from detkit.engine.distributed import get_cpu_group, is_distributed
from detkit.engine.hooks.checkpoint import save_between
from detkit.engine.hooks.hook import Hook
from detkit.registry import HOOKS

__all__ = ["PREEMPTED", "Preempted", "PreemptionHook"]

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Preempted(SystemExit):
    """The run was asked to end, has written a checkpoint, and can be resumed; the exit status says so."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED)


@HOOKS.register_module()
class PreemptionHook(Hook):
    """Writes a checkpoint and ends with exit status 75 when a cluster takes the machine back.

    The signal is acted on after the iteration it arrives in. With several processes all of them end after the
    same iteration, also when only one was told.

    Args:
        signals: Names of the signals; SLURM sends SIGUSR1 with ``--signal=USR1@60``, most others SIGTERM.
        interval: Iterations between two questions to the other processes, where there are any.

    Raises:
        ValueError: A name that is no signal.
    """

    priority = "LOWEST"

    def __init__(self, signals: Sequence[str] = ("SIGTERM", "SIGUSR1"), interval: int = 10) -> None:
        unknown = [name for name in signals if not hasattr(signal, name)]
        if unknown:
            raise ValueError(f"PreemptionHook: {unknown[0]!r} is no signal of this system; SIGTERM is one")
        self.signals = tuple(signals)
        self.interval = interval
        self.requested = False
        self._process = os.getpid()
        self._alone = True
        self._before: dict[int, Any] = {}

    def before_train(self, runner: Any) -> None:
        """Listen; only the main thread of a process can."""
        self.requested = False
        self._alone = not is_distributed()
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in self.signals]
            self._before = {number: signal.signal(number, self._note) for number in numbers}

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save and leave, if asked to."""
        if self.requested if self._alone else self._agreed(runner):
            _save(runner, runner.iter + 1)
            raise Preempted

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Leave a validation, which a resumed run does again; several processes finish it."""
        if self.requested and self._alone:
            raise Preempted

    def on_exception(self, runner: Any, error: BaseException) -> None:
        """Save what was trained before a validation that was left; the other hooks have cleaned up by now."""
        if isinstance(error, Preempted) and not runner.train_loop.in_step:
            _save(runner, runner.iter)

    def close(self, runner: Any) -> None:
        """Leave the signals to whom they belonged."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            self.requested = True
        elif number == signal.SIGTERM:
            # A forked loader worker inherits the handler; torch ends workers by this signal.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _agreed(self, runner: Any) -> bool:
        if not self.every_n_train_iters(runner, self.interval):
            return False
        asked = torch.tensor(int(self.requested))
        distributed.all_reduce(asked, op=distributed.ReduceOp.MAX, group=get_cpu_group())
        return bool(asked)


def _save(runner: Any, iteration: int) -> None:
    name = f"iter_{iteration}.pth"
    save_between(runner, name, {"epoch": runner.epoch, "iter": iteration})
    runner.logger.warning("asked to end: saved %s; resume with --resume", name)
