"""Scaling a run to its batch: Detectron2's numbers (``DefaultTrainer.auto_scale_workers`` there), and the run itself.

There the batch is that of all processes, and the reference a number of processes; here it is that of one process, and
the reference a batch of all.
"""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from engine.engine_toys import toy_config
from mmengine.config import Config

from detkit.config import check, loads
from detkit.engine import Runner, load_checkpoint_file
from detkit.engine.run.auto_scale import auto_scale_cfg, expected_world_size, scaled_values

ROOT = Path(__file__).resolve().parents[3]


def curve(milestones: Any, warmup: int) -> dict[str, Any]:
    steps = {"type": "MultiStepMultiplier", "milestones": milestones}
    return {"type": "WarmupMultiplier", "multiplier": steps, "warmup_iters": warmup}


def reference(**changes: Any) -> dict[str, Any]:
    """For 8 processes with 2 images each: rate .1, 5000 iterations, a milestone, a warm-up, checkpoints."""
    cfg = {
        "train_dataloader": {"batch_size": 2},
        "train_cfg": {"by_epoch": False, "max_iters": 5000, "val_interval": 1000, "dynamic_intervals": [(4000, 100)]},
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1}},
        "param_scheduler": {"type": "LRMultiplier", "multiplier": curve([4000], 1000)},
        "default_hooks": {
            "checkpoint": {"type": "CheckpointHook", "interval": 1000, "by_epoch": False},
            "logger": {"type": "LoggerHook", "interval": 50},
        },
        "auto_scale_lr": {"enable": True, "base_batch_size": 16},
    }
    return {**cfg, **changes}


def numbers(cfg: Any, processes: int) -> tuple[Any, ...]:
    return (
        cfg["train_dataloader"]["batch_size"] * processes,
        cfg["optim_wrapper"]["optimizer"]["lr"],
        cfg["train_cfg"]["max_iters"],
        cfg["param_scheduler"]["multiplier"]["multiplier"]["milestones"],
        cfg["param_scheduler"]["multiplier"]["warmup_iters"],
        cfg["default_hooks"]["checkpoint"]["interval"],
    )


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        (16, (32, 0.2, 2500, [2000], 500, 500)),
        (1, (2, 0.0125, 40_000, [32_000], 8000, 8000)),
        (3, (6, 0.0375, 13_333, [10_667], 2667, 2667)),
    ],
)
def test_the_whole_schedule(processes, expected):
    cfg = reference()
    before = copy.deepcopy(cfg)
    scaled = auto_scale_cfg(cfg, processes)
    found = numbers(scaled, processes)
    assert found == (expected[0], pytest.approx(expected[1]), *expected[2:])
    assert cfg == before
    assert scaled["train_cfg"]["val_interval"] == expected[5]
    assert scaled["train_cfg"]["dynamic_intervals"] == [(expected[3][0], round(1600 / 2 / processes))]
    assert scaled["default_hooks"]["logger"] == {"type": "LoggerHook", "interval": 50}
    assert scaled["auto_scale_lr"] == {"enable": True, "base_batch_size": expected[0]}
    # what is scaled is not scaled again
    assert auto_scale_cfg(scaled, processes) is scaled


def test_nothing_to_scale():
    cfg = reference()
    assert auto_scale_cfg(cfg, 8) is cfg
    for options in ({"enable": False, "base_batch_size": 16}, {"base_batch_size": 16}, {}, None):
        cfg = reference(auto_scale_lr=options)
        assert auto_scale_cfg(cfg, 16) is cfg
    del cfg["auto_scale_lr"]
    assert auto_scale_cfg(cfg, 16) is cfg
    cfg = reference(train_dataloader=None)  # a config to test with
    assert auto_scale_cfg(cfg, 16) is cfg


def test_a_total_batch_is_that_of_any_number_of_processes():
    cfg = reference(train_dataloader={"total_batch_size": 8})
    assert [scaled_values(cfg, processes) for processes in (1, 4)] == [scaled_values(reference(), 4)] * 2


