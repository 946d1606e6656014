"""Everything that a shipped config names builds, as far as that needs no data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from shipped import CONFIGS, SHIPPED, config_of, name_of, parametrized

from detkit.engine import build_evaluator, build_optim_wrapper, build_schedulers, run_length
from detkit.registry import DATA_SAMPLERS, DATASETS, HOOKS, LOG_PROCESSORS, MODELS, TRANSFORMS, VISUALIZERS, find

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def test_every_config_lies_in_the_folder_of_a_method():
    """Where the tests here look for them."""
    below = {path for path in CONFIGS.rglob("*.py") if "_base_" not in path.relative_to(CONFIGS).parts}
    assert below == set(SHIPPED)
    assert len(below) >= 2


class EightImages:
    """What samplers look at."""

    image_sizes = np.array([[640, 480], [480, 640]] * 4)

    def __len__(self):
        return len(self.image_sizes)


def dicts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every dict in a config, itself included."""
    if isinstance(value, Mapping):
        yield value
    for below in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        yield from dicts(below)


@parametrized(SHIPPED)
def test_model_optimizer_and_schedules_build(path):
    cfg = config_of(path)
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    # Optimizers look at where their parameters are; memory that nobody writes to costs nothing.
    optimizer = build_optim_wrapper(model.to_empty(device="cpu"), cfg.optim_wrapper)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held >= {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    length = run_length(cfg.train_cfg, epoch=1000)
    schedulers = build_schedulers(cfg.param_scheduler, optimizer, max_iters=length.iters, epoch_length=1000)
    assert len(schedulers) >= 1
    # every run begins with a warm-up
    assert 0 < optimizer.get_lr()["lr"][0] < cfg.optim_wrapper.optimizer.lr


@parametrized(SHIPPED)
def test_data_builds_but_for_its_files(path):
    cfg = config_of(path)
    for name in LOADERS:
        loader = cfg[name]
        for part in dicts(loader.dataset):
            for transform in part.get("pipeline") or ():
                TRANSFORMS.build(transform)
            kind = find(part["type"], DATASETS) if "type" in part else None
            if isinstance(kind, type) and issubclass(kind, BaseDataset):
                DATASETS.build({**part, "lazy_init": True})
        sampler = DATA_SAMPLERS.build(loader.sampler, default_args={"dataset": EightImages()})
        if loader.get("batch_sampler"):
            batches = {"sampler": sampler, "batch_size": loader.batch_size}
            DATA_SAMPLERS.build(loader.batch_sampler, default_args=batches)


@parametrized(SHIPPED)
def test_hooks_metrics_and_pictures_build(path, tmp_path):
    cfg = config_of(path)
    hooks = [*filter(None, cfg.default_hooks.values()), *cfg.get("custom_hooks", ())]
    for hook in hooks:
        HOOKS.build({key: value for key, value in hook.items() if key != "priority"})
        for step in hook.get("switch_pipeline", ()):
            TRANSFORMS.build(step)
    for name in ("val_evaluator", "test_evaluator"):
        assert build_evaluator(cfg[name]).metrics, name
    LOG_PROCESSORS.build(cfg.log_processor)
    VISUALIZERS.build({**cfg.visualizer, "name": name_of(path), "save_dir": str(tmp_path)})


@parametrized(SHIPPED)
def test_validation_sees_no_training_images(path):
    cfg = config_of(path)
    trained, validated = ({part.get("ann_file") for part in dicts(cfg[name]) if "type" in part} for name in LOADERS[:2])
    assert len(validated - {None}) >= 1
    assert not (trained & validated) - {None}
