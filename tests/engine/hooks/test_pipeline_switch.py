"""Hooks that change how the last epochs are trained: with workers, and after resuming."""

from __future__ import annotations

import pytest
import torch
from engine.engine_toys import ToyModel, toy_config

from detkit.engine import Hook, load_checkpoint_file
from detkit.engine.hooks import SetEpochInfoHook
from detkit.registry import MODELS, TRANSFORMS


@TRANSFORMS.register_module()
class RaiseInputs:
    """Adds to a toy's inputs, so that it shows whether a sample went through it."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, results):
        return {**results, "inputs": results["inputs"] + self.by}


@TRANSFORMS.register_module()
class RaiseMore(RaiseInputs):
    """The same by another name."""


@MODELS.register_module()
class SwitchToyHead(MODELS.get("ToyHead")):
    """Has the attributes that the hooks set."""

    def __init__(self, use_l1: bool = False) -> None:
        super().__init__()
        self.use_l1 = use_l1
        self.epoch = -1


@MODELS.register_module()
class SwitchToy(ToyModel):
    """With another loss where its head says so."""

    def forward(self, inputs, data_samples=None, mode="tensor"):
        outputs = super().forward(inputs, data_samples, mode)
        if mode == "loss" and self.bbox_head.use_l1:
            outputs["loss_l1"] = self.bbox_head.fc.weight.abs().sum()
        return outputs


class Watch(Hook):
    """Notes of each iteration by how much inputs were raised, whether there is an L1 loss, and the head's epoch."""

    priority = "LOWEST"

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.seen: list[tuple] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.stop_after:
            raise KeyboardInterrupt
        raised = {int(sample[:3].min() // 100) for sample in data_batch["inputs"]}
        self.seen.append((*raised, runner.model.bbox_head.use_l1, runner.model.bbox_head.epoch))


# There is no MixUp to skip, as in YOLOX-tiny's pipeline.
YOLOX = {"type": "YOLOXModeSwitchHook", "num_last_epochs": 1, "skip_type_keys": ("RaiseMore", "MixUp")}
SWITCH = {"type": "PipelineSwitchHook", "switch_epoch": 2, "switch_pipeline": [{"type": "RaiseInputs", "by": 300.0}]}
STEPS = [{"type": "RaiseInputs", "by": 100.0}, {"type": "RaiseMore", "by": 100.0}]


def config(hook, workers=0, persistent=False, **changes):
    """A run of four epochs of three iterations."""
    dataset = {"type": "MultiImageMixDataset", "dataset": {"type": "ToyDataset"}, "pipeline": STEPS}
    loader = toy_config("")["train_dataloader"] | {"dataset": dataset, "num_workers": workers}
    if workers:
        loader["persistent_workers"] = persistent
    hooks = toy_config("")["default_hooks"] | {
        "checkpoint": {"type": "CheckpointHook", "interval": 1, "by_epoch": False}
    }
    return {
        "model": {"type": "SwitchToy", "bbox_head": {"type": "SwitchToyHead"}},
        "epochs": 4,
        "train_dataloader": loader,
        "default_hooks": hooks,
        "custom_hooks": [hook, {"type": "SetEpochInfoHook"}],
        **changes,
    }


def expected(hook):
    if hook is YOLOX:  # one epoch more than it says, as MMDetection counts
        return [(2, False, 0)] * 3 + [(2, False, 1)] * 3 + [(1, True, 2)] * 3 + [(1, True, 3)] * 3
    return [(2, False, 0)] * 3 + [(2, False, 1)] * 3 + [(3, False, 2)] * 3 + [(3, False, 3)] * 3


def trained(make_runner, tmp_path, name, watch, options, **more):
    runner = make_runner(name, **options, **more)
    runner.register_hook(watch)
    if watch.stop_after is None:
        runner.train()
    else:
        with pytest.raises(KeyboardInterrupt):
            runner.train()
    folder = tmp_path / name
    return load_checkpoint_file(folder / (folder / "last_checkpoint").read_text())["state_dict"]


@pytest.mark.parametrize("hook", [YOLOX, SWITCH], ids=["yolox", "pipeline"])
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_get_the_new_pipeline(make_runner, tmp_path, hook, persistent):
    watch = Watch()
    alone = trained(make_runner, tmp_path, "alone", watch, config(hook))
    assert watch.seen == expected(hook)
    watch = Watch()
    several = trained(make_runner, tmp_path, "several", watch, config(hook, 2, persistent))
    assert watch.seen == expected(hook)
    assert all(torch.equal(alone[name], several[name]) for name in alone)


@pytest.mark.parametrize("hook", [YOLOX, SWITCH], ids=["yolox", "pipeline"])
@pytest.mark.parametrize("stop", [4, 6, 7])
def test_a_run_resumed_before_at_and_past_the_switch_ends_the_same(make_runner, tmp_path, hook, stop):
    whole = trained(make_runner, tmp_path, "whole", Watch(), config(hook))
    cut, rest = Watch(stop), Watch()
    trained(make_runner, tmp_path, "cut", cut, config(hook))
    ended = trained(make_runner, tmp_path, "cut", rest, config(hook), resume=True)
    assert cut.seen + rest.seen == expected(hook)
    assert all(torch.equal(whole[name], ended[name]) for name in whole)


class LossAtValidation(Hook):
    """Notes the head at each validation."""

    def __init__(self) -> None:
        self.seen: list[tuple] = []

    def before_val(self, runner):
        self.seen.append((runner.model.bbox_head.use_l1, runner.model.bbox_head.epoch))


def test_a_validation_after_resuming_is_that_of_the_epoch_that_was_trained(make_runner, tmp_path):
    note = LossAtValidation()
    each_epoch = {"checkpoint": {"type": "CheckpointHook", "interval": 1, "max_keep_ckpts": -1}}
    options = config(YOLOX, default_hooks=toy_config("")["default_hooks"] | each_epoch)
    trained(make_runner, tmp_path, "cut", Watch(10), options)
    options["custom_hooks"] = [*options["custom_hooks"], note]
    # The checkpoint of an epoch is from before its validation.
    trained(make_runner, tmp_path, "cut", Watch(), options, resume=str(tmp_path / "cut" / "epoch_3.pth"))
    assert note.seen == [(True, 2), (True, 3)]


def test_wrapped_datasets_are_reached(make_runner):
    options = config(SWITCH)
    mixed = options["train_dataloader"]["dataset"]
    options["train_dataloader"]["dataset"] = {"type": "RepeatDataset", "dataset": mixed, "times": 2}
    options["epochs"] = 3
    watch = Watch()
    runner = make_runner(**options)
    runner.register_hook(watch)
    runner.train()
    assert [raised for raised, *_ in watch.seen] == [2] * 12 + [3] * 6


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train_cfg": {"by_epoch": False, "max_iters": 4}}, ValueError, "YOLOXModeSwitchHook counts epochs"),
        ({"model": toy_config("")["model"]}, TypeError, "a bbox_head with use_l1 was expected, got a ToyHead"),
        (
            {"train_dataloader": toy_config("")["train_dataloader"]},
            TypeError,
            "YOLOXModeSwitchHook: a training dataset with 'update_skip_type_keys' was expected, got a ToyDataset",
        ),
    ],
)
def test_what_cannot_be_switched_is_refused_before_the_first_epoch(make_runner, change, error, message):
    options = config(YOLOX, param_scheduler=None, **change)
    options["custom_hooks"] = [YOLOX]
    with pytest.raises(error, match=message):
        make_runner(**options).train()


