"""Building the parts of a run from its config, each under its config path.

mmengine builds them through its own registries, so that an unknown argument is found late and its place is
not named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from mmengine import runner as mmengine_runner
from mmengine.evaluator import Evaluator as MMEngineEvaluator
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict, _ParamScheduler
from mmengine.runner import BaseLoop
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

from detkit.engine.data.dataloader import build_dataloader
from detkit.engine.data.seeding import derive_seed, seed_everything
from detkit.engine.data.sharding import check_equal_lengths, take_each_sample_once
from detkit.engine.evaluation.base_loop import build_evaluator
from detkit.engine.hooks.hook import overridden_stages
from detkit.engine.hooks.memory_format import wants_channels_last
from detkit.engine.model.activation_checkpointing import checkpoint_activations, merge_conv_and_frozen_norm
from detkit.engine.model.compilation import compile_model
from detkit.engine.optim import build_optim_wrapper
from detkit.engine.parallel import FSDP, revert_sync_batchnorm, use_full_states, wrap_model
from detkit.engine.parallel.inner_model import inner_model
from detkit.engine.reporting.log_processor import LogProcessor
from detkit.engine.run.auto_scale import base_batch
from detkit.engine.schedulers import build_schedulers
from detkit.registry import (
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    MODELS,
    VISUALIZERS,
    building,
)

__all__ = ["PartBuilder"]

_DEFAULT_HOOKS: dict[str, dict[str, Any]] = {
    "runtime_info": {"type": "RuntimeInfoHook"},
    "timer": {"type": "IterTimerHook"},
    "sampler_seed": {"type": "DistSamplerSeedHook"},
    "invalid_loss": {"type": "CheckInvalidLossHook"},
    "logger": {"type": "LoggerHook"},
    "param_scheduler": {"type": "ParamSchedulerHook"},
    "checkpoint": {"type": "CheckpointHook", "interval": 1},
    "preemption": {"type": "PreemptionHook"},
}


class PartBuilder(mmengine_runner.Runner):
    """The half of the runner that builds; see ``Runner``.

    Attributes:
        device: Where the model runs.
    """

    device: torch.device
    _stages: dict[str, list[Hook]]  # which hooks override a stage
    # mmengine does not annotate these: a config until it is built.
    optim_wrapper: Any
    param_schedulers: Any
    _train_loop: Any
    _val_loop: Any
    _test_loop: Any
    _seed: Any

    # Hooks ask these several times per step. mmengine's take a microsecond each time to see whether the loop is
    # built, and `iter` builds it, with the training data, also for a test.
    @property
    def train_loop(self) -> Any:
        """The training loop; built when first asked for."""
        if isinstance(self._train_loop, dict):
            self._train_loop = self.build_train_loop(self._train_loop)
        return self._train_loop

    @property
    def epoch(self) -> int:
        """Epochs done; 0 without a training loop."""
        return 0 if self._train_loop is None or isinstance(self._train_loop, dict) else self._train_loop.epoch

    @property
    def iter(self) -> int:
        """Iterations done; 0 without a training loop."""
        return 0 if self._train_loop is None or isinstance(self._train_loop, dict) else self._train_loop.iter

    def build_model(self, model: nn.Module | dict[str, Any]) -> nn.Module:
        """Build the model."""
        if isinstance(model, nn.Module):
            return model
        with building("model", model):
            return MODELS.build(model)

    def _init_model_weights(self) -> None:
        if isinstance(self.model, FSDP):  # done before the weights were spread over the processes
            return
        seed_everything(derive_seed(self.seed, "weights"))  # building a dataset may have drawn numbers
        super()._init_model_weights()

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Move the model to the run's device and, in a run of several processes, wrap it for them.

        mmengine takes the GPU where there is one, and wraps for a GPU where there is none.
        """
        if is_model_wrapper(model):
            if model_wrapper_cfg is not None:
                raise ValueError("model_wrapper_cfg is set, but the model given is wrapped already")
            return model
        # 'cuda' without a number is the current device, and set_device refuses it.
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)
        model = model.to(self.device)
        if wants_channels_last(self.cfg.get("custom_hooks")):
            model = model.to(memory_format=torch.channels_last)
        if not self.distributed:
            return revert_sync_batchnorm(model)
        if (model_wrapper_cfg or {}).get("type") == "FSDP" and self._train_loop is not None:
            seed_everything(derive_seed(self.seed, "weights"))
            model.init_weights()  # type: ignore[operator]
        options = self.cfg.get("find_unused_parameters", False), self.cfg.get("sync_bn")
        return wrap_model(model, model_wrapper_cfg, *options, self.logger)

    def _change_forward(self) -> None:
        """Recompute activations and merge frozen norms, as the config says."""
        for key, change in (
            ("activation_checkpointing", checkpoint_activations),
            ("efficient_conv_bn_eval", merge_conv_and_frozen_norm),
        ):
            names = self.cfg.get(key)
            if names is not None:
                self.logger.info("%s: %s", key, names)
                change(inner_model(self.model), names)

    def _compile(self) -> None:
        """Compile what the config's ``compile`` says; mmengine compiles ``train_step``, in pieces."""
        names = compile_model(inner_model(self.model), self.cfg.get("compile"), self.device)
        if names:
            self.logger.info(
                "compiling %s: the first iterations, and those with new shapes, are slow", ", ".join(names)
            )

    def register_hook(self, hook: Hook | Mapping[str, Any], priority: Any = None) -> None:
        """Add a hook; the config dict stays as it is, from which mmengine takes ``priority`` out."""
        if isinstance(hook, Mapping):
            options = dict(hook)
            own = options.pop("priority", None)
            priority = own if priority is None else priority
            hook = HOOKS.build(options)
        super().register_hook(hook, priority)
        self._stages.clear()

    def hooks_at(self, stage: str) -> list[Hook]:
        """The hooks that override ``stage``, in their order."""
        if stage not in self._stages:
            self._stages[stage] = [hook for hook in self._hooks if stage in overridden_stages(hook)]
        return self._stages[stage]

    def register_default_hooks(self, hooks: Mapping[str, Any] | None = None) -> None:
        """Add the default hooks, changed by ``hooks``; None as a value leaves one out."""
        configs = {**_DEFAULT_HOOKS, **(hooks or {})}
        for name, hook in configs.items():
            if hook is not None:
                self._register_at(f"default_hooks.{name}", hook)

    def register_custom_hooks(self, hooks: Sequence[Any]) -> None:
        """Add the config's ``custom_hooks``."""
        for index, hook in enumerate(hooks):
            self._register_at(f"custom_hooks.{index}", hook)

    def _register_at(self, path: str, hook: Any) -> None:
        if not isinstance(hook, Mapping):
            return self.register_hook(hook)
        options = {key: value for key, value in hook.items() if key != "priority"}
        with building(path, options):
            return self.register_hook(HOOKS.build(options), hook.get("priority"))

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | Mapping[str, Any], seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a loader; with mmengine's, augmentations repeat at each epoch (see ``engine/data/seeding.py``)."""
        return build_dataloader(dataloader, seed or 0)

    def _loader(self, name: str) -> Any:
        """A loader, or several where the config has a list of them."""
        cfg: Any = getattr(self, f"_{name}")
        if isinstance(cfg, Mapping):
            cfg = self._build_at(name, cfg)
        elif isinstance(cfg, (list, tuple)):
            cfg = [self._build_at(f"{name}.{index}", one) for index, one in enumerate(cfg)]
        if name == "train_dataloader":
            check_equal_lengths(cfg, name)
        setattr(self, f"_{name}", cfg)
        return cfg

    def _build_at(self, path: str, cfg: Any) -> DataLoader:
        with building(path, cfg):
            loader = self.build_dataloader(cfg, self.seed)
        if isinstance(self.model, FSDP):
            # Weights are gathered batch by batch, so that each process needs as many; the evaluator drops repetitions.
            check_equal_lengths(loader, path)
        elif not path.startswith("train"):
            take_each_sample_once(loader)
        return loader

    def build_evaluator(self, evaluator: MMEngineEvaluator | dict[str, Any] | list[Any]) -> MMEngineEvaluator:
        """An evaluator of one metric, of several, or of a type of its own."""
        return build_evaluator(evaluator)

    def build_train_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """Build the training loop and its data."""
        if isinstance(loop, BaseLoop):
            return loop
        options = dict(loop)
        if "type" not in options:
            options["type"] = "EpochBasedTrainLoop" if options.pop("by_epoch", True) else "IterBasedTrainLoop"
        return self._build_loop("train", options, {})

    def build_val_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """Build the validation loop, its data and its evaluator."""
        if isinstance(loop, BaseLoop):
            return loop
        return self._build_loop("val", {"type": "ValLoop", **loop}, {"evaluator": self._evaluator("val")})

    def build_test_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """Build the test loop, its data and its evaluator."""
        if isinstance(loop, BaseLoop):
            return loop
        return self._build_loop("test", {"type": "TestLoop", **loop}, {"evaluator": self._evaluator("test")})

    def _build_loop(self, kind: str, options: dict[str, Any], parts: dict[str, Any]) -> BaseLoop:
        loader = self._loader(f"{kind}_dataloader")
        with building(f"{kind}_cfg", options):
            return LOOPS.build(options, default_args={"runner": self, "dataloader": loader, **parts})

    def _evaluator(self, kind: str) -> Any:
        """The metrics of a dataset; a list of them for each dataset where there is a list of those."""
        cfg = getattr(self, f"_{kind}_evaluator")
        with building(f"{kind}_evaluator", cfg):
            if isinstance(cfg, (list, tuple)) and isinstance(getattr(self, f"_{kind}_dataloader"), (list, tuple)):
                return [self.build_evaluator(one) for one in cfg]
            return self.build_evaluator(cfg)

    def build_optim_wrapper(self, optim_wrapper: Any) -> OptimWrapper:
        """Build optimizer and wrapper."""
        if not isinstance(optim_wrapper, Mapping) or not (
            "constructor" in optim_wrapper or isinstance(optim_wrapper.get("optimizer"), Mapping)
        ):  # built already, or several of them
            return super().build_optim_wrapper(optim_wrapper)
        wrapper = build_optim_wrapper(self.model, optim_wrapper)
        if isinstance(self.model, FSDP):
            use_full_states(wrapper.optimizer)
        return wrapper

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: Mapping[str, Any] | None = None) -> None:
        """Scale learning rates by batch size, of a runner that was not made from a config, which is scaled before.

        mmengine forgets that accumulated iterations make a larger batch, and the rate that is logged.
        """
        base = base_batch(auto_scale_lr)
        if base is None:
            return
        per_step = getattr(optim_wrapper, "_accumulative_counts", 1) * self.world_size
        batch_size = self.train_dataloader.batch_sampler.batch_size * per_step
        if batch_size == base:
            return
        wrappers = optim_wrapper.values() if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]
        for group in chain.from_iterable(wrapper.param_groups for wrapper in wrappers):
            group["lr"] *= batch_size / base
        self.logger.info("learning rate scaled by %.4g: batch of %d images", batch_size / base, batch_size)

    def _build_param_scheduler(self, scheduler: Any, optim_wrapper: OptimWrapper) -> list[_ParamScheduler]:
        known = isinstance(self._train_loop, BaseLoop)
        return build_schedulers(
            scheduler,
            optim_wrapper,
            max_epochs=self.max_epochs if known else None,
            max_iters=self.max_iters if known else None,
            epoch_length=len(self.train_dataloader),
        )

    def build_log_processor(self, log_processor: LogProcessor | Mapping[str, Any] | None) -> LogProcessor:
        """Build what makes the lines of the log; mmengine's reads a history that is not kept here."""
        if isinstance(log_processor, Mapping):
            with building("log_processor", log_processor):
                log_processor = LOG_PROCESSORS.build({"type": "LogProcessor", **log_processor})
        log_processor = LogProcessor() if log_processor is None else log_processor
        if not isinstance(log_processor, LogProcessor):
            raise TypeError(
                f"log_processor: a detkit.engine.LogProcessor, or a class derived from it, was expected, got a "
                f"{type(log_processor).__module__}.{type(log_processor).__name__}"
            )
        return log_processor

    def build_visualizer(self, visualizer: Visualizer | dict[str, Any] | None = None) -> Visualizer:
        """Under the run's name: by the config's, a second run in a process would get the first one's."""
        if isinstance(visualizer, Visualizer):
            return visualizer
        cfg = {"type": "DetLocalVisualizer", "save_dir": self._log_dir, **(visualizer or {})}
        cfg["name"] = self._experiment_name
        with building("visualizer", cfg):
            return VISUALIZERS.build(cfg)
