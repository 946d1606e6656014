"""Validation and test loops: what they leave behind, several datasets, precision."""

from __future__ import annotations

import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from engine.engine_toys import ToyModel, toy_config
from mmengine.structures import BaseDataElement

from detkit.engine.data.seeding import seed_everything
from detkit.engine.evaluation.base_loop import evaluation_mode
from detkit.engine.hooks import CallbackHook, CheckpointHook, Hook
from detkit.registry import HOOKS, MODELS


def loader(size: int = 4, **changes):
    sampler = {"type": "DefaultSampler", "shuffle": False}
    dataset = {"type": "ToyDataset", "size": size, **changes}
    return {"dataset": dataset, "sampler": sampler, "batch_size": 4, "num_workers": 0}


def two_datasets(stage: str, names=("day", "night"), **changes):
    metrics = [{"type": "ToyMetric", "values": (value,)} for value in (0.25, 0.75)]
    return {
        f"{stage}_dataloader": [loader(4), loader(8)],
        f"{stage}_evaluator": metrics,
        f"{stage}_cfg": {"type": f"MultiDataset{stage.title()}Loop", "names": list(names)},
        **changes,
    }


@MODELS.register_module()
class DrawingModel(ToyModel):
    """Draws random numbers when it predicts, as samplers and test-time dropout do."""

    def forward(self, inputs, data_samples=None, mode="tensor"):
        if mode == "predict":
            for sample in data_samples:
                sample.set_metainfo({"score": torch.rand(()).item() + np.random.rand() + random.random()})
            return data_samples
        torch.rand(())
        return super().forward(inputs, data_samples, mode)


@HOOKS.register_module()
class NotesPredictions(Hook):
    def __init__(self) -> None:
        self.batches: list[int] = []
        self.sizes: list[int] = []
        self.dtypes: list[torch.dtype] = []
        self.modes: set[bool] = set()

    def before_val_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.modes.update(module.training for module in runner.model.modules())

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.batches.append(batch_idx)
        self.sizes.append(len(runner.val_dataloader))


def hook_of(runner, kind):
    return next(hook for hook in runner.hooks if isinstance(hook, kind))


def test_each_module_gets_its_mode_back_also_after_an_error(make_runner):
    runner = make_runner(val_dataloader=loader(8, fail_at=5))
    runner.model.train()
    runner.model.body[1].eval()  # frozen statistics, as norm_eval makes them
    before = [module.training for module in runner.model.modules()]
    with pytest.raises(ValueError, match=r"images/5.jpg"):
        runner.val()
    assert [module.training for module in runner.model.modules()] == before
    with evaluation_mode(runner.model):
        assert not any(module.training for module in runner.model.modules())
    assert [module.training for module in runner.model.modules()] == before
    assert before.count(False) == 1


def test_the_model_is_evaluated_in_evaluation_mode(make_runner):
    runner = make_runner(custom_hooks=[{"type": "NotesPredictions"}])
    runner.val()
    assert hook_of(runner, NotesPredictions).modes == {False}


def test_an_evaluation_takes_nothing_from_the_random_numbers_of_the_run(make_runner):
    runner = make_runner(model={"type": "DrawingModel", "bbox_head": {"type": "ToyHead"}})
    runner.val()  # builds everything, which may draw

    def draw():
        return random.random(), np.random.rand(), torch.rand(2).tolist()

    seed_everything(7)
    expected = draw()
    seed_everything(7)
    first = runner.val_loop.run()
    assert draw() == expected
    # The same numbers whatever was drawn before.
    assert runner.val_loop.run()["toy/mAP"] == first["toy/mAP"]


def test_predictions_draw_the_same_numbers_with_and_without_losses(make_runner):
    model = {"type": "DrawingModel", "bbox_head": {"type": "ToyHead"}}
    plain = make_runner(model=deepcopy(model)).val()
    both = make_runner(model=model, val_cfg={"loss": True}).val()
    assert both["toy/mAP"] == plain["toy/mAP"]
    assert "val/loss" in both


