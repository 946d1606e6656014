"""Running statistics of batch norms as they are for the weights that are validated and saved."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from mmengine.optim import OptimWrapperDict
from torch import nn

from detkit.engine.data.data_stream import DataStream, Position
from detkit.engine.data.seeding import derive_seed, fenced_random_numbers
from detkit.engine.hooks.hook import Hook
from detkit.engine.model.batch_norm import training_batch_norms, update_bn_stats
from detkit.engine.parallel.inner_model import inner_model
from detkit.events import EventStorage
from detkit.registry import HOOKS, building, where

__all__ = ["PreciseBNHook"]


@HOOKS.register_module()
class PreciseBNHook(Hook):
    """Computes the running statistics of batch norms over many batches, before a validation or the end.

    It costs ``num_iters`` forward passes. The training goes on as it would have: neither its weights nor its random
    numbers, its data nor its records see any of it. See :func:`~detkit.engine.model.batch_norm.update_bn_stats`.

    Args:
        interval: Epochs or iterations between two computations; None for one at the end only, which there is always.
        by_epoch: Count epochs, else iterations.
        num_iters: Batches, per process.
        dataloader: Config of the data; None takes that of the training, once more.

    Raises:
        ValueError: A count less than 1, or there is no config of the training's data.
    """

    # Before averages of the weights take over the statistics, and before the checkpoint.
    priority = "ABOVE_NORMAL"

    def __init__(
        self,
        interval: int | None = None,
        by_epoch: bool = True,
        num_iters: int = 200,
        dataloader: Mapping[str, Any] | None = None,
    ) -> None:
        if num_iters < 1 or (interval is not None and interval < 1):
            raise ValueError(
                f"PreciseBNHook: interval and num_iters must be at least 1, got interval={interval} and "
                f"num_iters={num_iters}"
            )
        self.interval = interval
        self.by_epoch = by_epoch
        self.num_iters = num_iters
        self.dataloader = dataloader
        self.place = f"{where()}.dataloader"
        self._stream: DataStream | None = None
        self._has_told = False

    def before_train(self, runner: Any) -> None:
        """Load the data, so that an error in its config costs no training."""
        model = inner_model(runner.model)
        model.train()  # as the loop does next; trunks keep some of their batch norms frozen there
        if self._has_layers(runner, model):
            with fenced_random_numbers():
                self._data(runner)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Compute them at the interval and at the end."""
        if self.is_last_train_iter(runner) or self._is_due(runner, batch_idx):
            self.estimate(runner)

    def estimate(self, runner: Any) -> None:
        """Set the statistics for the weights that the model has now."""
        model = inner_model(runner.model)
        if not self._has_layers(runner, model):
            return
        wrapper = runner.optim_wrapper
        precision = nullcontext() if isinstance(wrapper, OptimWrapperDict) else wrapper.optim_context(model)
        with fenced_random_numbers(), EventStorage(runner.iter + 1), precision:
            stream = self._data(runner)
            stream.position = Position(runner.iter + 1, 0)  # other images each time, and the same in a resumed run
            layers = update_bn_stats(
                model,
                stream,
                self.num_iters,
                lambda batch: model._run_forward(model.data_preprocessor(batch, True), mode="loss"),
            )
        runner.logger.info("statistics of %d batch norms over %d batches", len(layers), self.num_iters)

    def _has_layers(self, runner: Any, model: nn.Module) -> bool:
        if training_batch_norms(model):
            return True
        if not self._has_told:
            runner.logger.info("%s: the model has no batch norm that trains; nothing to do", type(self).__name__)
        self._has_told = True
        return False

    def _is_due(self, runner: Any, batch_idx: int) -> bool:
        if self.interval is None:
            return False
        if not self.by_epoch:
            return self.every_n_train_iters(runner, self.interval)
        return self.end_of_epoch(runner.train_dataloader, batch_idx) and self.every_n_epochs(runner, self.interval)

    def _data(self, runner: Any) -> DataStream:
        if self._stream is None:
            cfg = self.dataloader or runner.cfg.get("train_dataloader")
            if not isinstance(cfg, Mapping):
                raise ValueError(
                    f"{type(self).__name__}: give it a dataloader config, as the run has none for its training data"
                )
            # Workers of its own would stay beside those of the training from one computation to the next.
            cfg = {key: value for key, value in cfg.items() if key != "persistent_workers"}
            seed = derive_seed(runner.seed, "batch norms")
            with building(self.place if self.dataloader else "train_dataloader", cfg):
                # Random states of numpy, which samplers use, take 32 bits.
                self._stream = DataStream(runner.build_dataloader(cfg, seed & 0x7FFFFFFF), seed)
        return self._stream
