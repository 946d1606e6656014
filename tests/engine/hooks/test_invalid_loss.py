"""The guard against losses that are not finite. Iterations are counted from 1 here: the first step is iteration 1."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from engine.engine_toys import ToyDataset, bad_model
from engine.hooks.guard_runs import WRAPPERS, copied, equal, finite, iterations, run
from engine.hooks.guard_workers import both
from mmengine.structures import InstanceData
from no_sync import NoSync
from torch import nn

from detkit.engine import CheckInvalidLossHook, OptimWrapper, launch
from detkit.engine.diagnosis.bundle import load_bundle
from detkit.registry import DATASETS
from detkit.structures import DetDataSample


@pytest.mark.parametrize("wrapper", list(WRAPPERS))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_at_interval_one_the_run_ends_at_the_bad_step(make_runner, wrapper, value):
    # sample 9 is in the third batch
    runner, watch, error = run(
        make_runner, hook={"interval": 1}, model=bad_model(9, value=value), wrapper=WRAPPERS[wrapper]
    )
    assert runner.iter == 2
    text = str(error)
    assert "the loss is not finite at iteration 3: loss=" in text
    assert "loss_cls=" in text
    assert "loss_bbox=" in text
    assert text.count("images/") == 4
    assert "images/9.jpg" in text
    assert finite(runner.model)
    assert equal(copied(runner.model), watch.weights[2])
    assert not equal(watch.weights[1], watch.weights[2])


def test_with_a_longer_period_the_weights_are_those_before_the_bad_step(make_runner):
    # bad in iterations 3 and 6 of 9; looked at in 5, after two more steps: Detectron2 would have NaN weights by then
    runner, watch, error = run(make_runner, hook={"interval": 5}, model=bad_model(9), train_cfg=iterations(9))
    assert runner.iter == 4
    assert "at iteration 3:" in str(error)
    assert finite(runner.model)
    assert equal(copied(runner.model), watch.weights[2])
    assert equal(watch.weights[4], watch.weights[2])  # iteration 4 was sound, but came after a bad one
    assert not list(Path(runner.work_dir).glob("*.pth"))


def test_by_default_it_looks_where_the_logger_reads(make_runner):
    # Detectron2 never raises here with its asynchronous writes
    for logging, iterations_before in ((1, 1), (2, 1), (5, 4)):
        runner, _, error = run(
            make_runner, f"every_{logging}", logging=logging, model=bad_model(4), train_cfg=iterations(9)
        )
        assert "at iteration 2:" in str(error)
        assert runner.iter == iterations_before


def test_the_end_of_an_epoch_and_a_checkpoint_are_looked_at_before(make_runner):
    runner, _, error = run(make_runner, hook={"interval": 50}, model=bad_model(4))
    assert "at iteration 2:" in str(error)
    assert runner.iter == 2  # the epoch's last iteration is not over
    saving = {"type": "CheckpointHook", "by_epoch": False, "interval": 4}
    runner = make_runner(
        "saving",
        model=bad_model(4),
        train_cfg=iterations(9),
        val_cfg=None,
        val_dataloader=None,
        val_evaluator=None,
        default_hooks={
            "logger": {"type": "LoggerHook", "interval": 50, "tensorboard": False},
            "checkpoint": saving,
        },
    )
    with pytest.raises(FloatingPointError, match="not finite at iteration"):
        runner.train()
    assert runner.iter == 3
    assert not list(Path(runner.work_dir).glob("*.pth"))


@pytest.mark.parametrize("wrapper", list(WRAPPERS))
def test_skipping_leaves_out_the_bad_steps_alone(make_runner, wrapper):
    # the second batch of each epoch is bad: iterations 2, 5, 8
    runner, watch, error = run(
        make_runner, hook={"interval": 2, "action": "skip"}, model=bad_model(4), wrapper=WRAPPERS[wrapper]
    )
    assert error is None
    assert runner.iter == 9
    changed = [i for i in range(1, 10) if not equal(watch.weights[i], watch.weights[i - 1])]
    assert changed == [1, 3, 4, 6, 7, 9]
    # the running statistics of the batch norm, too
    assert finite(runner.model)
    assert Path(runner.logger.log_file).read_text().count("The step is left out") == 3
    found = sorted(path.parent.name for path in Path(runner.work_dir).glob("invalid_loss_iter_*/bundle.pth"))
    assert found == ["invalid_loss_iter_2", "invalid_loss_iter_5", "invalid_loss_iter_8"]
    if wrapper == "float16":
        assert runner.optim_wrapper.loss_scaler.get_scale() == 128.0


@pytest.mark.parametrize("update_buffers", [False, True])
def test_an_average_does_not_keep_the_statistics_of_a_skipped_step(make_runner, update_buffers):
    # Bad in iterations 2, 5 and 8; looked at by the checkpoints, which come after the average was updated.
    options = {"val_cfg": {}, "val_evaluator": {"type": "ToyMetric"}}
    saving = {"type": "CheckpointHook", "by_epoch": False, "interval": 1}
    sampler = {"type": "DefaultSampler", "shuffle": False}
    data = {"dataset": {"type": "ToyDataset"}, "sampler": sampler, "batch_size": 4}
    runner = make_runner(
        model=bad_model(4),
        train_cfg={**iterations(9), "val_interval": 1},
        train_dataloader=data,
        default_hooks={
            "logger": {"type": "LoggerHook", "interval": 50, "tensorboard": False},
            "invalid_loss": {"type": "CheckInvalidLossHook", "action": "skip", "bundle": False},
            "checkpoint": saving,
        },
        custom_hooks=[{"type": "EMAHook", "momentum": 0.1, "update_buffers": update_buffers}],
        **options,
    )
    runner.train()
    files = sorted(Path(runner.work_dir).glob("iter_*.pth"))
    assert len(files) == 9
    for path in files:
        content = torch.load(path)
        for section in ("state_dict", "ema_state_dict"):
            spoilt = [key for key, value in content[section].items() if not torch.isfinite(value).all()]
            assert spoilt == [], (path.name, section)
    lines = map(json.loads, Path(runner.work_dir, "metrics.jsonl").read_text().splitlines())
    assert [math.isfinite(line["toy/mAP"]) for line in lines if "toy/mAP" in line] == [True] * 9


def test_a_skipped_step_leaves_momentum_and_step_counts_alone(make_runner):
    bad, *_ = run(
        make_runner, "bad", hook={"interval": 1, "action": "skip"}, model=bad_model(4), train_cfg=iterations(3)
    )
    states = list(bad.optim_wrapper.optimizer.state.values())
    assert all(bool(torch.isfinite(value).all()) for state in states for value in state.values())


def test_too_many_skipped_steps_in_a_row_are_an_error(make_runner):
    hook = {"interval": 2, "action": "skip", "max_skipped": 3}
    everything = tuple(range(12))
    runner, watch, error = run(make_runner, hook=hook, model=bad_model(*everything))
    assert "at iteration 4: loss=nan" in str(error)
    assert "step 4 in a row" in str(error)
    assert equal(copied(runner.model), watch.weights[0])
    # three of a row, then sound ones: counted anew
    runner, _, error = run(make_runner, "mixed", hook=hook, model=bad_model(4, 9))
    assert error is None
    assert runner.iter == 9


@DATASETS.register_module()
class Spoilt(ToyDataset):
    """Of every two images one has a box that is not finite, and one an empty box; image 4 has no path."""

    def __init__(self, facts: dict) -> None:
        super().__init__()
        self.facts = facts

    def __getitem__(self, index: int) -> dict:
        sample = super().__getitem__(index)
        boxes = [[float("nan"), 0, 4, 4]] if index % 2 == 0 else [[0, 0, 4, 4], [1, 1, 5, 1]]
        labels = sample["data_samples"].gt_instances.labels.expand(len(boxes))
        sample["data_samples"] = DetDataSample(metainfo=self.facts if index == 4 else {"img_path": f"{index}.jpg"})
        sample["data_samples"].gt_instances = InstanceData(labels=labels, bboxes=torch.tensor(boxes))
        return sample


@pytest.mark.parametrize("facts", [{"img_id": 7}, {}])
def test_an_image_without_a_path_is_named_and_so_is_an_impossible_box(make_runner, facts):
    in_order = {"type": "DefaultSampler", "shuffle": False}
    data = {"dataset": {"type": "Spoilt", "facts": facts}, "sampler": in_order, "batch_size": 4}
    _, _, error = run(make_runner, hook={"interval": 1}, model=bad_model(4), train_dataloader=data)
    name = "the image with img_id 7" if facts else "image 0 of the batch"
    assert f"images of this batch: {name}, 5.jpg, 6.jpg, 7.jpg. " in str(error)
    assert str(error).endswith(
        f"box 0 of {name} is not finite: [nan, 0.0, 4.0, 4.0]; box 1 of 5.jpg is empty: [1, 1, 5, 1]; "
        "box 0 of 6.jpg is not finite: [nan, 0.0, 4.0, 4.0]; 1 more"
    )


def test_stopping_ends_the_run_without_an_error(make_runner):
    runner, watch, error = run(make_runner, hook={"interval": 1, "action": "stop"}, model=bad_model(4))
    assert error is None
    assert (runner.iter, runner.epoch) == (2, 0)
    assert equal(copied(runner.model), watch.weights[1])
    assert Path(runner.work_dir, "invalid_loss_iter_2", "bundle.pth").is_file()


def test_the_bundle_holds_the_step(make_runner):
    runner, watch, error = run(make_runner, hook={"interval": 1}, model=bad_model(9))
    path = Path(runner.work_dir, "invalid_loss_iter_3", "bundle.pth")
    assert f"python tools/replay.py {path}" in str(error)
    bundle = load_bundle(path)
    assert bundle["iteration"] == 3
    assert bundle["weights_after"] == 2
    assert "BadToy" in bundle["cfg"]
    assert set(bundle["losses"]) == {"loss", "loss_cls", "loss_bbox"}
    assert bundle["precision"]["autocast"] is None
    batch = bundle["batch"]
    assert [sample.img_path for sample in batch["data_samples"]] == watch.batches[3]
    assert [sample.gt_instances.labels.tolist() for sample in batch["data_samples"]] == [[2], [0], [1], [2]]
    # the batch norm's statistics are those before the step, not the spoilt ones of its forward pass
    state = bundle["weights"]
    assert all(bool(torch.isfinite(value).all()) for value in state.values())
    assert equal([state[name] for name, _ in runner.model.named_parameters()], watch.weights[2])
    assert not Path(runner.work_dir, "invalid_loss_iter_4").exists()


def test_the_bundle_has_the_running_statistics_from_before_the_step(make_runner):
    model = {"type": "ToyModel", "bbox_head": {"type": "ToyHead"}, "nan_at": 3}  # its batch norm is not spoilt
    _, before, _ = run(make_runner, "two", model=model, train_cfg=iterations(2))
    runner, _, error = run(make_runner, hook={"interval": 1}, model=model)
    assert "at iteration 3" in str(error)
    state = load_bundle(Path(runner.work_dir, "invalid_loss_iter_3", "bundle.pth"))["weights"]
    assert torch.equal(state["body.1.running_mean"], before.running_mean)
    assert not torch.equal(runner.model.body[1].running_mean, before.running_mean)


def test_without_a_bundle_nothing_is_written(make_runner):
    runner, _, error = run(make_runner, hook={"interval": 1, "bundle": False}, model=bad_model(9))
    assert "replay" not in str(error)
    assert not list(Path(runner.work_dir).glob("invalid_loss*"))


def test_a_batch_that_cannot_be_loaded_again_does_not_hide_the_loss(make_runner, monkeypatch):
    def fail(self, iteration):
        raise OSError("the disk is gone")

    monkeypatch.setattr("detkit.engine.run.loops.EpochBasedTrainLoop.load_again", fail)
    runner, _, error = run(make_runner, hook={"interval": 1}, model=bad_model(9))
    assert "at iteration 3" in str(error)
    assert "not known (OSError: the disk is gone)" in str(error)
    assert load_bundle(Path(runner.work_dir, "invalid_loss_iter_3", "bundle.pth"))["batch"] is None


def test_an_optimizer_wrapper_without_a_guard_is_still_found_out(make_runner):
    wrapper = {"type": "mmengine.OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.1}}
    _, _, error = run(make_runner, hook={"interval": 1}, model=bad_model(9), wrapper=wrapper)
    assert "at iteration 3" in str(error)


def test_a_hook_of_the_config_takes_the_place_of_the_default_one(make_runner):
    own = {"type": "CheckInvalidLossHook", "interval": 1, "action": "skip"}
    runner, _, error = run(make_runner, model=bad_model(4), custom_hooks=[own])
    assert error is None
    assert runner.iter == 9
    assert runner.optim_wrapper.guard is None  # given back at the end


def test_the_guard_reads_nothing_between_two_looks(make_runner):
    hook = CheckInvalidLossHook(interval=50)
    wrapper = OptimWrapper(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1))
    (weight,) = wrapper.optimizer.param_groups[0]["params"]
    wrapper.guard = hook._guard
    with NoSync():
        for _ in range(3):
            wrapper.update_params(weight.square().sum())


def test_low_precision_losses_are_looked_at():
    hook = CheckInvalidLossHook()
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert not hook._guard(torch.tensor(1.0, dtype=dtype))
    hook = CheckInvalidLossHook()
    assert hook._guard(torch.tensor(float("-inf"), dtype=torch.bfloat16))
    assert hook._guard(torch.tensor(1.0))  # a step after a bad one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval must be at least 1 or None, got 0"),
        ({"action": "warn"}, "action is one of raise, skip, stop, got 'warn'"),
        ({"max_skipped": 0}, "max_skipped must be at least 1, got 0"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        CheckInvalidLossHook(**options)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """What two processes saw of a loss that is not finite on the second one, and of gradients they accumulate."""
    return launch(both, 2, args=(str(tmp_path_factory.mktemp("two")),), device_type="cpu", start_method="forkserver")


def test_all_processes_raise_the_same_error_at_the_same_step(of_two):
    one, two = (seen["bad"] for seen in of_two)
    assert "not finite at iteration 3: on rank 1: loss=nan" in one["error"]
    assert "rank 0" not in one["error"]
    assert "images/9.jpg, images/11.jpg" in one["error"]
    assert "replay.py" in one["error"]
    assert one["error"] == two["error"]
    assert one["iter"] == two["iter"] == 2
    assert one["finite"]
    assert two["finite"]
    assert one["weights"] == two["weights"]
    assert one["bundles"] == ["bundle_rank1.pth"]


def test_processes_share_the_gradients_of_a_begun_window(of_two):
    # inputs 1 and 3, halved by the window; then 4 on both, halved
    one, two = (seen["window"] for seen in of_two)
    assert (one["own"], two["own"]) == ([0.5, 0.5, None], [1.5, None, None])
    assert one["shared"] == two["shared"] == [1.0, 0.25, None]
    # mean of what was accumulated and of the second iteration: 1 + 2, and 0.25 + (2 + 0) / 2
    assert one["weights"] == two["weights"] == [-3.0, -1.25, 0.0]