def test_a_dataset_without_a_pipeline_is_refused_before_the_first_epoch(make_runner):
    with pytest.raises(TypeError, match="a training dataset with 'pipeline' was expected, got a ToyDataset"):
        make_runner(custom_hooks=[SWITCH | {"switch_epoch": 99}]).train()


def test_a_model_that_wants_no_epoch_is_refused(make_runner):
    with pytest.raises(TypeError, match="a bbox_head that has epoch, was expected, got a ToyModel with a ToyHead"):
        make_runner(custom_hooks=[SetEpochInfoHook()]).train()


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ({"type": "PipelineSwitchHook", "switch_epoch": -1, "switch_pipeline": []}, "switch_epoch: .* got -1"),
        ({"type": "YOLOXModeSwitchHook", "num_last_epochs": -2}, "num_last_epochs: .* got -2"),
        ({"type": "YOLOXModeSwitchHook", "skip_type_keys": ("MixUpp",)}, "no step 'MixUpp'; did you mean 'MixUp'"),
    ],
)
def test_wrong_arguments(make_runner, hook, message):
    with pytest.raises(ValueError, match=message):
        make_runner(custom_hooks=[hook])


def test_the_hooks_of_yolox_and_rtmdet_build(make_runner):
    """As MMDetection's configs have them."""
    hooks = [
        {"type": "YOLOXModeSwitchHook", "num_last_epochs": 15, "priority": 48},
        {"type": "SyncNormHook", "priority": 48},
        {
            "type": "EMAHook",
            "ema_type": "ExpMomentumEMA",
            "momentum": 0.0001,
            "update_buffers": True,
            "priority": 49,
        },
        {"type": "PipelineSwitchHook", "switch_epoch": 280, "switch_pipeline": STEPS},
    ]
    names = [type(hook).__name__ for hook in make_runner(custom_hooks=hooks).hooks]
    order = [name for name in names if name in {hook["type"] for hook in hooks}]
    assert order == ["YOLOXModeSwitchHook", "SyncNormHook", "EMAHook", "PipelineSwitchHook"]
