"""The batches of a run, one pass over the data after the other, from any place on."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Any, NamedTuple

from detkit.engine.data.seeding import SeededBatches, derive_seed, rng_state, seed_everything, set_rng_state

__all__ = ["DataStream", "Position"]


class Position(NamedTuple):
    """A place in the data.

    Attributes:
        epoch: Passes that are over.
        batch: Batches of the present pass that are done.
    """

    epoch: int
    batch: int


class DataStream:
    """Hands out the batches of a loader and knows where it is, so that a run can go on from there.

    A place is reached by skipping indices: no sample is loaded that is not trained on. mmengine's iteration
    loop loads and throws away all of them, starts its workers twice, and sleeps two seconds between passes.

    Args:
        dataloader: Built by ``build_dataloader``; another loader works, but is skipped through by loading.
        seed: Of the run; samplers that shuffle by the generator of the process are seeded for each pass.

    Attributes:
        position: Where it is.
        load_time: Seconds that the run waited for the last batch.
    """

    def __init__(self, dataloader: Any, seed: int) -> None:
        self.dataloader = dataloader
        self.seed = seed
        self.position = Position(0, 0)
        self.load_time = 0.0
        self._length_before = 0  # batches of the pass before this one

    def replace(self, dataloader: Any) -> None:
        """Take batches from another loader; the pass over the present one ends here."""
        self.dataloader = dataloader

    def rest_of_pass(self) -> Iterator[Any]:
        """The batches that are left of this pass; after the last one the next pass is due."""
        dataloader = self.dataloader
        epoch, done = self.position
        begin = perf_counter()
        for batch in self._begin_pass():
            self.load_time = perf_counter() - begin
            done += 1
            self.position = Position(epoch, done)
            yield batch
            if self.dataloader is not dataloader:
                break
            begin = perf_counter()
        self._length_before = done
        self.position = Position(epoch + 1, 0)

    def __iter__(self) -> Iterator[Any]:
        """Batches without end."""
        while True:
            before = self.position
            yield from self.rest_of_pass()
            if self._length_before == before.batch == 0:
                raise ValueError("the data loader gives no batch")

    def load_again(self, back: int) -> Any:
        """Load a batch that was handed out before once more, exactly as it was.

        Args:
            back: 0 for the last one, 1 for the one before it …; it may lie in the pass before this one.

        Raises:
            ValueError: It lies further back, or the loader was not built by ``build_dataloader``.
        """
        epoch, batch = self.position.epoch, self.position.batch - 1 - back
        if batch < 0:
            epoch, batch = epoch - 1, batch + self._length_before
        batches = self.dataloader.batch_sampler
        if batch < 0 or not isinstance(batches, SeededBatches):
            raise ValueError(f"the batch {back} before the last one of {self.position} cannot be loaded again")
        state, own_epoch = rng_state(), batches.epoch
        try:
            self._seed_pass(epoch)
            batches.skip = batch
            keys = next(iter(batches))
            return self.dataloader.collate_fn([self.dataloader.dataset[key] for key in keys])
        finally:
            batches.set_epoch(own_epoch)
            set_rng_state(state)

    def _begin_pass(self) -> Iterator[Any]:
        batches = self.dataloader.batch_sampler
        self._seed_pass(self.position.epoch)
        if isinstance(batches, SeededBatches):
            batches.skip = self.position.batch
            return iter(self.dataloader)
        iterator = iter(self.dataloader)
        for _ in range(self.position.batch):
            next(iterator)
        return iterator

    def _seed_pass(self, epoch: int) -> None:
        seed_everything(derive_seed(self.seed, "epoch", epoch))
        batches = self.dataloader.batch_sampler
        # A loader that was not built here has torch's batch sampler, which knows no epochs.
        for sampler in (batches, getattr(batches, "sampler", None)):
            set_epoch = getattr(sampler, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(epoch)
                return
