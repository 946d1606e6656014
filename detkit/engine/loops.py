"""Training loops: mmengine's, with random numbers that a resumed run draws again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.runner import loops as mmengine_loops
from torch import nn

from detkit.engine.seeding import derive_seed, seed_everything
from detkit.registry import LOOPS

__all__ = ["EpochBasedTrainLoop", "IterBasedTrainLoop"]


@LOOPS.register_module()
class EpochBasedTrainLoop(mmengine_loops.EpochBasedTrainLoop):
    """Train for a number of epochs, validating between them; arguments are mmengine's.

    Each epoch and iteration is seeded by its number. A run resumed from the end of an epoch first repeats
    the validation that belonged there, since the checkpoint was written before it: the best checkpoint and
    the metrics are then those of the uninterrupted run.
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
        super().__init__(runner, dataloader, max_epochs, val_begin, val_interval, dynamic_intervals)
        batches = self.dataloader.batch_sampler
        if isinstance(getattr(batches, "sampler", None), InfiniteSampler):
            raise ValueError(
                "train_dataloader.sampler: an InfiniteSampler never ends an epoch; use DefaultSampler, or "
                "IterBasedTrainLoop in train_cfg"
            )

    def run(self) -> nn.Module:
        """Train until ``max_epochs``."""
        self.runner.call_hook("before_train")
        if self._epoch:
            self._validate_if_due()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate_if_due()
        self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        """Train for one pass over the data."""
        seed_everything(derive_seed(self.runner.seed, "epoch", self._epoch))
        _set_epoch(self.dataloader, self._epoch)
        super().run_epoch()

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        """Train on one batch."""
        seed_everything(derive_seed(self.runner.seed, "iter", self._iter))
        super().run_iter(idx, data_batch)

    def _validate_if_due(self) -> None:
        self._decide_current_val_interval()
        due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        if self.runner.val_loop is not None and self._epoch >= self.val_begin and due:
            self.runner.val_loop.run()


@LOOPS.register_module()
class IterBasedTrainLoop(mmengine_loops.IterBasedTrainLoop):
    """Train for a number of iterations; arguments are mmengine's. Each iteration is seeded by its number."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Taken over once begun: a second iterator would start the workers a second time.
        begun: Any = vars(self)["dataloader_iterator"]._iterator
        self.dataloader_iterator = _Passes(self.dataloader, begun, self.runner.seed)

    def run_iter(self, data_batch: Sequence[dict]) -> None:
        """Train on one batch."""
        seed_everything(derive_seed(self.runner.seed, "iter", self._iter))
        super().run_iter(data_batch)


class _Passes:
    """Batches of one pass over the data after the other.

    mmengine's iterator tells the sampler of a new pass, but not the batch sampler around it, so that the
    augmentations of each pass would be those of the first; it also sleeps two seconds between them.

    Args:
        dataloader: Its batch sampler is told the number of each pass but the first.
        first: Iterator of the first pass.
        seed: Of the run.
    """

    def __init__(self, dataloader: Any, first: Iterator[Any], seed: int) -> None:
        self._dataloader = dataloader
        self._iterator = first
        self._seed = seed
        self._epoch = 0

    def __iter__(self) -> _Passes:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._iterator)
        except StopIteration:
            self._epoch += 1
        # For samplers that shuffle by the generator of the process.
        seed_everything(derive_seed(self._seed, "epoch", self._epoch))
        _set_epoch(self._dataloader, self._epoch)
        self._iterator = iter(self._dataloader)
        return next(self._iterator)


def _set_epoch(dataloader: Any, epoch: int) -> None:
    batches = dataloader.batch_sampler
    # A loader that was not built here has torch's batch sampler, which knows no epochs.
    for sampler in (batches, getattr(batches, "sampler", None)):
        set_epoch = getattr(sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
            return
