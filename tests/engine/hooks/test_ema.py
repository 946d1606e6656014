"""The average of the weights in a run: validation, checkpoints, resuming, errors."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.engine_toys import ToyMetric
from no_sync import NoSync

from detkit.engine import EMAHook, Hook, SWAHook, load_checkpoint_file
from detkit.registry import HOOKS, METRICS

NO_VALIDATION: dict[str, Any] = {"val_cfg": None, "val_dataloader": None, "val_evaluator": None}
EMA = {"type": "EMAHook", "momentum": 0.3}


@METRICS.register_module()
class FailingMetric(ToyMetric):
    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        raise RuntimeError("no metric today")


@HOOKS.register_module()
class WeightsHook(Hook):
    """Notes the head's bias at stages, after all others."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.seen: dict[str, list[torch.Tensor]] = {"train": [], "val": [], "error": []}

    def on_exception(self, runner: Any, error: BaseException) -> None:
        self.seen["error"].append(runner.model.bbox_head.fc.bias.detach().clone())

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.seen["train"].append(runner.model.bbox_head.fc.bias.detach().clone())

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.seen["val"].append(runner.model.bbox_head.fc.bias.detach().clone())


def hook_of(runner: Any, kind: type = WeightsHook) -> Any:
    return next(hook for hook in runner.hooks if isinstance(hook, kind))


def file_of(runner: Any, name: str) -> dict[str, Any]:
    return load_checkpoint_file(Path(runner.work_dir, name))


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def mean_of(weights: list[torch.Tensor], momentum: float) -> torch.Tensor:
    value = weights[0]
    for one in weights[1:]:
        value = value.lerp(one, momentum)
    return value