def test_training_with_and_without_validation_is_the_same(make_runner):
    model = {"type": "DrawingModel", "bbox_head": {"type": "ToyHead"}}
    without = {"val_dataloader": None, "val_cfg": None, "val_evaluator": None}
    one, two = make_runner("one", model=deepcopy(model), epochs=2), make_runner("two", model=model, epochs=2, **without)
    one.train()
    two.train()
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(value, two.model.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, torch.float32),
        ({"fp16": True}, torch.bfloat16),  # a CPU's half precision, as in training
        ({"dtype": "float16"}, torch.float16),
        ({"dtype": "bfloat16"}, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("stage", ["val", "test"])
def test_precision_of_predictions_on_a_cpu(make_runner, options, expected, stage):
    runner = make_runner(**{f"{stage}_cfg": options})
    seen = []
    runner.model.bbox_head.fc.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    getattr(runner, stage)()
    assert set(seen) == {expected}


def test_precision_that_is_none_is_refused(make_runner):
    with pytest.raises(ValueError, match=r"val_cfg\.dtype: 'float16', 'bfloat16' or None expected, got 'fp8'"):
        make_runner(val_cfg={"dtype": "fp8"}).val()


@pytest.mark.parametrize("interval", [0, -1])
@pytest.mark.parametrize("length", [{"by_epoch": True, "max_epochs": 3}, {"by_epoch": False, "max_iters": 8}])
def test_an_interval_below_one_validates_at_the_end_only(make_runner, interval, length):
    """mmengine divides by it."""
    at = []
    hook = CallbackHook({"after_val_epoch": lambda runner: at.append(runner.iter)})
    runner = make_runner(train_cfg={**length, "val_interval": interval}, custom_hooks=[hook], param_scheduler=None)
    runner.train()
    assert at == [runner.max_iters]


@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_of_several_datasets_carry_their_names(make_runner, stage):
    runner = make_runner(**two_datasets(stage), custom_hooks=[{"type": "NotesPredictions"}])
    metrics = getattr(runner, stage)()
    assert metrics == {"day/toy/mAP": 0.25, "day/toy/loss": 1.0, "night/toy/mAP": 0.75, "night/toy/loss": 1.0}
    if stage == "val":
        notes = hook_of(runner, NotesPredictions)
        assert (notes.batches, notes.sizes) == ([0, 0, 1], [1, 2, 2])


def test_the_best_of_one_dataset_among_several_is_kept(make_runner):
    hooks = {"checkpoint": {"type": "CheckpointHook", "save_best": "night/toy/mAP"}}
    runner = make_runner(epochs=1, **two_datasets("val"), default_hooks=hooks)
    runner.train()
    assert hook_of(runner, CheckpointHook).best["night/toy/mAP"]["score"] == 0.75


@pytest.mark.parametrize("names", [["day"], ["day", "day"], ["day", "night", "dusk"]])
def test_datasets_and_names_must_match(make_runner, names):
    with pytest.raises(ValueError, match=r"val_cfg\.names: one name .* got \['day'.*2 entries of val_dataloader"):
        make_runner(**two_datasets("val", names)).val()


def test_a_list_of_datasets_needs_its_loop(make_runner):
    with pytest.raises(ValueError, match=r"val_cfg=dict\(type='MultiDatasetValLoop', names=\[\.\.\.\]\)"):
        make_runner(**two_datasets("val", val_cfg={})).val()


def test_the_labels_of_each_dataset_are_checked(make_runner):
    changes = two_datasets("val")
    changes["val_dataloader"][1] = loader(8, classes=("star", "disc", "cross"))
    with pytest.raises(ValueError, match=r"val_dataloader\.1\.dataset has 3 .*: label 0 is 'disc' in one"):
        make_runner(**changes).train()
    changes["val_dataloader"][1] = loader(8, classes=("disc", "star"))
    with pytest.raises(ValueError, match=r"num_classes=3, but val_dataloader\.1\.dataset has 2 classes"):
        make_runner(**changes).val()


def test_the_metric_of_each_dataset_is_checked(make_runner, monkeypatch):
    changes = two_datasets("val")
    changes["val_evaluator"][1]["ann_file"] = "other.json"
    runner = make_runner(**changes)
    loop = runner.build_val_loop(runner._val_loop)
    loop.parts[1].dataloader.dataset.metainfo["ann_file"] = "own.json"
    runner._val_loop = loop
    with pytest.raises(ValueError, match=r"val_evaluator\.1\.ann_file=other.json, but its dataset reads own.json"):
        runner.val()


def test_errors_of_one_dataset_name_its_place(make_runner):
    changes = two_datasets("val")
    changes["val_dataloader"][1]["dataset"]["szie"] = 3
    with pytest.raises(TypeError, match=r"val_dataloader\.1\.dataset\.szie"):
        make_runner(**changes).val()


@MODELS.register_module()
class ReportsLosses(ToyModel):
    """Hands losses over with its predictions, as mmengine's models may."""

    def val_step(self, data):
        return [*super().val_step(data), BaseDataElement(loss={"loss_own": [torch.tensor(1.0), torch.tensor(3.0)]})]


def test_losses_that_a_model_hands_over_are_no_predictions(make_runner):
    runner = make_runner(model={"type": "ReportsLosses", "bbox_head": {"type": "ToyHead"}})
    metrics = runner.val()
    assert metrics["val/loss_own"] == 2
    assert "toy/mAP" in metrics


def test_toy_config_has_no_loss_unless_asked(make_runner, tmp_path):
    assert not any(name.startswith("val/") for name in make_runner().val())
    assert toy_config(tmp_path)["val_cfg"] == {}
