"""The runner: mmengine's, with what is broken in it mended. Each override names the fault it mends."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.runner import BaseLoop
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detkit.checkpoints import (
    load_checkpoint_file,
    load_weights,
    open_checkpoint,
    save_checkpoint_file,
    write_text,
)
from detkit.config import dump
from detkit.engine.data.labels import label_map
from detkit.engine.distributed import get_world_size, init_distributed, shared_random_seed
from detkit.engine.environment import (
    ENV_KEYS,
    cudnn_benchmark,
    describe_environment,
    require_writable,
    select_device,
    set_float32_precision,
)
from detkit.engine.optim import OptimWrapper
from detkit.engine.parallel import sync_buffers
from detkit.engine.parallel.inner_model import inner_model
from detkit.engine.reporting.console import only_errors, use_console
from detkit.engine.resuming.source import checkpoint_to_resume
from detkit.engine.resuming.state import capture, check_resumable, restore
from detkit.engine.run.auto_scale import auto_scale_cfg, base_batch, expected_world_size, other_batch, scaled_values
from detkit.engine.run.builder import PartBuilder
from detkit.engine.run.checks import check_evaluation, check_loaded_weights, check_training
from detkit.events import EventStorage
from detkit.registry import RUNNERS, check_keys

__all__ = ["Runner"]

_runs = count()
_END_STAGES = ("after_train", "after_run")


@RUNNERS.register_module()
class Runner(PartBuilder):
    """Trains, validates and tests what a config describes.

    Args:
        model: A model or its config.
        work_dir: Folder of everything the run writes.
        device: ``'cpu'``, ``'cuda'``, ``'cuda:1'``; None takes the config's ``device``, else CUDA where there is one.
        resume: True goes on from the newest intact checkpoint in ``work_dir``, or starts (from ``load_from``, if
            set) where there is none, and so does ``'auto'``; a path goes on from that file.
        kwargs: As mmengine's runner takes them; ``default_scope`` defaults to ``'detkit'`` and
            ``randomness`` to ``dict(seed=0)``.

    Attributes:
        events: What the run measures; also models reach it, by ``detkit.events.get_event_storage``.
        cudnn_benchmark: Whether cuDNN tries all algorithms at new shapes while training.
        train_completed: Whether the training went to its end; hooks whose ``after_train`` does more than to clean
            up ask this, since it is called after an error too.

    Raises:
        ValueError: A device that does not exist.
        OSError: ``work_dir`` cannot be written.
    """

    def __init__(
        self,
        model: nn.Module | dict[str, Any],
        work_dir: str,
        *,
        device: str | None = None,
        resume: bool | str = False,
        **kwargs: Any,
    ) -> None:
        # What cannot work is refused before anything is built.
        self.device = select_device(device or (kwargs.get("cfg") or {}).get("device"))
        work_dir = str(require_writable(work_dir))
        if kwargs.get("default_scope") in (None, "mmengine", "mmdet"):
            # MMDetection's configs say 'mmdet'; their names are detkit's.
            kwargs["default_scope"] = "detkit"
        randomness = kwargs.get("randomness") or {}
        # mmengine fails without a seed, and its own default differs at each run.
        kwargs["randomness"] = {"seed": 0, **randomness}
        self.console = Console(stderr=True)
        self.events = EventStorage()
        self._stages = {}
        self._ended: set[str] = set()
        self.train_completed = False
        self._checkpoint_to_resume: tuple[dict[str, Any], str] | None = None
        super().__init__(model, work_dir, resume=True if resume == "auto" else resume, **kwargs)

    @classmethod
    def from_cfg(cls, cfg: Any) -> Runner:
        """Build a runner from a config; see ``detkit.config.load``."""
        cfg = cfg.copy()
        # mmengine hands on its own defaults for absent keys.
        cfg.setdefault("default_scope", "detkit")
        cfg.setdefault("randomness", {"seed": 0})
        scaled = []
        if base_batch(cfg.get("auto_scale_lr")) is not None:
            world_size = expected_world_size(cfg.get("launcher", "none"))
            scaled = scaled_values(cfg, world_size)
            cfg = auto_scale_cfg(cfg, world_size)
        runner = super().from_cfg(cfg)
        for value in scaled:
            runner.logger.info("auto_scale_lr: %s", value)
        return runner

    @cached_property
    def config_text(self) -> str:
        """The effective config as Python; mmengine formats it anew at each save, for seconds."""
        return dump(self.cfg)

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Join the other processes of the run, if it has any; set precision and the time stamp."""
        check_keys(env_cfg, ENV_KEYS, "env_cfg")
        options = dict(env_cfg)
        self._join_processes(options.get("dist_cfg") or {})
        set_float32_precision(options.pop("float32_precision", None))
        # mmengine turns it on for evaluations too, whose images have ever new shapes.
        self.cudnn_benchmark = bool(options.pop("cudnn_benchmark", False))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mmengine complains of start methods and threads that launch has set
            super().setup_env(options)
        # mmengine's time stamp has seconds: two runs of one process in the same second would share logger,
        # message hub and visualizer.
        number = next(_runs)
        if number:
            self._timestamp += f"_{number}"

    def _join_processes(self, options: Mapping[str, Any]) -> None:
        check_keys(options, {"backend", "timeout", "port", "init_backend"}, "env_cfg.dist_cfg")
        known = {key: options[key] for key in ("timeout", "port") if key in options}
        backend = options.get("backend")
        if backend == "nccl" and self.device.type == "cpu":  # MMDetection's configs name it for any device
            backend = None
        joined = init_distributed(self._launcher, backend, device_type=self.device.type, **known)
        self._distributed = joined and get_world_size() > 1
        if self._distributed and self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())

    def set_randomness(self, seed: int | None, diff_rank_seed: bool = False, deterministic: bool = False) -> None:
        """One seed for all processes: samplers share it, and each iteration adds the rank to it.

        With mmengine's ``diff_rank_seed`` the processes would shuffle differently, and see some samples twice.
        """
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS refuses otherwise
        if seed is not None and (not isinstance(seed, int) or not 0 <= seed < 1 << 32):
            raise ValueError(f"randomness.seed: an integer from 0 to 2**32 - 1 was expected, got {seed!r}")
        seed = shared_random_seed() if seed is None else seed
        super().set_randomness(seed, False, deterministic)

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """A log file, and plain lines on the console; mmengine's stream handler would tear the progress display."""
        logger = super().build_logger(log_level, log_file, **kwargs)
        use_console(logger, self.console)
        if self.rank:
            only_errors(logger, Path(self._log_dir, f"{self.timestamp}_rank{self.rank}.log"))
        return logger

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        # mmengine starts git, gcc and nvcc to describe the machine: seconds before the first step.
        facts = ", ".join(f"{name} {value}" for name, value in describe_environment(self.device).items())
        self.logger.info("%s, seed %s", facts, self.seed)
        self.logger.info("work directory %s", self.work_dir)
        self.logger.info("config:\n%s", self.config_text, extra={"console": False})

    def dump_config(self) -> None:
        """Write the effective config to ``work_dir/config.py``."""
        if self.rank == 0:
            write_text(Path(self.work_dir, "config.py"), self.config_text)

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call the hooks that have something to do at a stage, in their order.

        mmengine calls all of them, and turns a TypeError inside one into another without its traceback.
        """
        if fn_name in _END_STAGES:
            self.train_completed |= fn_name == "after_train"
            return self._end(fn_name)
        for hook in self.hooks_at(fn_name):
            getattr(hook, fn_name)(self, **kwargs)

    def train(self) -> nn.Module:
        """Train, after everything that can be checked beforehand was checked.

        Returns:
            The model; ``train_completed`` says whether the run went to its end.
        """
        if self._train_loop is None:
            raise ValueError("train_dataloader, train_cfg and optim_wrapper must be set to train")
        self._checkpoint_to_resume = checkpoint_to_resume(self)
        self._train_loop = self.build_train_loop(self._train_loop)
        if self._val_loop is not None:
            self._val_loop = self.build_val_loop(self._val_loop)
        check_training(self)
        benchmark = self.cudnn_benchmark and not self.deterministic
        with self.events, cudnn_benchmark(True) if benchmark else nullcontext():
            self.train_completed = False
            return self._closing(self._train, _END_STAGES)

    def _train(self) -> nn.Module:
        is_new = isinstance(self.optim_wrapper, Mapping)
        self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        if is_new:  # a second call of train() would scale a second time
            self.scale_lr(self.optim_wrapper, self.auto_scale_lr)
        if self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        self.call_hook("before_run")
        self._init_model_weights()
        self._change_forward()
        self.load_or_resume()
        self.optim_wrapper.initialize_count_status(self.model, self.iter, self.max_iters)
        self._compile()
        with _frozen_garbage():
            model = self.train_loop.run()
        self.call_hook("after_run")
        return model

    def val(self) -> dict[str, Any]:
        """Validate once."""
        if self._val_loop is None:
            raise ValueError("val_dataloader, val_cfg and val_evaluator must be set to validate")
        self._val_loop = self.build_val_loop(self._val_loop)
        check_evaluation(self, "val", self._val_loop)
        return self._closing(super().val, ("after_run",))

    def test(self) -> dict[str, Any]:
        """Test once."""
        if self._test_loop is None:
            raise ValueError("test_dataloader, test_cfg and test_evaluator must be set to test")
        self._test_loop = self.build_test_loop(self._test_loop)
        check_evaluation(self, "test", self._test_loop)
        return self._closing(super().test, ("after_run",))

    def _closing(self, run: Callable[[], Any], end_stages: Sequence[str]) -> Any:
        """Run, and reach the end stages of all hooks in any case; mmengine leaves files open after an error."""
        self._ended = set()
        try:
            result = run()
        except BaseException as error:
            # The error that ended the run is the one to be seen; those of hooks that clean up go to the log.
            self._call_each("on_exception", error=error)
            for stage in end_stages:
                self._call_each(stage)
            self._call_each("close")
            raise
        failed = self._call_each("close")
        if failed is not None:
            raise failed
        return result

    def _end(self, stage: str) -> None:
        failed = self._call_each(stage)
        if failed is not None:
            raise failed

    def _call_each(self, stage: str, **kwargs: Any) -> BaseException | None:
        """Call all hooks at ``stage``, once per run, though some fail; log the errors, and return the first."""
        if stage in self._ended:
            return None
        self._ended.add(stage)
        first = None
        for hook in self.hooks_at(stage):
            try:
                getattr(hook, stage)(self, **kwargs)
            except Exception as error:
                self.logger.exception("%s.%s failed: %s", type(hook).__name__, stage, error)
                first = first or error
        return first

    def load_or_resume(self) -> None:
        """Go on from the checkpoint found, or load ``load_from``: all of it for an evaluation by itself."""
        if self._has_loaded:
            return
        training = isinstance(self._train_loop, BaseLoop)
        if training and self._checkpoint_to_resume is not None:
            self.resume(self._checkpoint_to_resume[1])
        elif self._load_from is not None:
            path = str(self._load_from)
            checkpoint = open_checkpoint(path, broadcast_from_rank0=True)
            check_loaded_weights(self, checkpoint, path)
            self._load_weights(checkpoint, path, strict=not training)

    def resume(self, filename: str) -> None:
        """Restore everything; mmengine's cannot open its own files on torch 2.6 and later, resumes schedules by
        position whatever they are, and restores no random numbers.
        """
        if self._checkpoint_to_resume is None or self._checkpoint_to_resume[1] != filename:
            checkpoint = load_checkpoint_file(filename, broadcast_from_rank0=True)
            check_resumable(checkpoint, filename)
            self._checkpoint_to_resume = (checkpoint, filename)
        self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        if self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        restore(self, *self._checkpoint_to_resume)
        batch = other_batch(self.cfg, self._checkpoint_to_resume[0]["meta"].get("cfg", ""))
        if batch is not None:
            self.logger.warning(batch)
        self._checkpoint_to_resume = None  # free the memory
        self._has_loaded = True
        self.logger.info("resumed from %s: epoch %d, iteration %d", filename, self.epoch, self.iter)

    def load_checkpoint(
        self,
        filename: str,
        map_location: Any = "cpu",
        strict: bool = False,
        revise_keys: Sequence[tuple[str, str]] = (),
        key_matching: str | None = None,
    ) -> dict[str, Any]:
        """Load weights from a file or URL, and say what did not fit; see ``detkit.checkpoints.load_weights``.

        The log file has every name, the console the first ones.
        """
        checkpoint = open_checkpoint(filename, map_location, broadcast_from_rank0=True)
        self._load_weights(checkpoint, str(filename), strict, revise_keys, key_matching)
        return checkpoint

    def _load_weights(
        self,
        checkpoint: dict[str, Any],
        path: str,
        strict: bool,
        revise_keys: Sequence[tuple[str, str]] = (),
        key_matching: str | None = None,
    ) -> None:
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        classes = None
        if isinstance(self._train_loop, BaseLoop):
            classes = (label_map(self.train_dataloader.dataset) or {}).get("classes")
        model = inner_model(self.model)
        report = load_weights(model, checkpoint, strict, revise_keys, key_matching, path, classes)
        self._has_loaded = True
        level = self.logger.info if report.complete else self.logger.warning
        level("%s: %s", path, report)
        if str(report) != report.full():
            self.logger.info("%s: %s", path, report.full(), extra={"console": False})

    def save_checkpoint(
        self,
        out_dir: str | os.PathLike[str],
        filename: str,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: Mapping[str, Any] | None = None,
        by_epoch: bool = True,
    ) -> None:
        """Write a checkpoint; mmengine's write loses the old file and the new one when killed.

        All processes must call it; the first one writes.
        """
        self.call_hook("before_capture")
        sync_buffers(inner_model(self.model))
        if isinstance(self.model, DistributedDataParallel) and isinstance(self.optim_wrapper, OptimWrapper):
            self.optim_wrapper.share_begun_window()
        done = {"epoch": self.epoch + by_epoch, "iter": self.iter + (not by_epoch), **(meta or {})}
        checkpoint = capture(self, done, save_optimizer, save_param_scheduler)
        self.call_hook("before_save_checkpoint", checkpoint=checkpoint)
        if self.rank == 0:
            save_checkpoint_file(checkpoint, Path(out_dir, filename))


@contextmanager
def _frozen_garbage() -> Iterator[None]:
    """Python's collector leaves alone what is there already: it would walk through torch and all annotations again and
    again, for a tenth of a second each time, and workers that are forked would get a copy of what it touches.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
