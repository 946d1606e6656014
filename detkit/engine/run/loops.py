"""Training loops: mmengine's, resumable at any iteration, with random numbers that a resumed run draws again."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.optim import OptimWrapperDict
from mmengine.runner import BaseLoop
from mmengine.runner import loops as mmengine_loops
from mmengine.runner.utils import calc_dynamic_intervals
from torch import nn

from detkit.engine.data.data_stream import DataStream, Position
from detkit.engine.data.seeding import iteration_seed, seed_everything
from detkit.engine.parallel import sync_buffers
from detkit.engine.run.train_step import train_step
from detkit.registry import LOOPS

__all__ = ["EpochBasedTrainLoop", "IterBasedTrainLoop"]


class _Resumable:
    """What both loops share: a step, a position in the data, a validation that is due.

    mmengine's loops start again at the first batch of an epoch, or load all data that was trained on already.
    """

    runner: Any
    dataloader: Any
    stop_training: bool
    _epoch: int
    _iter: int

    def _prepare(self, val_begin: int, val_interval: int, dynamic_intervals: list[tuple[int, int]] | None) -> None:
        self._epoch = self._iter = 0
        self.stop_training = False  # set by hooks such as EarlyStoppingHook
        self.val_begin = _whole("val_begin", val_begin)
        self.val_interval = _whole("val_interval", val_interval, negative=True)
        self.dynamic_milestones, self.dynamic_intervals = calc_dynamic_intervals(self.val_interval, dynamic_intervals)
        self.stream = DataStream(self.dataloader, self.runner.seed)
        self.runner.visualizer.dataset_meta = getattr(self.dataloader.dataset, "metainfo", None)
        self._validated = 0  # iterations done at the last validation
        self.in_step = False

    def reset_dataloader(self, build: Callable[[], Any]) -> None:
        """Go on with the loader that ``build`` makes: from the next batch of an iteration loop, or the next epoch."""
        self.dataloader = self.runner._train_dataloader = build()
        self.stream.replace(self.dataloader)

    def state_dict(self) -> dict[str, int]:
        """Where the run is: ``epoch`` and ``batch`` in the data, ``batches`` per pass, iteration last ``validated``."""
        return {**self.stream.position._asdict(), "batches": len(self.dataloader), "validated": self._validated}

    def load_state_dict(self, state: Mapping[str, int], epoch: int, iteration: int) -> None:
        """Go on from ``epoch`` and ``iteration`` done, at the place in the data that ``state`` names."""
        self._epoch, self._iter = epoch, iteration
        self._validated = state["validated"]
        self.stream.position = Position(state["epoch"], state["batch"])

    def load_again(self, iteration: int) -> Any:
        """The batch of ``iteration`` (the count of iterations done with it) once more, exactly as it was."""
        handed_out = self._iter + 1 if self.in_step else self._iter
        return self.stream.load_again(handed_out - iteration)

    def _begin(self) -> None:
        runner = self.runner
        runner.call_hook("before_train")
        wrapper = runner.optim_wrapper
        call = partial(runner.call_hook, "after_backward") if runner.hooks_at("after_backward") else None
        for one in wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]:
            one.after_backward = call

    def _step(self, batch_idx: int, data_batch: Any) -> None:
        runner = self.runner
        self.in_step = True
        seed_everything(iteration_seed(runner.seed, self._iter + 1, runner.rank))
        runner.call_hook("before_train_iter", batch_idx=batch_idx, data_batch=data_batch)
        outputs = train_step(runner.model, data_batch, runner.optim_wrapper)
        runner.call_hook("after_train_iter", batch_idx=batch_idx, data_batch=data_batch, outputs=outputs)
        self.in_step = False
        self._iter += 1

    def _validate_if_due(self, done: int, total: int) -> None:
        """Validate after ``done`` of ``total`` epochs or iterations; an interval below 1 validates at the end only."""
        if len(self.dynamic_intervals) > 1:
            self.val_interval = self.dynamic_intervals[bisect(self.dynamic_milestones, done + 1) - 1]
        runner = self.runner
        due = done >= total or (self.val_interval > 0 and done % self.val_interval == 0)
        if not due or done < self.val_begin or self._validated == self._iter or runner.val_loop is None:
            return
        sync_buffers(runner.model)
        runner.val_loop.run()
        self._validated = self._iter
        runner.model.train()


@LOOPS.register_module()
class EpochBasedTrainLoop(_Resumable, mmengine_loops.EpochBasedTrainLoop):
    """Train for a number of epochs, validating between them.

    Each epoch and iteration is seeded by its number. A checkpoint of the end of an epoch was written before
    the validation that belongs there: a run resumed from it validates first, so that the best checkpoint and
    the metrics are those of the uninterrupted run.

    Args:
        runner: The run.
        dataloader: Training data.
        max_epochs: Passes over the data.
        val_begin: First epoch after which to validate.
        val_interval: Epochs between validations; 0 or less validates after the last one only.
        dynamic_intervals: Pairs of epoch and the interval that counts from there on.

    Raises:
        ValueError: A sampler that never ends an epoch, or a number of epochs that is none.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        max_epochs: int,
        val_begin: int = 1,
        val_interval: int = 1,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ) -> None:
        BaseLoop.__init__(self, runner, dataloader)
        batches = self.dataloader.batch_sampler
        if isinstance(getattr(batches, "sampler", None), InfiniteSampler):
            raise ValueError(
                "train_dataloader.sampler: an InfiniteSampler never ends an epoch; use DefaultSampler, or "
                "IterBasedTrainLoop in train_cfg"
            )
        self._max_epochs = _whole("max_epochs", max_epochs)
        self._max_iters = self._max_epochs * len(self.dataloader)
        self._prepare(val_begin, val_interval, dynamic_intervals)

    def run(self) -> nn.Module:
        """Train until ``max_epochs``."""
        self._begin()
        if self._epoch and self.stream.position.batch == 0:
            self._validate_if_due(self._epoch, self._max_epochs)
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            if not self.stop_training:
                self._validate_if_due(self._epoch, self._max_epochs)
        self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        """Train for one pass over the data, or for what a resumed run has left of it."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        done = self.stream.position.batch
        for data_batch in self.stream.rest_of_pass():
            done = self.stream.position.batch
            self.run_iter(done - 1, data_batch)
            if self.stop_training:
                return
        if done != len(self.dataloader):
            self.runner.logger.warning(
                f"train_dataloader: its batch sampler announced {len(self.dataloader)} batches and gave {done}; hooks "
                "and schedules that act in the last iteration count on the number announced"
            )
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        """Train on one batch."""
        self._step(idx, data_batch)


@LOOPS.register_module()
class IterBasedTrainLoop(_Resumable, mmengine_loops.IterBasedTrainLoop):
    """Train for a number of iterations, validating between them. Each iteration is seeded by its number.

    Args:
        runner: The run.
        dataloader: Training data; passes over it follow one another.
        max_iters: Iterations.
        val_begin: First iteration after which to validate.
        val_interval: Iterations between validations; 0 or less validates after the last one only.
        dynamic_intervals: Pairs of iteration and the interval that counts from there on.

    Raises:
        ValueError: A number of iterations that is none.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ) -> None:
        BaseLoop.__init__(self, runner, dataloader)
        self._max_iters = _whole("max_iters", max_iters)
        self._max_epochs = 1  # the whole run is one epoch to hooks, as in mmengine
        self._prepare(val_begin, val_interval, dynamic_intervals)

    def run(self) -> nn.Module:
        """Train until ``max_iters``."""
        self._begin()
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        if self._iter:
            self._validate_if_due(self._iter, self._max_iters)
        batches = iter(self.stream)
        while self._iter < self._max_iters and not self.stop_training:
            self.run_iter(next(batches))
            self._validate_if_due(self._iter, self._max_iters)
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def run_iter(self, data_batch: Sequence[dict]) -> None:
        """Train on one batch."""
        self._step(self._iter, data_batch)


def _whole(name: str, value: float, negative: bool = False) -> int:
    if not isinstance(value, (int, float)) or value % 1 != 0 or (value < 0 and not negative):
        raise ValueError(f"train_cfg.{name}: a whole number was expected, got {value!r}")
    return int(value)
