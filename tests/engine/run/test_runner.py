"""Whole runs of a toy: lifecycle, reproducibility, resuming, what is refused before the first step."""

from __future__ import annotations

import json
import os
import random
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.engine_toys import CLASSES, toy_config
from mmengine.config import Config
from mmengine.hooks import Hook

from detkit.checkpoints import save_checkpoint_file
from detkit.config import loads
from detkit.engine import Runner, load_checkpoint_file
from detkit.engine.hooks import CheckpointHook
from detkit.engine.hooks import Hook as DetkitHook


def weights(folder: Path, name: str = "epoch_4.pth") -> dict[str, torch.Tensor]:
    return load_checkpoint_file(folder / name)["state_dict"]


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


class Kill(Hook):
    """Ends the run before the validation that follows ``epoch``, when its checkpoint has just been written."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def before_val(self, runner):
        if runner.epoch == self.epoch:
            raise KeyboardInterrupt


class Watch(Hook):
    """Hands every training batch to a function."""

    def __init__(self, look) -> None:
        self.look = look

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.look(data_batch)


def failing_loader() -> dict[str, object]:
    return toy_config("")["train_dataloader"] | {"dataset": {"type": "ToyDataset", "fail_at": 5}}


def stop_after(runner: Runner, epoch: int) -> None:
    runner.register_hook(Kill(epoch))
    with pytest.raises(KeyboardInterrupt):
        runner.train()


def test_a_run_leaves_checkpoints_metrics_config_and_log(make_runner):
    runner = make_runner(epochs=2)
    runner.train()
    folder = Path(runner.work_dir)
    assert {path.name for path in folder.iterdir()} == {
        *("config.py", "epoch_1.pth", "epoch_2.pth", "last_checkpoint", "metrics.jsonl", runner.timestamp),
    }
    assert (folder / "last_checkpoint").read_text() == "epoch_2.pth"
    cfg = loads((folder / "config.py").read_text())
    assert cfg.optim_wrapper.optimizer.lr == 0.1
    assert cfg.randomness.seed == 0
    log = (folder / runner.timestamp / f"{runner.timestamp}.log").read_text()
    assert "epoch 2/2  iter 2/3  loss" in log
    assert "epoch 2/2  toy/mAP" in log


def test_a_checkpoint_carries_config_label_map_and_position(make_runner):
    runner = make_runner(epochs=2)
    runner.train()
    checkpoint = torch.load(Path(runner.work_dir, "epoch_2.pth"), weights_only=True)
    meta = checkpoint["meta"]
    assert (meta["epoch"], meta["iter"], meta["seed"]) == (2, 6, 0)
    assert meta["label_map"] == {"classes": list(CLASSES), "category_ids": [1, 3, 5]}
    assert loads(meta["cfg"]).model.bbox_head.type == "ToyHead"
    assert {"state_dict", "optimizer", "param_schedulers", "message_hub", "rng"} < checkpoint.keys()


def test_same_seed_same_weights(make_runner):
    runs = [make_runner(name, epochs=2, randomness={"seed": seed}) for name, seed in (("a", 3), ("b", 3), ("c", 4))]
    states = []
    for index, runner in enumerate(runs):
        torch.manual_seed(index)  # what was drawn before the run does not matter
        runner.train()
        states.append(weights(Path(runner.work_dir), "epoch_2.pth"))
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


@pytest.mark.parametrize("sampler", [{"type": "DefaultSampler", "shuffle": True}, {"type": "GlobalShuffle"}])
def test_worker_count_does_not_change_the_weights(make_runner, sampler):
    states = []
    for workers in (0, 2):
        train, val = (toy_config("")[f"{kind}_dataloader"] | {"num_workers": workers} for kind in ("train", "val"))
        train["sampler"] = sampler
        runner = make_runner(f"workers_{workers}", epochs=2, train_dataloader=train, val_dataloader=val)
        runner.train()
        states.append(weights(Path(runner.work_dir), "epoch_2.pth"))
    assert same(*states)


def test_no_epoch_repeats_the_augmentations_of_another(make_runner):
    runner = make_runner(epochs=3)
    seen = []
    runner.register_hook(Watch(lambda batch: seen.extend(batch["inputs"])))
    runner.train()
    draws = torch.stack(seen)
    assert len(draws) == 36
    assert len(draws[:, 0].unique()) == 36
    orders = draws[:, 3].reshape(3, 12)
    assert len(orders.unique(dim=0)) == 3
    assert all(order.sort().values.tolist() == list(range(12)) for order in orders)


EMA = [{"type": "EMAHook", "momentum": 0.1, "update_buffers": True}]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"custom_hooks": EMA},
        {
            "optim_wrapper": {
                "type": "AmpOptimWrapper",
                "optimizer": {"type": "AdamW", "lr": 0.01},
                "clip_grad": {"max_norm": 1.0},
                "paramwise_cfg": {"norm_decay_mult": 0.0},
            }
        },
    ],
    ids=["plain", "ema", "amp"],
)
def test_a_resumed_run_ends_bit_for_bit_where_the_uninterrupted_one_does(make_runner, changes):
    hooks = toy_config("")["default_hooks"] | {"checkpoint": {"type": "CheckpointHook", "save_best": "toy/mAP"}}
    hooks["checkpoint"]["interval"] = 1
    whole = make_runner("whole", epochs=4, default_hooks=hooks, **changes)
    whole.train()
    stop_after(make_runner("cut", epochs=4, default_hooks=hooks, **changes), epoch=2)
    resumed = make_runner("cut", epochs=4, default_hooks=hooks, resume=True, **changes)
    resumed.train()
    assert resumed.iter == 12
    one, two = (load_checkpoint_file(Path(runner.work_dir, "epoch_4.pth")) for runner in (whole, resumed))
    assert same(one["state_dict"], two["state_dict"])
    assert one["param_schedulers"] == two["param_schedulers"]
    assert one["hooks"] == two["hooks"]
    torch.testing.assert_close(one["optimizer"], two["optimizer"], rtol=0, atol=0)
    if "custom_hooks" in changes:
        assert same(one["ema_state_dict"], two["ema_state_dict"])


def test_a_hook_that_draws_numbers_draws_them_again(make_runner):
    class Draws(Hook):
        def __init__(self) -> None:
            self.drawn = {}

        def before_val(self, runner):
            self.drawn[runner.epoch] = (torch.rand(()).item(), np.random.rand(), random.random())

    draws = []
    for name, epochs, resume in (("whole", 3, False), ("cut", 2, False), ("cut", 3, True)):
        runner = make_runner(name, epochs=epochs, resume=resume)
        draws.append(Draws())
        runner.register_hook(draws[-1])
        runner.train()
    whole, first, second = (hook.drawn for hook in draws)
    assert first == {epoch: whole[epoch] for epoch in (1, 2)}
    assert second == {epoch: whole[epoch] for epoch in (2, 3)}


def test_the_validation_that_was_cut_off_is_made_up_for(make_runner):
    def metrics(runner) -> list[tuple[int, float]]:
        lines = [json.loads(line) for line in Path(runner.work_dir, "metrics.jsonl").read_text().splitlines()]
        return [(line["step"], line.get("toy/mAP", line.get("loss"))) for line in lines]

    whole = make_runner("whole", epochs=3)
    whole.train()
    stop_after(make_runner("cut", epochs=3), epoch=2)
    resumed = make_runner("cut", epochs=3, resume=True)
    resumed.train()
    assert len(metrics(whole)) == 7
    assert metrics(resumed) == metrics(whole)


def test_resume_falls_back_from_a_truncated_checkpoint(make_runner, capfd):
    make_runner(epochs=2).train()
    runner = make_runner(epochs=3, resume=True)
    newest = Path(runner.work_dir, "epoch_2.pth")
    os.truncate(newest, newest.stat().st_size // 2)
    runner.train()
    printed = capfd.readouterr().err
    assert "epoch_2.pth" in printed
    assert "truncated" in printed
    assert "resumed from" in printed
    assert "epoch_1.pth: epoch 1, iteration 3" in printed
    assert runner.iter == 9


def test_resume_without_a_checkpoint_says_so_and_starts(make_runner, capfd):
    make_runner(epochs=1, resume=True).train()
    assert "no checkpoint to resume from" in capfd.readouterr().err


def test_resume_works_after_the_folder_moved(make_runner, tmp_path):
    make_runner("old", epochs=2).train()
    (tmp_path / "old").rename(tmp_path / "new")
    runner = make_runner("new", epochs=3, resume=True)
    runner.train()
    assert runner.iter == 9


def test_resume_from_a_named_file(make_runner, tmp_path):
    make_runner("a", epochs=2).train()
    runner = make_runner("b", epochs=2, resume=str(tmp_path / "a" / "epoch_1.pth"))
    runner.train()
    assert same(weights(tmp_path / "a", "epoch_2.pth"), weights(tmp_path / "b", "epoch_2.pth"))
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        make_runner("c", resume=str(tmp_path / "none.pth")).train()


def test_resume_adopts_the_seed_it_was_started_with(make_runner, tmp_path, capfd):
    make_runner("whole", epochs=2, param_scheduler=None, randomness={"seed": 5}).train()
    make_runner("cut", epochs=1, param_scheduler=None, randomness={"seed": 5}).train()
    make_runner("cut", epochs=2, param_scheduler=None, resume=True).train()
    assert same(weights(tmp_path / "whole", "epoch_2.pth"), weights(tmp_path / "cut", "epoch_2.pth"))
    assert "the run was started with seed 5, and goes on with it, not with 0" in capfd.readouterr().err


def test_resume_for_longer_takes_the_new_schedule_and_says_so(make_runner, capfd):
    make_runner(epochs=1).train()
    runner = make_runner(epochs=2, resume=True)
    runner.train()
    assert "param_scheduler.1 (CosineAnnealingLR): end was 1 before, and is 2 now" in capfd.readouterr().err
    assert runner.param_schedulers[1].end == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"param_scheduler": {"type": "StepLR", "step_size": 1}}, "has the state of 2 param_scheduler entries"),
        (
            {"param_scheduler": [{"type": "StepLR", "step_size": 1}, {"type": "ConstantLR"}]},
            r"param_scheduler\.0 was a LinearLR and is now a StepLR",
        ),
        (
            {"train_dataloader": toy_config("")["train_dataloader"] | {"batch_size": 6}},
            "a pass over the data had 3 iterations then, and has 2 now",
        ),
        ({"optim_wrapper": {"optimizer": {"type": "SGD", "lr": 1.0}, "paramwise_cfg": {"bias_lr_mult": 2.0}}}, "optim"),
    ],
)
def test_resume_refuses_another_run(make_runner, changes, message):
    make_runner(epochs=2).train()
    with pytest.raises(ValueError, match=rf"epoch_2\.pth: .*{message}"):
        make_runner(epochs=3, resume=True, **changes).train()


def test_resume_refuses_other_labels_and_mere_weights(make_runner, tmp_path):
    make_runner("a", epochs=1).train()
    data = toy_config("")["train_dataloader"]
    data = data | {"dataset": {"type": "ToyDataset", "classes": ("star", "disc", "cross")}}
    with pytest.raises(ValueError, match="label 0 is 'disc' in one and 'star' in the other"):
        make_runner("a", resume=True, train_dataloader=data, val_dataloader=data).train()
    save_checkpoint_file({"state_dict": {"w": torch.ones(1)}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: a run cannot be resumed from this file, as it lacks meta"):
        make_runner("b", resume=str(tmp_path / "w.pth")).train()


def test_load_from_takes_weights_and_reports_what_is_missing(make_runner, tmp_path, capfd):
    make_runner("a", epochs=1).train()
    state = weights(tmp_path / "a", "epoch_1.pth")
    state.pop("bbox_head.fc.bias")
    save_checkpoint_file({"state_dict": state}, tmp_path / "part.pth")
    make_runner("b", epochs=1, load_from=str(tmp_path / "part.pth")).train()
    assert "1 missing (bbox_head.fc.bias)" in capfd.readouterr().err
    # an evaluation by itself takes all or nothing
    with pytest.raises(ValueError, match=r"weights and model do not agree: .*bbox_head\.fc\.bias"):
        make_runner("c", load_from=str(tmp_path / "part.pth")).test()


def test_the_log_file_has_every_name_of_what_was_not_loaded(make_runner, tmp_path, capfd):
    save_checkpoint_file({"state_dict": {"body.0.weight": torch.ones(8, 4)}}, tmp_path / "part.pth")
    runner = make_runner("part", epochs=1, load_from=str(tmp_path / "part.pth"))
    missing = [name for name in runner.model.state_dict() if name != "body.0.weight" and "num_batches" not in name]
    runner.train()
    said = " ".join(capfd.readouterr().err.split())
    assert f"1 tensors loaded; {len(missing)} missing ({', '.join(missing[:5])} and {len(missing) - 5} more)" in said
    logs = "".join(path.read_text() for path in Path(runner.work_dir).rglob("*.log"))
    assert f"1 tensors loaded; {len(missing)} missing ({', '.join(missing)})" in logs


def test_test_evaluates_a_checkpoint_and_holds_its_labels_against_the_data(make_runner, tmp_path):
    make_runner("a", epochs=1).train()
    path = str(tmp_path / "a" / "epoch_1.pth")
    assert make_runner("b", load_from=path).test() == make_runner("b", load_from=path).val()
    data = toy_config("")["test_dataloader"]
    data = data | {"dataset": {"type": "ToyDataset", "classes": ("disc", "cross", "star")}}
    with pytest.raises(ValueError, match=r"epoch_1\.pth has 3 classes .* label 1 is 'star' in one and 'cross'"):
        make_runner("c", load_from=path, test_dataloader=data).test()


@pytest.mark.parametrize("seed", [-1, 1 << 32, "7"])
def test_a_seed_that_numpy_would_not_take_is_refused_by_its_name(make_runner, seed):
    with pytest.raises(ValueError, match=rf"randomness\.seed: an integer from 0 to .* got {seed!r}"):
        make_runner(randomness={"seed": seed})


def test_a_head_of_the_wrong_size_is_refused_before_the_first_step(make_runner):
    model = {"type": "ToyModel", "bbox_head": {"type": "ToyHead", "num_classes": 80}}
    message = (
        r"model\.bbox_head\.num_classes=80, but train_dataloader\.dataset has 3 classes \(disc, star, cross\); "
        r"set model\.bbox_head\.num_classes=3"
    )
    with pytest.raises(ValueError, match=message):
        make_runner(model=model).train()


def test_train_and_val_must_name_the_same_classes_in_the_same_order(make_runner):
    data = toy_config("")["val_dataloader"]
    data = data | {"dataset": {"type": "ToyDataset", "classes": ("disc", "cross", "star")}}
    with pytest.raises(ValueError, match=r"label 1 is 'star' in one and 'cross' in the other"):
        make_runner(val_dataloader=data).train()


def test_a_metric_of_another_file_is_refused(make_runner, monkeypatch):
    from engine.engine_toys import ToyDataset

    original = ToyDataset.__init__

    def with_file(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.metainfo["ann_file"] = "/data/val.json"

    monkeypatch.setattr(ToyDataset, "__init__", with_file)
    make_runner("a", epochs=1, val_evaluator={"type": "ToyMetric", "ann_file": "/data/../data/val.json"}).train()
    with pytest.raises(ValueError, match=r"val_evaluator\.ann_file=/data/train\.json, but its dataset reads /data/val"):
        make_runner("b", val_evaluator={"type": "ToyMetric", "ann_file": "/data/train.json"}).train()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_images(make_runner):
    model = {"type": "ToyModel", "bbox_head": {"type": "ToyHead"}, "nan_at": 5}
    runner = make_runner(model=model)
    with pytest.raises(FloatingPointError, match=r"at iteration 5: loss=nan, loss_cls=nan, loss_bbox=0\.\d+") as caught:
        runner.train()
    assert str(caught.value).count("images/") == 4
    # the checkpoint from before is there, none with the ruined weights
    assert [path.name for path in Path(runner.work_dir).glob("*.pth")] == ["epoch_1.pth"]


def test_a_loss_that_is_not_finite_in_an_epochs_last_iterations_is_found_before_saving(make_runner):
    model = {"type": "ToyModel", "bbox_head": {"type": "ToyHead"}, "nan_at": 3}
    runner = make_runner(model=model)
    with pytest.raises(FloatingPointError, match="at iteration 3"):
        runner.train()
    assert not list(Path(runner.work_dir).glob("*.pth"))


def test_an_error_in_the_data_names_the_file(make_runner):
    data = toy_config("")["train_dataloader"] | {"dataset": {"type": "ToyDataset", "fail_at": 4}}
    with pytest.raises(ValueError, match=r"images/4\.jpg: the file is truncated"):
        make_runner(train_dataloader=data).train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim_wrapper": {"optimizer": {"type": "SGD", "lrr": 0.1}}}, r"optim_wrapper\.optimizer\.lrr: SGD"),
        ({"optim_wrapper": {"optimizer": {"type": "SGDD", "lr": 0.1}}}, r"optim_wrapper\.optimizer\.type: 'SGDD'"),
        ({"train_cfg": {"by_epoch": True, "max_epochs": 1, "val_intervall": 2}}, r"train_cfg\.val_intervall"),
        ({"val_evaluator": [{"type": "ToyMetrics"}]}, r"val_evaluator\.0\.type: 'ToyMetrics'"),
        ({"default_hooks": {"logger": {"type": "LoggerHook", "intervall": 1}}}, r"default_hooks\.logger\.intervall"),
        ({"custom_hooks": [{"type": "EMAHok"}]}, r"custom_hooks\.0\.type: 'EMAHok'"),
        ({"param_scheduler": [{"type": "StepLR", "step": 1}]}, r"param_scheduler\.0\.step"),
        ({"model": {"type": "ToyModel", "bbox_head": {"type": "ToyHed"}}}, r"model\.bbox_head\.type: 'ToyHed'"),
    ],
)
def test_errors_name_their_config_path(make_runner, changes, message):
    with pytest.raises((KeyError, TypeError), match=message):
        make_runner(**changes).train()


def test_a_dataset_error_names_its_config_path(make_runner):
    data = toy_config("")["train_dataloader"] | {"dataset": {"type": "ToyDataset", "sizes": 4}}
    with pytest.raises(TypeError, match=r"train_dataloader\.dataset\.sizes: ToyDataset has no argument 'sizes'"):
        make_runner(train_dataloader=data).train()


def test_a_type_error_inside_a_hook_keeps_its_traceback(make_runner):
    class Broken(CheckpointHook):
        def before_train(self, runner):
            raise TypeError("mine")

    runner = make_runner()
    runner.register_hook(Broken())
    with pytest.raises(TypeError, match=r"^mine$") as caught:
        runner.train()
    assert caught.traceback[-1].name == "before_train"


@pytest.mark.parametrize("folder", ["file/run", "/proc/detkit"])
def test_an_unwritable_work_directory_is_refused_before_anything_is_built(tmp_path, folder):
    (tmp_path / "file").touch()
    cfg = toy_config(tmp_path / folder, model={"type": "NoSuchModel"})
    with pytest.raises(OSError, match=r"work directory .*(file/run|/proc/detkit) cannot be written"):
        Runner.from_cfg(Config(cfg))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message is about its absence")
def test_cuda_is_refused_where_there_is_none(make_runner):
    with pytest.raises(ValueError, match=r"device 'cuda' was asked for, but torch .*--device cpu runs without it"):
        make_runner(device="cuda")


def test_a_cpu_may_have_a_number(make_runner):
    assert make_runner(device="cpu:0").device.type == "cpu"


def test_unknown_device_is_refused(make_runner):
    with pytest.raises(ValueError, match="device: 'cpu', 'cuda' or 'cuda:<index>' was expected, got 'gpu'"):
        make_runner(device="gpu")


def test_two_runs_of_one_process_do_not_share_logger_or_message_hub(make_runner):
    one, two = make_runner("a"), make_runner("b")
    assert one.logger is not two.logger
    assert one.message_hub is not two.message_hub
    assert one.visualizer is not two.visualizer


def test_auto_scale_lr_counts_the_whole_batch(make_runner):
    scale = {"enable": True, "base_batch_size": 16}
    wrapper = {"optimizer": {"type": "SGD", "lr": 0.1}, "accumulative_counts": 2}
    runner = make_runner(epochs=1, auto_scale_lr=scale, optim_wrapper=wrapper, param_scheduler=None)
    runner.train()
    # batches of 4, two of them per step, for a rate meant for 16
    assert runner.optim_wrapper.get_lr()["lr"] == [pytest.approx(0.05)]
    with pytest.raises(KeyError, match=r"auto_scale_lr\.base_batchsize: unknown key; did you mean 'base_batch_size'"):
        make_runner("b", auto_scale_lr={"enable": True, "base_batchsize": 16}).train()


def test_an_endless_sampler_is_refused_by_the_epoch_loop(make_runner):
    data = toy_config("")["train_dataloader"] | {"sampler": {"type": "InfiniteSampler"}}
    with pytest.raises(ValueError, match="an InfiniteSampler never ends an epoch"):
        make_runner(train_dataloader=data).train()


def test_iteration_based_run_trains_and_resumes(make_runner, tmp_path):
    def run(name: str, iters: int, resume: bool = False) -> Runner:
        data = toy_config("")["train_dataloader"] | {"sampler": {"type": "InfiniteSampler"}}
        hooks = toy_config("")["default_hooks"] | {
            "checkpoint": {"type": "CheckpointHook", "interval": 4, "by_epoch": False}
        }
        runner = make_runner(
            name,
            train_dataloader=data,
            train_cfg={"by_epoch": False, "max_iters": iters, "val_interval": 4},
            default_hooks=hooks,
            param_scheduler={"type": "ConstantLR", "factor": 0.5, "by_epoch": False, "end": 6},
            resume=resume,
        )
        runner.train()
        return runner

    run("whole", 8)
    run("cut", 4)
    run("cut", 8, resume=True)
    assert same(weights(tmp_path / "whole", "iter_8.pth"), weights(tmp_path / "cut", "iter_8.pth"))


@pytest.mark.parametrize("first", [True, False])
def test_resuming_in_another_memory_format_changes_nothing(make_runner, first):
    """Fused AdamW walks weights and moments as raw memory, whatever their strides say."""

    def run(name: str, channels_last: bool, **changes) -> Runner:
        return make_runner(
            name,
            epochs=4,
            model={"type": "ToyConvModel", "bbox_head": {"type": "ToyHead"}},
            optim_wrapper={"optimizer": {"type": "AdamW", "lr": 0.01, "fused": True}},
            custom_hooks=[{"type": "ChannelsLastHook"}] if channels_last else [],
            **changes,
        )

    whole = run("whole", first)
    whole.train()
    stop_after(run("parts", first), 2)
    resumed = run("parts", not first, resume=True)
    resumed.train()
    weight = resumed.model.body[2].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) is not first
    state = resumed.optim_wrapper.optimizer.state[weight]
    assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == weight.stride()
    expected = whole.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0, check_stride=False)


def test_passes_of_an_iteration_based_run_differ_in_augmentation_and_order(make_runner):
    runner = make_runner(train_cfg={"by_epoch": False, "max_iters": 9, "val_interval": 9})
    drawn: list[list[torch.Tensor]] = []

    class Collect(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            drawn.append(data_batch["inputs"])

    runner.register_hook(Collect())
    runner.train()
    passes = [torch.stack([*chain(*drawn[start : start + 3])]) for start in (0, 3, 6)]
    orders = [one[:, 3].tolist() for one in passes]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert len({value for one in passes for value in one[:, :3].flatten().tolist()}) == 3 * 12 * 3


@pytest.mark.parametrize("sampler", ["DefaultSampler", "GlobalShuffle"])
def test_an_iteration_based_run_resumes_in_its_second_pass(make_runner, tmp_path, sampler):
    def run(name: str, iters: int, resume: bool = False) -> None:
        make_runner(
            name,
            train_dataloader=toy_config("")["train_dataloader"] | {"sampler": {"type": sampler}},
            train_cfg={"by_epoch": False, "max_iters": iters, "val_interval": 8},
            default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 4, "by_epoch": False}},
            param_scheduler=None,
            resume=resume,
        ).train()

    run("whole", 8)
    run("cut", 4)
    run("cut", 8, resume=True)
    assert same(weights(tmp_path / "whole", "iter_8.pth"), weights(tmp_path / "cut", "iter_8.pth"))


@pytest.mark.parametrize("key", ["label_map", "dataset_meta"])
def test_labels_of_a_checkpoint_are_held_against_the_data(make_runner, tmp_path, capfd, key):
    make_runner("first", epochs=1).train()
    checkpoint = load_checkpoint_file(tmp_path / "first" / "epoch_1.pth")
    del checkpoint["meta"]["label_map"]
    for name, classes in (("same", CLASSES), ("other", CLASSES[::-1])):
        checkpoint["meta"][key] = {"classes": list(classes)}
        save_checkpoint_file(checkpoint, tmp_path / f"{name}.pth")
    other, difference = str(tmp_path / "other.pth"), "label 0 is 'cross' in one and 'disc' in the other"
    with pytest.raises(ValueError, match=difference):
        make_runner("tested", load_from=other).test()
    with pytest.raises(ValueError, match=difference):
        make_runner("resumed", epochs=2, resume=other).train()
    make_runner("tested", load_from=str(tmp_path / "same.pth")).test()
    capfd.readouterr()
    make_runner("finetuned", epochs=1, load_from=str(tmp_path / "same.pth")).train()
    assert "label 0" not in capfd.readouterr().err
    make_runner("finetuned", epochs=1, load_from=other).train()
    said = " ".join(capfd.readouterr().err.split())
    assert f"{difference}; rows of classes that both name are taken over, the others start anew" in said
    assert "in 2 of them the rows of 3 classes by name (disc, star, cross)" in said


class Counting(DetkitHook):
    """Counts its iterations in its state, and notes which stages it saw."""

    def __init__(self) -> None:
        self.count = 0
        self.seen: list[str] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.count += 1

    def after_train(self, runner):
        self.seen.append("after_train")

    def on_exception(self, runner, error):
        self.seen.append(f"on_exception {error}")

    def close(self, runner):
        self.seen.append("close")

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_two_hooks_of_a_class_keep_their_own_state(make_runner):
    runner = make_runner(epochs=2)
    hooks = Counting(), Counting()
    hooks[1].count = 100
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    saved = load_checkpoint_file(Path(runner.work_dir, "epoch_2.pth"))["hooks"]
    assert saved["Counting"] == {"count": 6}
    assert saved["Counting#2"] == {"count": 106}
    runner = make_runner(epochs=3, resume=True)
    hooks = Counting(), Counting()
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    assert [hook.count for hook in hooks] == [9, 109]


def test_every_hook_hears_of_the_end_and_the_first_error_survives(make_runner):
    class Failing(DetkitHook):
        def close(self, runner):
            raise OSError("the disk is full")

    runner = make_runner(epochs=2, train_dataloader=failing_loader())
    hooks = Counting(), Failing(), Counting()
    for hook in hooks:
        runner.register_hook(hook)
    with pytest.raises(ValueError, match=r"images/5.jpg: the file is truncated"):
        runner.train()
    for hook in (hooks[0], hooks[2]):
        assert hook.seen == ["on_exception images/5.jpg: the file is truncated", "after_train", "close"]
    assert not runner.train_completed


def test_a_hook_that_cannot_close_fails_a_run_that_went_well(make_runner):
    class Failing(DetkitHook):
        def close(self, runner):
            raise OSError("the disk is full")

    runner = make_runner(epochs=1)
    last = Counting()
    runner.register_hook(Failing())
    runner.register_hook(last)
    with pytest.raises(OSError, match="the disk is full"):
        runner.train()
    assert last.seen == ["after_train", "close"]


def test_another_model_may_be_given_to_a_runner(make_runner):
    runner, other = make_runner("a"), make_runner("b").model
    runner.model = other
    runner.train()
    assert runner.model is other
    assert {"body.0.weight"} < runner.model.state_dict().keys()


def test_a_test_does_not_build_the_training_data(make_runner):
    runner = make_runner(train_dataloader=failing_loader() | {"dataset": {"type": "NoSuchDataset"}})
    assert runner.iter == runner.epoch == 0
    assert runner.test()["toy/mAP"]


def test_a_validation_after_the_training_leaves_its_outcome_alone(make_runner):
    class Ends(Hook):
        calls = 0

        def after_train(self, runner):
            self.calls += 1

        def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if self.calls:
                raise ZeroDivisionError

    runner, ends = make_runner(epochs=1), Ends()
    runner.train()
    runner.val()
    assert runner.train_completed
    runner.register_hook(ends)
    ends.after_train(runner)
    with pytest.raises(ZeroDivisionError):
        runner.val()
    assert runner.train_completed
    assert ends.calls == 1  # it was no training that failed


@pytest.mark.parametrize(
    ("key", "value"), [("max_epochs", "3"), ("max_epochs", 1.5), ("val_interval", 0.5), ("val_interval", float("inf"))]
)
def test_counts_of_a_loop_are_whole_numbers(make_runner, key, value):
    # Half an epoch between validations would be taken for one; an interval of -1 validates at the end.
    runner = make_runner(train_cfg={"by_epoch": True, "max_epochs": 3, key: value})
    with pytest.raises(ValueError, match=rf"train_cfg.{key}: a whole number was expected, got {value!r}"):
        runner.train()
