"""Runs that mmengine's own Runner began, as MMDetection's tools/train.py does, end here as they would have there."""

from __future__ import annotations

import pytest
import torch
from engine.resuming.mmengine_run import EPOCHS, config, run_mmengine
from mmengine.config import Config

from detkit.checkpoints import load_checkpoint_file, save_checkpoint_file
from detkit.engine import Runner

KINDS = {
    "plain": {},
    "rules": {
        "optim_wrapper": {
            "optimizer": {"type": "AdamW", "lr": 0.01, "weight_decay": 0.1},
            "paramwise_cfg": {
                "norm_decay_mult": 0.0,
                "bias_lr_mult": 2.0,
                "custom_keys": {"bbox_head": {"lr_mult": 0.1}},
            },
        },
        # It goes by the rates at the start, which the file has once per parameter.
        "param_scheduler": [{"type": "CosineAnnealingLR", "by_epoch": True, "T_max": 3, "eta_min_ratio": 0.1}],
    },
    "average": {"custom_hooks": [{"type": "EMAHook", "momentum": 0.1}]},
}


def go_on(folder, checkpoint, by_epoch=True, **changes):
    runner = Runner.from_cfg(Config(config(folder, by_epoch, resume=str(checkpoint), **changes)))
    runner.train()
    return runner


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_epochs_goes_on(tmp_path, kind):
    run_mmengine(tmp_path / "theirs", **KINDS[kind])
    runner = go_on(tmp_path / "mine", tmp_path / "theirs/epoch_1.pth", **KINDS[kind])
    assert runner.iter == 3 * EPOCHS
    assert runner.seed == 5
    one, two = (load_checkpoint_file(tmp_path / name / f"epoch_{EPOCHS}.pth") for name in ("theirs", "mine"))
    for part in ["state_dict", *(["ema_state_dict"] if kind == "average" else [])]:
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, rtol=1e-5, atol=1e-6, msg=f"{part} {name}")
    rates = [{round(group["lr"], 9) for group in end["optimizer"]["param_groups"]} for end in (one, two)]
    assert rates[0] == rates[1]
    if kind == "rules":  # the rate that is logged
        assert len({round(end["optimizer"]["base_param_settings"]["lr"], 9) for end in (one, two)}) == 1


def test_a_run_of_iterations_goes_on(tmp_path):
    run_mmengine(tmp_path / "theirs", by_epoch=False)
    runner = go_on(tmp_path / "mine", tmp_path / "theirs/iter_4.pth", by_epoch=False)
    assert runner.iter == 3 * EPOCHS
    one, two = (load_checkpoint_file(tmp_path / name / "iter_8.pth")["state_dict"] for name in ("theirs", "mine"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6)


def test_the_folder_of_its_run_is_a_work_directory(tmp_path):
    run_mmengine(tmp_path / "run")
    runner = Runner.from_cfg(Config(config(tmp_path / "run", resume=True)))
    runner.train()
    assert (runner.epoch, runner.iter) == (EPOCHS, 3 * EPOCHS)  # there was nothing left to do


def test_what_does_not_fit_is_refused(tmp_path):
    run_mmengine(tmp_path / "theirs", train_cfg={"by_epoch": True, "max_epochs": 1})
    path = tmp_path / "theirs/epoch_1.pth"
    content = load_checkpoint_file(path)
    loader = config("")["train_dataloader"] | {"batch_size": 3}
    with pytest.raises(ValueError, match=r"3 iterations in 1 epochs; a pass over the data has 4 iterations now"):
        go_on(tmp_path / "a", path, train_dataloader=loader)
    rules = {"optimizer": {"type": "SGD", "lr": 0.1}, "paramwise_cfg": {"bias_lr_mult": 2.0}}
    loader = config("")["train_dataloader"] | {"dataset": {"type": "SteadyToyDataset", "classes": ["x", "y", "z"]}}
    with pytest.raises(ValueError, match="label 0 is 'disc' in one and 'x' in the other"):
        go_on(tmp_path / "b", path, train_dataloader=loader)
    content["optimizer"]["param_groups"][0]["params"].pop()
    save_checkpoint_file(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="its optimizer has 9 parameters, the model 8; start a new run from its"):
        go_on(tmp_path / "c", tmp_path / "x.pth", optim_wrapper=rules)
    del content["param_schedulers"]
    save_checkpoint_file(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="a run cannot be resumed from this file, as it lacks param_schedulers"):
        go_on(tmp_path / "d", tmp_path / "x.pth")


def test_groups_that_were_told_apart_stay_so(tmp_path):
    run_mmengine(tmp_path / "theirs", train_cfg={"by_epoch": True, "max_epochs": 1}, **KINDS["rules"])
    plain = {"optimizer": {"type": "AdamW", "lr": 0.01, "weight_decay": 0.1}}
    with pytest.raises(ValueError, match="give the paramwise_cfg that the run was started with"):
        go_on(tmp_path / "a", tmp_path / "theirs/epoch_1.pth", **KINDS["rules"] | {"optim_wrapper": plain})


def test_its_weights_start_and_are_evaluated(tmp_path):
    run_mmengine(tmp_path / "theirs", train_cfg={"by_epoch": True, "max_epochs": 1}, **KINDS["average"])
    path = str(tmp_path / "theirs/epoch_1.pth")
    wanted = load_checkpoint_file(path)["state_dict"]  # the average
    changes = {"load_from": path, "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.0}}}
    runner = Runner.from_cfg(Config(config(tmp_path / "mine", **changes)))
    runner.load_or_resume()
    assert all(torch.equal(value, wanted[name]) for name, value in runner.model.state_dict().items())
    loader = config("")["train_dataloader"] | {"sampler": {"type": "DefaultSampler", "shuffle": False}}
    test = {"test_dataloader": loader, "test_cfg": {}, "test_evaluator": {"type": "ToyMetric"}, "load_from": path}
    metrics = Runner.from_cfg(Config(config(tmp_path / "tested", **test))).test()
    assert "toy/mAP" in metrics
