"""The numbers of a run: to the screen, the log, ``metrics.jsonl``, TensorBoard and the visualizer's backends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from mmengine.optim import OptimWrapperDict
from mmengine.runner import BaseLoop, IterBasedTrainLoop
from rich.console import Console

from detkit.engine.distributed import gather
from detkit.engine.hooks.hook import Hook
from detkit.engine.hooks.iter_timer import IterTimerHook
from detkit.engine.optim.param_groups import summary_lr
from detkit.engine.reporting.background import BackgroundCalls
from detkit.engine.reporting.console import ProgressDisplay
from detkit.engine.reporting.metric_files import MetricFiles, scalars
from detkit.engine.reporting.metric_lines import Report, combined
from detkit.registry import HOOKS

__all__ = ["LoggerHook"]


@HOOKS.register_module()
class LoggerHook(Hook):
    """Writes what was noted in the run's event storage since the last line, once per ``interval``.

    A line of ``metrics.jsonl`` has the means over all iterations since the line before, and over all processes; of
    ``data_time`` and ``memory`` the largest of the processes. Scalars that are not smoothed have their latest value,
    at its own step. The terminal shows medians of the last values (see ``LogProcessor``). Nothing waits for the
    device between two lines; a line takes one transfer, and of several processes one collective.

    Args:
        interval: Iterations per line, counted within an epoch.
        ignore_last: Give the iterations after an epoch's last full interval no line of their own; they count in the
            next one. An epoch shorter than ``interval``, and the end of training, always get one.
        log_metric_by_epoch: Give the visualizer's backends the epoch, not the iteration, with metrics.
        tensorboard: Write TensorBoard events to ``work_dir/tensorboard``.
        async_write: Write in a thread, for file systems and services that are slow. All is written when the run
            ends; an error of the thread ends the run at the next line.

    Raises:
        ValueError: ``interval`` is not positive.
    """

    priority = "BELOW_NORMAL"

    def __init__(
        self,
        interval: int = 10,
        ignore_last: bool = True,
        log_metric_by_epoch: bool = False,
        tensorboard: bool = True,
        async_write: bool = False,
    ) -> None:
        if interval < 1:
            raise ValueError(f"LoggerHook: interval must be at least 1, got {interval}")
        self.interval = interval
        self.ignore_last = ignore_last
        self.log_metric_by_epoch = log_metric_by_epoch
        self.tensorboard = tensorboard
        self.async_write = async_write
        self._files: MetricFiles | None = None  # of the first process
        self._background: BackgroundCalls | None = None
        self._display: ProgressDisplay | None = None
        self._timer: IterTimerHook | None = None
        self._events: Any = None
        self._resumed: Mapping[str, Any] = {}
        self._failed = False
        self._by_epoch = True
        self._epoch = self._in_epoch = self._max_iters = 0
        self._on_cpu = False

    def state_dict(self) -> dict[str, Any]:
        """Sums of the events and the length of ``metrics.jsonl``: a resumed run writes the lines that it would have
        written without the interruption.
        """
        if self._files is None:
            return {}
        if self._background is not None:
            self._background.wait()
        self._files.sync()
        sums = self._events.state_dict()
        # Times are those of one process on one machine.
        return {
            "events": {name: state for name, state in sums.items() if not name.endswith("time")},
            "lines": self._files.lines,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the state up when training begins."""
        self._resumed = state

    def before_train(self, runner: Any) -> None:
        """Open the files, and the progress display on a terminal."""
        self._failed = False
        self._events, self._max_iters = runner.events, runner.max_iters
        # On CUDA values are copied: the outputs of a compiled step lie in memory that its next run overwrites.
        self._on_cpu = runner.device.type == "cpu"
        self._by_epoch = not isinstance(runner.train_loop, IterBasedTrainLoop)
        resumed, self._resumed = self._resumed or {}, {}
        self._events.load_state_dict(resumed.get("events", {}))
        self._timer = next((hook for hook in runner.hooks if isinstance(hook, IterTimerHook)), None)
        if runner.rank != 0:
            return
        self._files = MetricFiles(runner.work_dir, runner.iter, self.tensorboard, resumed.get("lines"))
        self._background = BackgroundCalls() if self.async_write else None
        console: Console = runner.console
        if console.is_terminal:
            self._display = ProgressDisplay(console, runner.max_iters)

    def before_train_epoch(self, runner: Any) -> None:
        """Note which epoch lines belong to."""
        self._epoch = runner.epoch + 1

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Note what the model reported; at an interval, write a line."""
        done = runner.iter + 1
        values = {} if outputs is None else outputs
        grad_norm = getattr(runner.optim_wrapper, "grad_norm", None)
        if grad_norm is not None:
            values = {**values, "grad_norm": grad_norm}
        if self._on_cpu:
            runner.events.put_owned(values, done)
        else:
            runner.events.put_scalars(values, step=done)
        if self._display is not None:
            self._display.update(done)
        self._in_epoch = batch_idx + 1
        if self._is_due(runner, batch_idx, done):
            loss_scale = getattr(runner.optim_wrapper, "loss_scale", None)
            if loss_scale is not None:
                runner.events.put_scalar("loss_scale", loss_scale, smoothing=False, step=done)
            self._write_line(runner, done, together=True)

    def _is_due(self, runner: Any, batch_idx: int, done: int) -> bool:
        if (batch_idx + 1) % self.interval == 0 or done >= self._max_iters:
            return True
        if not self._by_epoch or (self.ignore_last and batch_idx + 1 > self.interval):
            return False
        length = len(runner.train_dataloader)
        return batch_idx + 1 == length and (not self.ignore_last or length < self.interval)

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Show on a terminal how far validation is."""
        if self._display is not None:
            loaders = runner.val_dataloader
            total = sum(map(len, loaders)) if isinstance(loaders, list) else len(loaders)
            self._display.update(runner.iter, tail=f"validating {batch_idx + 1}/{total}")

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Write the metrics of a validation, at the iterations done so far."""
        numbers = scalars(metrics or {})
        # A metric per class would fill the screen; metrics.jsonl has them all.
        shown = dict.fromkeys([*list(numbers)[:6], *(name for name in numbers if name.endswith("val/loss"))])
        text = "  ".join(f"{name} {numbers[name]:.4f}" for name in shown)
        if not isinstance(runner._train_loop, BaseLoop):  # validation by itself has no step to put it at
            runner.logger.info("validation  %s", text)
            return
        progress = runner.log_processor.progress(runner, runner.epoch, runner.iter)
        runner.logger.info("%s  %s", progress, text)
        histories = runner.events.histories()
        for name in (*(name if "/" in name else f"val/{name}" for name in numbers), "val_time"):
            taken = histories[name].take() if name in histories else None  # else the next line would have it again
            if taken is not None and name == "val_time":
                numbers["val_time"] = taken.total
        self._write(runner, runner.iter, max(runner.epoch, 1), numbers, "val")
        if self._display is not None and numbers:
            name, value = next(iter(numbers.items()))
            self._display.update(runner.iter, tail="", metric=f"{name} {value:.4f}")

    def after_test_epoch(self, runner: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Write the metrics of a test to the log."""
        numbers = scalars(metrics or {})
        width = max(map(len, numbers), default=0)
        runner.logger.info("\n".join(f"{name:{width}}  {value:.4f}" for name, value in numbers.items()))

    def after_train(self, runner: Any) -> None:
        """Write what was noted since the last line."""
        if not self._failed:
            self._write_line(runner, runner.iter, together=True)

    def on_exception(self, runner: Any, error: BaseException) -> None:
        """Leave the last line to :meth:`close`: ``PreemptionHook`` may still write a checkpoint with the sums."""
        self._failed = True

    def close(self, runner: Any) -> None:
        """Write what is left, of this process: the others may be gone; close the files and the display."""
        if self._display is not None:
            self._display.close()
            self._display = None
        with ExitStack() as last:  # called in the opposite order, though some fail
            last.callback(self._forget)
            last.callback(runner.visualizer.close)
            for part in (self._files, self._background):
                if part is not None:
                    last.callback(part.close)
            if self._events is not None:
                self._write_line(runner, self._events.step, together=False)

    def _forget(self) -> None:
        self._files = self._background = self._events = None

    def _write_line(self, runner: Any, done: int, together: bool) -> None:
        reports = self._reports(runner)
        gathered = gather(reports) if together else [reports]
        if runner.rank != 0 or not any(gathered):
            return
        lines, shown = combined(gathered, done)
        processor = runner.log_processor
        if done in lines:
            for values in (lines[done], shown):
                values.update(processor.custom(runner.events, self._in_epoch))
                values.update(_learning_rates(runner))
        for step in sorted(lines):
            self._write(runner, step, self._epoch, lines[step], "train")
        self._write_pictures(runner)
        shown.update({name: lines[done][name] for name in ("time", "data_time") if name in lines.get(done, {})})
        head = processor.progress(runner, self._epoch, done, self._in_epoch)
        eta = None if self._timer is None else self._timer.eta(runner.events, runner.max_iters - done)
        tail = processor.values(shown, eta)
        # The display shows the line already; the log file keeps it in any case.
        runner.logger.info("%s  %s", head, tail, extra={"console": self._display is None})
        if self._display is not None:
            self._display.update(done, head, tail)

    def _reports(self, runner: Any) -> dict[str, Report]:
        waited = 0.0
        if runner.device.type == "cuda":
            begin = time.perf_counter()
            torch.cuda.current_stream(runner.device).synchronize()
            waited = time.perf_counter() - begin
            if self._timer is not None:
                self._timer.book_wait(waited)
        _take_from_hub(runner)
        reports = {}
        for name, history in runner.events.histories().items():
            taken = history.take()
            if taken is None:
                continue
            total = taken.total + waited if name == "time" else taken.total
            shown = runner.log_processor.smoothed(name, history) if len(history) else total / taken.number
            reports[name] = Report(total, taken.number, None if history.smoothing else taken.step, shown)
        if reports and runner.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(runner.device) / 2**20  # MiB; asks the host only
            reports["memory"] = Report(memory, 1, None, memory)
        return reports

    def _write(self, runner: Any, step: int, epoch: int, values: Mapping[str, float], prefix: str) -> None:
        if self._files is None:
            return
        self._do(self._files.write, step, epoch, values, prefix)
        if runner.log_processor.log_with_hierarchy:
            values = {name if "/" in name else f"{prefix}/{name}": value for name, value in values.items()}
        x = epoch if prefix == "val" and self.log_metric_by_epoch else step
        self._do(runner.visualizer.add_scalars, dict(values), x)

    def _write_pictures(self, runner: Any) -> None:
        if self._files is None:
            return
        for picture in runner.events.take_images():
            self._do(self._files.write_picture, picture)
            pixels = picture.image.mul(255) if picture.image.is_floating_point() else picture.image
            array = pixels.clamp(0, 255).byte().permute(1, 2, 0).expand(-1, -1, 3).cpu().numpy()
            # mmengine's local backend makes a file of the name.
            self._do(runner.visualizer.add_image, picture.name.replace("/", "_"), array, picture.step)
        for histogram in runner.events.take_histograms():
            self._do(self._files.write_histogram, histogram)

    def _do(self, function: Callable[..., Any], *args: Any) -> None:
        if self._background is None:
            function(*args)
        else:
            self._background(function, *args)


def _take_from_hub(runner: Any) -> None:
    """Scalars that user code gave the message hub since the last line; taken out, as their history only grows."""
    history = runner.message_hub.log_scalars
    for name in [name for name in history if name.startswith("train/")]:
        runner.events.put_scalar(name.removeprefix("train/"), float(history.pop(name).mean()))


def _learning_rates(runner: Any) -> dict[str, float]:
    """One rate per optimizer: with several parameter groups, that of most parameters."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return {f"{name}.lr": summary_lr(one.optimizer) for name, one in wrapper.items()}
    return {"lr": summary_lr(wrapper.optimizer)}