def test_validation_and_files_have_the_average_and_training_its_own_weights(make_runner):
    plain = make_runner("plain", epochs=2, custom_hooks=[{"type": "WeightsHook"}])
    plain.train()
    runner = make_runner(
        epochs=2,
        custom_hooks=[EMA, {"type": "WeightsHook"}],
        default_hooks={"checkpoint": {"type": "CheckpointHook", "save_best": "toy/mAP", "interval": 1}},
    )
    runner.train()
    raw = hook_of(runner).seen["train"]
    assert all(map(torch.equal, raw, hook_of(plain).seen["train"]))
    averages = [mean_of(raw[:3], 0.3), mean_of(raw, 0.3)]
    validated = hook_of(runner).seen["val"]
    for index, value in enumerate(validated):
        torch.testing.assert_close(value, averages[index * 2 // len(validated)])
    last = file_of(runner, "epoch_2.pth")
    torch.testing.assert_close(last["state_dict"]["bbox_head.fc.bias"], averages[1])
    assert torch.equal(last["ema_state_dict"]["module.bbox_head.fc.bias"], raw[-1])
    assert last["ema_state_dict"]["steps"].item() == 6
    assert {f"module.{key}" for key in last["state_dict"]} | {"steps"} == last["ema_state_dict"].keys()
    # The statistics of batch norm are those of the training in both.
    assert torch.equal(last["ema_state_dict"]["module.body.1.running_var"], last["state_dict"]["body.1.running_var"])
    # The best checkpoint holds what was validated.
    best = load_checkpoint_file(next(Path(runner.work_dir).glob("best_*.pth")))
    number = best["meta"]["epoch"] - 1
    torch.testing.assert_close(best["state_dict"]["bbox_head.fc.bias"], averages[number])
    # Training goes on from the raw weights, in place.
    assert torch.equal(runner.model.bbox_head.fc.bias, raw[-1])
    runner.test()
    assert torch.equal(runner.model.bbox_head.fc.bias, raw[-1])


@pytest.mark.parametrize(
    "hook",
    [
        {**EMA, "update_buffers": True},
        {"type": "EMAHook", "ema_type": "ExpMomentumEMA", "gamma": 3},
        {"type": "EMAHook", "begin_iter": 5, "interval": 2},
        {"type": "EMAHook", "begin_epoch": 2, "ema_type": {"type": "LinearWarmupEMA", "warmup": 2}},
        {"type": "SWAHook", "begin_epoch": 2, "lr": 0.05, "bn_iters": 2},
    ],
    ids=["buffers", "exponential", "begin_iter", "begin_epoch", "swa"],
)
def test_a_resumed_run_has_the_same_average_to_the_bit(make_runner, hook):
    whole = make_runner("whole", custom_hooks=[hook], **NO_VALIDATION)
    whole.train()
    make_runner("cut", custom_hooks=[hook, {"type": "StopAfter", "epoch": 2}], **NO_VALIDATION).train()
    again = make_runner("cut", custom_hooks=[hook], resume=True, **NO_VALIDATION)
    again.train()
    one, other = file_of(whole, "epoch_3.pth"), file_of(again, "epoch_3.pth")
    assert_equal(one["state_dict"], other["state_dict"])
    assert_equal(one["ema_state_dict"], other["ema_state_dict"])
    own = one["ema_state_dict"]
    assert not all(torch.equal(value, own[f"module.{key}"]) for key, value in one["state_dict"].items())


@HOOKS.register_module()
class StopAfter(Hook):
    """Ends the training after an epoch, with its checkpoint written."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def after_train_epoch(self, runner: Any) -> None:
        if runner.epoch + 1 == self.epoch:
            runner.train_loop.stop_training = True


def test_before_it_begins_the_average_is_the_weights(make_runner):
    runner = make_runner(epochs=2, custom_hooks=[{**EMA, "begin_epoch": 2}, {"type": "WeightsHook"}])
    runner.train()
    raw = hook_of(runner).seen["train"]
    first, last = file_of(runner, "epoch_1.pth"), file_of(runner, "epoch_2.pth")
    assert torch.equal(first["state_dict"]["bbox_head.fc.bias"], raw[2])
    assert torch.equal(first["ema_state_dict"]["module.bbox_head.fc.bias"], raw[2])
    assert first["ema_state_dict"]["steps"].item() == 0
    torch.testing.assert_close(last["state_dict"]["bbox_head.fc.bias"], mean_of(raw[3:], 0.3))
    assert torch.equal(hook_of(runner).seen["val"][0], raw[2])


def test_a_validation_that_fails_leaves_the_weights_of_the_training(make_runner):
    runner = make_runner(epochs=2, custom_hooks=[EMA, {"type": "WeightsHook"}], val_evaluator={"type": "FailingMetric"})
    with pytest.raises(RuntimeError, match="no metric today"):
        runner.train()
    seen = hook_of(runner).seen
    assert not torch.equal(seen["val"][-1], seen["train"][-1])
    assert torch.equal(runner.model.bbox_head.fc.bias, seen["train"][-1])
    assert torch.equal(seen["error"][0], seen["train"][-1])


def test_a_checkpoint_written_during_validation_is_whole(make_runner):
    @HOOKS.register_module(force=True)
    class SaveInVal(Hook):
        def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            runner.save_checkpoint(runner.work_dir, f"during_{runner.epoch}.pth")

    runner = make_runner(epochs=1, custom_hooks=[EMA, {"type": "SaveInVal"}])
    runner.train()
    during, last = file_of(runner, "during_1.pth"), file_of(runner, "epoch_1.pth")
    assert_equal(during["state_dict"], last["state_dict"])
    assert_equal(during["ema_state_dict"], last["ema_state_dict"])


def test_resuming_without_the_hook_is_refused_and_with_a_new_one_warned_of(make_runner):
    make_runner("ema", epochs=1, custom_hooks=[EMA]).train()
    with pytest.raises(ValueError, match=r"epoch_1\.pth: its weights are an average .* add the hook"):
        make_runner("ema", epochs=2, resume=True).train()
    make_runner("plain", epochs=1).train()
    runner = make_runner("plain", epochs=2, resume=True, custom_hooks=[EMA, {"type": "WeightsHook"}])
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    runner.logger.addHandler(handler)
    runner.train()
    assert any("EMAHook: the checkpoint has no average" in message for message in messages)
    expected = mean_of(hook_of(runner).seen["train"], 0.3)
    torch.testing.assert_close(file_of(runner, "epoch_2.pth")["state_dict"]["bbox_head.fc.bias"], expected)


def test_a_new_run_from_averaged_weights_begins_its_own_average(make_runner):
    first = make_runner("first", epochs=1, custom_hooks=[EMA])
    first.train()
    path = Path(first.work_dir, "epoch_1.pth")
    runner = make_runner("second", epochs=1, load_from=str(path), custom_hooks=[EMA])
    runner.train()
    assert file_of(runner, "epoch_1.pth")["ema_state_dict"]["steps"].item() == 3
    tested = make_runner("third", load_from=str(path), custom_hooks=[EMA])
    tested.test()
    assert_equal(tested.model.state_dict(), load_checkpoint_file(path)["state_dict"])


def test_an_iteration_with_the_hook_does_not_wait(make_runner):
    runner = make_runner(epochs=1, custom_hooks=[EMA])
    runner.train()
    hook = hook_of(runner, EMAHook)
    with NoSync():
        hook.after_train_iter(runner, 0)
    assert hook.averaged.steps == 4


def test_layout_of_the_weights_does_not_matter(make_runner):
    files = []
    for name, hooks in (("plain", [EMA]), ("last", [EMA, {"type": "ChannelsLastHook"}])):
        runner = make_runner(name, epochs=1, custom_hooks=hooks, model=CONV)
        runner.train()
        files.append(file_of(runner, "epoch_1.pth"))
    for section in ("state_dict", "ema_state_dict"):
        for key, value in files[0][section].items():
            torch.testing.assert_close(files[1][section][key], value)


CONV = {"type": "ToyConvModel", "bbox_head": {"type": "ToyHead"}}


def test_swa_is_the_mean_over_epochs_at_a_constant_rate(make_runner):
    swa = {"type": "SWAHook", "begin_epoch": 2, "lr": 0.05, "bn_iters": 3}
    rules = {"custom_keys": {"bbox_head": {"lr_mult": 0.1}}}
    optimizer = {"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}, "paramwise_cfg": rules}
    runner = make_runner(
        epochs=4, custom_hooks=[swa, {"type": "WeightsHook"}, {"type": "RatesHook"}], optim_wrapper=optimizer
    )
    runner.train()
    raw = hook_of(runner).seen["train"]
    last = file_of(runner, "epoch_4.pth")
    expected = torch.stack([raw[5], raw[8], raw[11]]).mean(0)
    torch.testing.assert_close(last["state_dict"]["bbox_head.fc.bias"], expected)
    rates = hook_of(runner, RatesHook).rates
    assert rates[3:] == [pytest.approx([0.05, 0.005])] * 9
    assert rates[2] != pytest.approx([0.05, 0.005])
    # The mean has statistics of its own in the end, and the training keeps its own.
    own, mean = last["ema_state_dict"], last["state_dict"]
    assert not torch.equal(own["module.body.1.running_mean"], mean["body.1.running_mean"])
    assert torch.equal(runner.model.body[1].running_mean, own["module.body.1.running_mean"])
    plain = make_runner("plain", epochs=4, custom_hooks=[{**swa, "bn_iters": 0}], optim_wrapper=optimizer)
    plain.train()
    state = file_of(plain, "epoch_4.pth")
    assert torch.equal(state["state_dict"]["body.1.running_mean"], own["module.body.1.running_mean"])
    assert_equal(state["ema_state_dict"], own)


@HOOKS.register_module()
class RatesHook(Hook):
    """Notes the learning rates that an iteration is trained with."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.rates.append([group["lr"] for group in runner.optim_wrapper.optimizer.param_groups])


def test_swa_by_iteration(make_runner):
    runner = make_runner(
        train_cfg={"by_epoch": False, "max_iters": 8, "val_interval": 100},
        custom_hooks=[{"type": "SWAHook", "begin_iter": 3, "interval": 2, "bn_iters": 0}, {"type": "WeightsHook"}],
        param_scheduler=None,
        default_hooks={"checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 8}},
    )
    runner.train()
    raw = hook_of(runner).seen["train"]
    expected = torch.stack([raw[2], raw[4], raw[6]]).mean(0)
    torch.testing.assert_close(file_of(runner, "iter_8.pth")["state_dict"]["bbox_head.fc.bias"], expected)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (EMAHook, {"begin_iter": 1, "begin_epoch": 1}, "EMAHook: one of begin_iter and begin_epoch"),
        (EMAHook, {"begin_iter": -1}, "begin_iter=-1"),
        (SWAHook, {}, "SWAHook: set begin_epoch or begin_iter"),
        (SWAHook, {"begin_epoch": 1, "lr": 0.0}, "lr=0.0"),
    ],
)
def test_arguments_are_checked(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_arguments_that_the_average_lacks_and_a_late_begin_are_refused(make_runner):
    with pytest.raises(TypeError, match=r"custom_hooks\.0.*gamma"):
        make_runner(epochs=1, custom_hooks=[{**EMA, "gamma": 3}]).train()
    with pytest.raises(ValueError, match="would begin at 5, and the run ends at 1"):
        make_runner(epochs=1, custom_hooks=[{**EMA, "begin_epoch": 5}]).train()


def test_a_second_average_is_refused(make_runner):
    # Both would exchange weights at a validation, and training would go on from an average.
    runner = make_runner(custom_hooks=[EMA, {"type": "SWAHook", "begin_epoch": 2}])
    with pytest.raises(ValueError, match="a run has one average of its weights, got EMAHook and SWAHook"):
        runner.train()
    assert runner.iter == 0
