"""How much memory a run takes, on the device and on the host."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from detkit.engine.hooks.hook import Hook
from detkit.registry import HOOKS

resource: ModuleType | None
try:
    import resource
except ImportError:  # Windows
    resource = None

__all__ = ["CudaMemoryHook", "MemoryProfilerHook", "host_memory"]

_MIB = 2**20


@HOOKS.register_module()
class CudaMemoryHook(Hook):
    """Logs the CUDA memory that is allocated and reserved, now and at most, and in the last report a summary.

    Nothing waits for the device: the numbers are the host's book-keeping. On a CPU it says so once.

    Args:
        interval: Iterations between reports; the last iteration gets one too.
        max_runs: How many reports there are, at most.
        reset_peak: Forget the largest values after each report. Other hooks that report the peak, such as
            ``memory`` in the log line, then see the peak since the last report only.

    Raises:
        ValueError: A number below 1.
    """

    priority = "ABOVE_NORMAL"

    def __init__(self, interval: int = 20, max_runs: int = 10, reset_peak: bool = False) -> None:
        if interval < 1 or max_runs < 1:
            raise ValueError(f"CudaMemoryHook: interval and max_runs are at least 1, got {interval} and {max_runs}")
        self.interval = interval
        self.max_runs = max_runs
        self.reset_peak = reset_peak
        self._runs = 0

    def before_train(self, runner: Any) -> None:
        """Begin to count reports."""
        self._runs = 0
        if runner.device.type != "cuda":
            runner.logger.warning("CudaMemoryHook has nothing to report on device %s", runner.device)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Report at the interval."""
        if self._runs >= self.max_runs or runner.device.type != "cuda":
            return
        if not (self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)):
            return
        self._runs += 1
        device = runner.device
        runner.logger.info(
            "CUDA memory after %d iterations, MiB: allocated %.0f (at most %.0f), reserved %.0f (at most %.0f)",
            runner.iter + 1,
            torch.cuda.memory_allocated(device) / _MIB,
            torch.cuda.max_memory_allocated(device) / _MIB,
            torch.cuda.memory_reserved(device) / _MIB,
            torch.cuda.max_memory_reserved(device) / _MIB,
        )
        if self._runs == self.max_runs:
            runner.logger.info("\n%s", torch.cuda.memory_summary(device), extra={"console": False})
        if self.reset_peak:
            torch.cuda.reset_peak_memory_stats(device)


@HOOKS.register_module()
class MemoryProfilerHook(Hook):
    """Logs the main memory of the process and of its data-loading workers, in training, validation and test.

    Args:
        interval: Iterations between reports.

    Raises:
        ValueError: ``interval`` is not positive.
    """

    def __init__(self, interval: int = 50) -> None:
        if interval < 1:
            raise ValueError(f"MemoryProfilerHook: interval must be at least 1, got {interval}")
        self.interval = interval

    def _after_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None, mode: str = "train"
    ) -> None:
        if (batch_idx + 1) % self.interval == 0:
            values = ", ".join(f"{name} {size / _MIB:.0f}" for name, size in host_memory().items())
            runner.logger.info("main memory after %d batches of %s, MiB: %s", batch_idx + 1, mode, values)


def host_memory() -> dict[str, int]:
    """Bytes of main memory.

    Returns:
        ``peak`` of this process, but not on Windows; and on Linux ``process`` (resident now), ``workers`` (resident
        in its child processes, pages that they share counted in each) and ``available`` on the machine.
    """
    memory: dict[str, int] = {}
    if resource is not None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory["peak"] = peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere
    if Path("/proc/self/statm").exists():
        memory["process"] = _resident(os.getpid())
        memory["workers"] = sum(map(_resident, _children(os.getpid())))
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                memory["available"] = int(line.split()[1]) * 1024
    return memory


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:  # a worker that has just ended
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:  # a thread that has just ended, or a kernel without this list
            continue
    return found
