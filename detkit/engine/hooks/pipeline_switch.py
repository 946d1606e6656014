"""Another pipeline for the last epochs of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dataset import Compose
from mmengine.runner import IterBasedTrainLoop

from detkit.datasets.mixing import step_names
from detkit.engine.hooks.hook import Hook
from detkit.engine.parallel.inner_model import inner_model
from detkit.registry import HOOKS, TRANSFORMS

__all__ = ["PipelineSwitchHook", "YOLOXModeSwitchHook"]


class _SwitchHook(Hook):
    """Switches once, before the first epoch for which ``is_due`` says so.

    A hook of this kind has no state: what it does follows from the epoch, so that a resumed run is as the
    uninterrupted one was.
    """

    def __init__(self) -> None:
        self.switched = False

    def is_due(self, runner: Any, epoch: int) -> bool:
        """Whether ``epoch``, counted from 0, is one of the last ones."""
        raise NotImplementedError

    def switch(self, runner: Any) -> None:
        """Do it."""
        raise NotImplementedError

    def before_train(self, runner: Any) -> None:
        """A run resumed at the end of an epoch validates that one first, as the epoch was trained."""
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(
                f"{type(self).__name__} counts epochs, and the training loop counts iterations; use EpochBasedTrainLoop"
            )
        self._switch_if_due(runner, runner.epoch - 1)

    def before_train_epoch(self, runner: Any) -> None:
        """Switch, if the epoch that begins is the first one of the last."""
        self._switch_if_due(runner, runner.epoch)

    def _switch_if_due(self, runner: Any, epoch: int) -> None:
        if not self.switched and epoch >= 0 and self.is_due(runner, epoch):
            self.switch(runner)
            self.switched = True


@HOOKS.register_module()
class PipelineSwitchHook(_SwitchHook):
    """Gives the training dataset another pipeline from an epoch on, as RTMDet does.

    Worker processes are started anew, persistent ones too.

    Args:
        switch_epoch: The first epoch with it, counted from 0, as the number of epochs done.
        switch_pipeline: Its steps, as configs.

    Raises:
        ValueError: A negative epoch; a training that counts iterations.
        TypeError: The training dataset has no pipeline.
    """

    def __init__(self, switch_epoch: int, switch_pipeline: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        if switch_epoch < 0:
            raise ValueError(f"switch_epoch: a number of at least 0 was expected, got {switch_epoch!r}")
        self.switch_epoch = switch_epoch
        self.pipeline = Compose([TRANSFORMS.build(step) for step in switch_pipeline])

    def before_train(self, runner: Any) -> None:
        """What could not be switched is refused before the first epoch."""
        _datasets_with(runner.train_dataloader.dataset, "pipeline", type(self).__name__)
        super().before_train(runner)

    def is_due(self, runner: Any, epoch: int) -> bool:
        """From ``switch_epoch`` on."""
        return epoch >= self.switch_epoch

    def switch(self, runner: Any) -> None:
        """Exchange the pipeline."""
        for dataset in _datasets_with(runner.train_dataloader.dataset, "pipeline", type(self).__name__):
            dataset.pipeline = self.pipeline
        _stop_workers(runner.train_dataloader)
        runner.logger.info("PipelineSwitchHook: another pipeline from here on")


@HOOKS.register_module()
class YOLOXModeSwitchHook(_SwitchHook):
    """Trains the last epochs without strong augmentation and with an L1 loss, as YOLOX does.

    The steps are skipped by the training dataset's ``update_skip_type_keys``, the loss is the head's, by its
    ``use_l1``. Worker processes are started anew, persistent ones too.

    Args:
        num_last_epochs: How many epochs; one more is trained so, as in MMDetection.
        skip_type_keys: Types of the steps to skip; a pipeline need not have all of them.

    Raises:
        ValueError: A negative number, or a type that no step has; a training that counts iterations.
        TypeError: The dataset cannot skip steps, or the head has no ``use_l1``.
    """

    def __init__(
        self, num_last_epochs: int = 15, skip_type_keys: Sequence[str] = ("Mosaic", "RandomAffine", "MixUp")
    ) -> None:
        super().__init__()
        if num_last_epochs < 0:
            raise ValueError(f"num_last_epochs: a number of at least 0 was expected, got {num_last_epochs!r}")
        step_names(skip_type_keys)  # refuses what is none
        self.num_last_epochs = num_last_epochs
        self.skip_type_keys = tuple(skip_type_keys)

    def before_train(self, runner: Any) -> None:
        """What could not be switched is refused before the first epoch."""
        _datasets_with(runner.train_dataloader.dataset, "update_skip_type_keys", type(self).__name__)
        _head(runner)
        super().before_train(runner)

    def is_due(self, runner: Any, epoch: int) -> bool:
        """In the last epochs."""
        return epoch + 1 >= runner.max_epochs - self.num_last_epochs

    def switch(self, runner: Any) -> None:
        """Skip the steps and add the loss."""
        for dataset in _datasets_with(runner.train_dataloader.dataset, "update_skip_type_keys", type(self).__name__):
            dataset.update_skip_type_keys(self.skip_type_keys)
        _stop_workers(runner.train_dataloader)
        _head(runner).use_l1 = True
        runner.logger.info("YOLOXModeSwitchHook: no %s, and an L1 loss from here on", ", ".join(self.skip_type_keys))


def _head(runner: Any) -> Any:
    model = inner_model(runner.model)
    head = getattr(getattr(model, "detector", model), "bbox_head", None)
    if not hasattr(head, "use_l1"):
        raise TypeError(f"YOLOXModeSwitchHook: a bbox_head with use_l1 was expected, got a {type(head).__name__}")
    return head


def _datasets_with(dataset: Any, name: str, hook: str) -> list[Any]:
    """The datasets below ``dataset``, through wrappers and joined ones, that have an attribute of their own."""
    # Wrappers that hand on what they do not have, such as the seeding one, would take a new value for themselves.
    if name in vars(dataset) or hasattr(type(dataset), name):
        return [dataset]
    inner = vars(dataset).get("datasets") or [vars(dataset).get("dataset")]
    if inner == [None]:
        raise TypeError(f"{hook}: a training dataset with {name!r} was expected, got a {type(dataset).__name__}")
    return [found for one in inner for found in _datasets_with(one, name, hook)]


def _stop_workers(loader: Any) -> None:
    """Workers have copies of the dataset as it was; the next pass starts others."""
    iterator = getattr(loader, "_iterator", None)  # of persistent workers
    if iterator is not None:
        iterator._shutdown_workers()
        loader._iterator = None
