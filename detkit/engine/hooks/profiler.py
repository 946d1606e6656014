"""Where the time of some iterations goes, by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from detkit.engine.distributed import get_rank
from detkit.engine.hooks.callback import find_function
from detkit.engine.hooks.hook import Hook
from detkit.registry import HOOKS

__all__ = ["AutogradProfiler", "TorchProfilerHook"]

_ACTIVITIES = {"cpu": ProfilerActivity.CPU, "cuda": ProfilerActivity.CUDA}


@HOOKS.register_module()
class TorchProfilerHook(Hook):
    """Profiles iterations ``begin`` to ``end``, or those that a predicate picks.

    Each stretch of iterations (with ``per_iter`` each iteration) gives a Chrome trace
    ``work_dir/profiles/iter_<first>_<last>_rank<rank>.json`` for https://ui.perfetto.dev, and a table of the
    costliest operators in the log file. Iterations are counted from 1, as in the log. What was recorded before an
    error is written too. Profiled iterations are several times slower; the others cost a comparison.

    Args:
        begin: First iteration; the ones before give caches and algorithms time to settle.
        end: Last iteration.
        predicate: A function of the runner that says whether the iteration that begins is profiled, instead of
            ``begin`` and ``end``; or its name in mmengine's registry ``FUNCTIONS``. ``runner.iter`` is then the
            number of iterations done.
        per_iter: A trace of its own for each iteration.
        activities: ``cpu``, ``cuda``; None for those the machine has.
        record_shapes: Note the shapes of operands.
        profile_memory: Note what is allocated.
        with_stack: Note the lines of Python.
        with_flops: Estimate floating-point operations of some operators.
        row_limit: Rows of the table.

    Raises:
        ValueError: An unknown activity, ``end`` before ``begin``, or both ways of picking iterations.
    """

    priority = "VERY_HIGH"  # after the timer, and before what other hooks do after an iteration

    def __init__(
        self,
        begin: int | None = None,
        end: int | None = None,
        predicate: Callable[[Any], bool] | str | None = None,
        per_iter: bool = False,
        activities: Sequence[str] | None = None,
        record_shapes: bool = True,
        profile_memory: bool = True,
        with_stack: bool = False,
        with_flops: bool = True,
        row_limit: int = 20,
    ) -> None:
        if (predicate is None) == (begin is None) or (begin is None) != (end is None):
            raise ValueError(
                "TorchProfilerHook: give begin and end, or predicate, "
                f"got begin={begin}, end={end}, predicate={predicate!r}"
            )
        if begin is not None and end is not None and not 1 <= begin <= end:
            raise ValueError(f"TorchProfilerHook: 1 <= begin <= end expected, got begin={begin}, end={end}")
        unknown = [name for name in activities or () if name not in _ACTIVITIES]
        if unknown:
            raise ValueError(f"TorchProfilerHook: activities are {', '.join(_ACTIVITIES)}, got {unknown}")
        self.begin, self.end = begin, end
        self.predicate = None if predicate is None else find_function(predicate, "TorchProfilerHook: predicate")
        self.per_iter = per_iter
        names = activities or (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
        self.activities = [_ACTIVITIES[name] for name in names]
        self.options: dict[str, Any] = {
            "record_shapes": record_shapes,
            "profile_memory": profile_memory,
            "with_stack": with_stack,
            "with_flops": with_flops,
        }
        self.row_limit = row_limit
        self._profile: profile | None = None
        self._first = 0

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Start or stop recording."""
        due = self._is_due(runner)
        if due and self._profile is None:
            self._first = runner.iter + 1
            self._profile = profile(activities=self.activities, **self.options)
            self._profile.start()
        elif not due and self._profile is not None:
            self._finish(runner, runner.iter)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Stop recording where it is known to be over."""
        if self._profile is not None and (self.per_iter or runner.iter + 1 == self.end):
            self._finish(runner, runner.iter + 1)

    def after_train(self, runner: Any) -> None:
        """Stop recording; so does ``close`` after an error."""
        self.close(runner)

    def close(self, runner: Any) -> None:
        """Write what was recorded of a stretch that was not finished."""
        if self._profile is not None:
            self._finish(runner, runner.iter)

    def _is_due(self, runner: Any) -> bool:
        if self.predicate is not None:
            return bool(self.predicate(runner))
        return self.begin is not None and self.end is not None and self.begin <= runner.iter + 1 <= self.end

    def _finish(self, runner: Any, last: int) -> None:
        finished, self._profile = self._profile, None
        if finished is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # what was launched belongs to the trace
        finished.stop()
        last = max(last, self._first)  # an error inside the first iteration
        path = Path(runner.work_dir, "profiles", f"iter_{self._first}_{last}_rank{get_rank()}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        finished.export_chrome_trace(str(path))
        key = "self_cuda_time_total" if ProfilerActivity.CUDA in self.activities else "self_cpu_time_total"
        table = finished.key_averages().table(sort_by=key, row_limit=self.row_limit)
        runner.logger.info("profile of iterations %d to %d: %s", self._first, last, path)
        runner.logger.info("\n%s", table, extra={"console": False})


@HOOKS.register_module()
class AutogradProfiler(Hook):
    """Detectron2's name for a profiler that torch no longer has; refused.

    Args:
        enable_predicate: As Detectron2's.
        output_dir: As Detectron2's.
        use_cuda: As Detectron2's.

    Raises:
        TypeError: Always, with what to use.
    """

    def __init__(self, enable_predicate: Any = None, output_dir: str = "", use_cuda: bool = True) -> None:
        raise TypeError(
            "AutogradProfiler: torch's autograd profiler was replaced; use dict(type='TorchProfilerHook', begin=..., "
            "end=...), or with predicate=... as here"
        )