def test_no_interval_becomes_zero_and_never_stays_never():
    """Detectron2's checkpoint period of 1 becomes 0 at four times the workers, and the run fails."""
    hooks = {
        "checkpoint": {"type": "CheckpointHook", "interval": 1, "by_epoch": False, "save_begin": 0},
        "other": {"type": "CheckpointHook", "interval": -1, "by_epoch": False},
    }
    cfg = reference(train_cfg={"max_iters": 10, "val_interval": 0}, default_hooks=hooks)
    scaled = auto_scale_cfg(cfg, 32)
    assert scaled["default_hooks"]["checkpoint"]["interval"] == 1
    assert scaled["default_hooks"]["checkpoint"]["save_begin"] == 0
    assert scaled["default_hooks"]["other"]["interval"] == -1
    assert scaled["train_cfg"] == {"max_iters": 2, "val_interval": 0}  # 2.5 is rounded to the even one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enable": True}, r"auto_scale_lr\.base_batch_size is missing"),
        ({"enable": True, "base_batch_size": 0}, r"auto_scale_lr\.base_batch_size: a positive integer .*, got 0"),
        ({"enable": True, "base_batch_size": 1.5}, r"auto_scale_lr\.base_batch_size: a positive integer .*, got 1\.5"),
        ({"enable": True, "base_batchsize": 16}, r"auto_scale_lr\.base_batchsize: unknown key; did you mean 'base_ba"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises((KeyError, ValueError), match=message):
        auto_scale_cfg(reference(auto_scale_lr=options), 16)


def test_more_that_is_refused():
    with pytest.raises(KeyError, match=r"optim_wrapper\.optimizer\.lr is missing: auto_scale_lr needs to know"):
        auto_scale_cfg(reference(optim_wrapper={"optimizer": {"type": "AdamW"}}), 16)
    with pytest.raises(ValueError, match="at least one process was expected, got world_size=0"):
        auto_scale_cfg(reference(), 0)
    two = {name: {"optimizer": {"lr": 0.1}, "accumulative_counts": n} for name, n in (("gen", 1), ("disc", 2))}
    with pytest.raises(ValueError, match="accumulative_counts must be the same for every optimizer"):
        auto_scale_cfg(reference(optim_wrapper={"constructor": "Mine", **two}), 16)


def test_accumulated_iterations_make_the_batch_larger_and_the_run_no_shorter():
    wrapper = {"optimizer": {"type": "SGD", "lr": 0.1}, "accumulative_counts": 2}
    scaled = auto_scale_cfg(reference(optim_wrapper=wrapper), 4)
    # 16 images per update as in the reference, but two iterations for each
    assert numbers(scaled, 4) == (8, 0.1, 10_000, [8000], 2000, 2000)
    assert scaled["auto_scale_lr"] == {"enable": True, "base_batch_size": 16, "base_accumulative_counts": 2}
    assert auto_scale_cfg(scaled, 4) is scaled
    assert numbers(auto_scale_cfg(scaled, 8), 8) == (16, 0.2, 5000, [4000], 1000, 1000)


def test_every_rate_that_is_no_ratio_follows():
    """Detectron2 leaves the cosine's last rate, which changes its ratio to the first."""
    schedulers = [
        {"type": "LinearLR", "start_factor": 0.001, "by_epoch": False, "begin": 0, "end": 500},
        {"type": "CosineAnnealingLR", "T_max": 11, "by_epoch": True, "begin": 1, "eta_min": 0.01},
        {"type": "CosineAnnealingMomentum", "T_max": 11, "by_epoch": True, "eta_min": 0.5},
    ]
    wrapper = {
        "optimizer": {"type": "SGD", "lr": 0.1},
        "paramwise_cfg": {"custom_keys": {"neck": {"lr": 0.02, "lr_mult": 0.5}}, "overrides": {"bias": {"lr": 0.2}}},
    }
    cfg = reference(optim_wrapper=wrapper, param_scheduler=schedulers, train_cfg={"max_epochs": 12, "val_interval": 1})
    scaled = auto_scale_cfg(cfg, 16)
    assert scaled["optim_wrapper"]["optimizer"]["lr"] == pytest.approx(0.2)
    rules = scaled["optim_wrapper"]["paramwise_cfg"]
    assert rules["custom_keys"]["neck"] == pytest.approx({"lr": 0.04, "lr_mult": 0.5})
    assert rules["overrides"]["bias"]["lr"] == pytest.approx(0.4)
    assert scaled["param_scheduler"][1]["eta_min"] == pytest.approx(0.02)
    # epochs are epochs, momentum is no rate, and a warm-up of a run in epochs stays as MMDetection leaves it
    for index in (0, 2):
        assert scaled["param_scheduler"][index] == schedulers[index]
    assert scaled["train_cfg"] is cfg["train_cfg"]
    assert scaled["default_hooks"] is cfg["default_hooks"]


def test_schedules_of_mmengine_in_iterations():
    schedulers = [
        {"type": "LinearLR", "start_factor": 0.001, "by_epoch": False, "begin": 0, "end": 500},
        {"type": "ExponentialLR", "gamma": 0.9, "by_epoch": False, "begin": 500},
        {"type": "mmdet.QuadraticWarmupLR", "by_epoch": False, "end": 500},
        {"type": "OneCycleLR", "by_epoch": False, "total_steps": 5000, "eta_max": 0.5},
        {"type": "CosineRestartLR", "by_epoch": False, "periods": [2000, 3000], "restart_weights": [1, 1]},
        {"type": "StepLR", "step_size": 3},
        {"type": "WarmupMultiStepLR", "milestones": [0.5, 0.75], "warmup_iters": 100},
    ]
    scaled = auto_scale_cfg(reference(param_scheduler=schedulers), 16)["param_scheduler"]
    assert (scaled[0]["begin"], scaled[0]["end"]) == (0, 250)
    assert scaled[1] == {**schedulers[1], "gamma": pytest.approx(0.81), "begin": 250}
    assert scaled[2]["end"] == 250
    assert (scaled[3]["total_steps"], scaled[3]["eta_max"]) == (2500, 1.0)
    assert (scaled[4]["periods"], scaled[4]["restart_weights"]) == ([1000, 1500], [1, 1])
    assert scaled[5] == schedulers[5]
    assert scaled[6] == {**schedulers[6], "warmup_iters": 50}


def test_hooks_and_curves_wherever_they_are():
    parts = [{"type": "MultiStepMultiplier", "milestones": [100]}, {"type": "CosineMultiplier"}]
    whole = {"type": "CompositeMultiplier", "multipliers": parts, "lengths": [0.5, 0.5]}
    hooks = [
        {"type": "EMAHook", "begin_iter": 1000},
        {"type": "CheckpointHook", "interval": 100, "by_epoch": False},
        {"type": "CheckpointHook", "interval": 100},
        "built",
    ]
    schedulers = {"gen": [{"type": "LRMultiplier", "multiplier": whole}], "disc": {"type": "StepLR", "step_size": 3}}
    scaled = auto_scale_cfg(reference(param_scheduler=schedulers, custom_hooks=hooks), 16)
    assert scaled["param_scheduler"]["gen"][0]["multiplier"]["multipliers"][0]["milestones"] == [50]
    assert scaled["param_scheduler"]["disc"] == schedulers["disc"]
    assert [hook.get("interval", hook.get("begin_iter")) for hook in scaled["custom_hooks"][:3]] == [500, 50, 100]
    assert [str(one) for one in scaled_values(reference(param_scheduler=schedulers, custom_hooks=hooks), 16)][:2] == [
        "optim_wrapper.optimizer.lr: 0.1 -> 0.2",
        "train_cfg.max_iters: 5000 -> 2500",
    ]


def test_averaging_begins_where_it_would_and_with_the_rate_it_would():
    swa = {"type": "SWAHook", "begin_iter": 4000, "interval": 100, "lr": 0.01}
    ema = {"type": "EMAHook", "interval": 4}
    in_epochs = {"type": "SWAHook", "begin_epoch": 9, "interval": 2}
    scaled = auto_scale_cfg(reference(custom_hooks=[swa, ema, in_epochs]), 16)["custom_hooks"]
    assert scaled == [{**swa, "begin_iter": 2000, "interval": 50, "lr": 0.02}, ema, in_epochs]


def test_only_the_rate_where_the_config_says_so():
    options = {"enable": True, "base_batch_size": 16, "scale_schedule": False}
    assert numbers(auto_scale_cfg(reference(auto_scale_lr=options), 16), 16) == (
        *(32, pytest.approx(0.2), 5000, [4000], 1000, 1000),
    )


def test_the_number_of_processes_before_they_meet(monkeypatch):
    assert expected_world_size("none") == 1
    for key, value in {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(key, value)
    assert expected_world_size("pytorch") == 3
    assert expected_world_size("none") == 1


@pytest.fixture
def scaled_run(make_runner):
    """Batches of 4 for a config that is meant for 8: half the rate, twice the iterations."""

    def make(**changes: Any) -> Any:
        hooks = toy_config("")["default_hooks"] | {
            "checkpoint": {"type": "CheckpointHook", "interval": 3, "by_epoch": False}
        }
        options = {
            "train_cfg": {"by_epoch": False, "max_iters": 6, "val_interval": 6},
            "param_scheduler": {"type": "LRMultiplier", "multiplier": curve([4], 2)},
            "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1}, "paramwise_cfg": {"bias_lr_mult": 2.0}},
            "default_hooks": hooks,
            "auto_scale_lr": {"enable": True, "base_batch_size": 8},
        }
        return make_runner(**{**options, **changes})

    return make


def test_a_run_says_what_it_scaled_and_logs_the_scaled_rate(scaled_run, capfd):
    runner = scaled_run()
    assert "auto_scale_lr: optim_wrapper.optimizer.lr: 0.1 -> 0.05" in capfd.readouterr().err
    assert runner.cfg.train_cfg.max_iters == 12
    runner.train()
    assert runner.iter == 12
    rates = runner.optim_wrapper.get_lr()  # after a milestone
    assert rates["base_lr"] == pytest.approx([0.005])
    assert rates["lr"] == pytest.approx([0.005, 0.01])


def test_resuming_neither_scales_twice_nor_forgets(scaled_run, tmp_path):
    runner = scaled_run()
    runner.train()
    whole = load_checkpoint_file(tmp_path / "run" / "iter_12.pth")
    (tmp_path / "run" / "iter_12.pth").unlink()
    resumed = scaled_run(resume=True)
    resumed.train()
    again = load_checkpoint_file(tmp_path / "run" / "iter_12.pth")
    assert all((whole["state_dict"][name] == value).all() for name, value in again["state_dict"].items())
    assert again["param_schedulers"] == whole["param_schedulers"]
    # the config it left is that of a run that needs no scaling
    left = loads((tmp_path / "run" / "config.py").read_text())
    assert (left.train_cfg.max_iters, left.optim_wrapper.optimizer.lr) == (12, 0.05)
    assert auto_scale_cfg(left, 1) is left


def test_another_batch_at_resume_is_told(scaled_run, tmp_path, capfd):
    scaled_run().train()
    (tmp_path / "run" / "iter_12.pth").unlink()
    capfd.readouterr()
    wrapper = {"optimizer": {"type": "SGD", "lr": 0.1}, "paramwise_cfg": {"bias_lr_mult": 2.0}}
    runner = scaled_run(resume=True, optim_wrapper={**wrapper, "accumulative_counts": 2})
    runner.train()
    warned = " ".join(capfd.readouterr().err.split())
    assert "auto_scale_lr: 4 images per update before, 8 now; the learning rate stays that of 4" in warned
    assert runner.optim_wrapper.get_lr()["base_lr"] == pytest.approx([0.005])


def test_a_runner_of_parts_scales_its_rate_with_the_one_that_is_logged(tmp_path):
    """mmengine leaves ``base_lr``."""
    options = toy_config(tmp_path / "parts", epochs=1, auto_scale_lr={"enable": True, "base_batch_size": 16})
    options["optim_wrapper"] = {"optimizer": {"type": "SGD", "lr": 0.1}, "paramwise_cfg": {"bias_lr_mult": 2.0}}
    runner = Runner(**{**options, "param_scheduler": None})
    runner.train()
    assert runner.optim_wrapper.get_lr() == {"base_lr": [0.025], "lr": [0.025, 0.05]}


def test_the_flag_of_the_tool(tmp_path):
    spec = importlib.util.spec_from_file_location("tools_train", ROOT / "tools" / "train.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def configured(*arguments: str) -> Any:
        return tool.configure(tool.parse_args([str(path), "--auto-scale-lr", *arguments]))

    path = ROOT / "configs" / "retinanet" / "retinanet_r50_fpn_1x_coco.py"
    assert configured().auto_scale_lr == {"enable": True, "base_batch_size": 16}
    path = tmp_path / "none.py"
    path.write_text("log_level = 'INFO'\n")
    with pytest.raises(KeyError, match=r"--auto-scale-lr needs auto_scale_lr\.base_batch_size"):
        configured()


def test_a_checked_config_may_hold_the_new_keys():
    options = {"enable": True, "base_batch_size": 16, "base_accumulative_counts": 2, "scale_schedule": False}
    check(Config({"auto_scale_lr": options}))
    with pytest.raises(KeyError, match="did you mean 'base_batch_size'"):
        check(Config({"auto_scale_lr": {"base_batchsize": 16}}))
