"""Which checkpoints are kept, which is the best, and what a kill between two writes leaves."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from engine.engine_toys import toy_config
from mmengine.config import Config

from detkit.checkpoints import save_checkpoint_file
from detkit.engine import load_checkpoint_file
from detkit.engine.hooks import CheckpointHook
from detkit.engine.hooks.hook import Hook
from detkit.engine.run import runner as runner_module


def run(make_runner, name="run", epochs=4, values=(0.1, 0.3, 0.2, 0.25), resume=False, **options):
    hooks = toy_config("")["default_hooks"] | {"checkpoint": {"type": "CheckpointHook", "interval": 1, **options}}
    evaluator = {"type": "ToyMetric", "values": values}
    runner = make_runner(name, epochs=epochs, default_hooks=hooks, val_evaluator=evaluator, resume=resume)
    runner.train()
    return runner


def best_of(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, CheckpointHook)).best


def names(runner) -> set[str]:
    return {path.name for path in Path(runner.work_dir).glob("*.pth")}


def test_the_best_is_kept_and_earlier_ones_are_not(make_runner):
    runner = run(make_runner, save_best="toy/mAP", max_keep_ckpts=2)
    assert names(runner) == {"epoch_3.pth", "epoch_4.pth", "best_toy_mAP_epoch_2.pth"}
    best = load_checkpoint_file(Path(runner.work_dir, "best_toy_mAP_epoch_2.pth"))
    assert best["meta"]["metric"] == {"toy/mAP": 0.3}
    assert "optimizer" not in best
    assert best_of(runner)["toy/mAP"]["score"] == 0.3


@pytest.mark.parametrize(
    ("options", "values", "expected"),
    [
        ({"save_best": "toy/mAP"}, (0.2, float("nan"), 0.1, 0.1), {"best_toy_mAP_epoch_1.pth"}),
        ({"save_best": "toy/mAP"}, (float("nan"), 0.2, 0.1, float("inf")), {"best_toy_mAP_epoch_2.pth"}),
        ({"save_best": "toy/mAP"}, (float("nan"),), set()),
        ({"save_best": "auto"}, (0.1, 0.3, 0.3, 0.2), {"best_toy_mAP_epoch_2.pth"}),
        ({"save_best": "toy/mAP", "rule": "less"}, (0.3, 0.1, 0.2, 0.4), {"best_toy_mAP_epoch_2.pth"}),
        # toy/loss falls at every validation: its rule is 'less' by its name
        (
            {"save_best": ["toy/mAP", "toy/loss"]},
            (0.1, 0.3, 0.2, 0.2),
            {"best_toy_mAP_epoch_2.pth", "best_toy_loss_epoch_4.pth"},
        ),
    ],
)
def test_best_by_metric_and_rule(make_runner, options, values, expected):
    runner = run(make_runner, values=values, max_keep_ckpts=1, **options)
    assert names(runner) == {"epoch_4.pth", *expected}


def test_best_is_remembered_by_a_resumed_run(make_runner):
    run(make_runner, epochs=2, values=(0.5, 0.1), save_best="toy/mAP")
    runner = run(make_runner, epochs=4, values=(0.1, 0.3, 0.4), save_best="toy/mAP", resume=True)
    assert "best_toy_mAP_epoch_1.pth" in names(runner)
    assert best_of(runner)["toy/mAP"]["score"] == 0.5


def test_validation_by_itself_saves_nothing(make_runner):
    hooks = toy_config("")["default_hooks"] | {"checkpoint": {"type": "CheckpointHook", "save_best": "auto"}}
    runner = make_runner(default_hooks=hooks)
    assert "toy/mAP" in runner.val()
    assert names(runner) == set()
    assert best_of(runner) == {}


def test_a_missing_metric_is_warned_of_once_or_an_error(make_runner, capfd):
    """mmengine ends the training with a KeyError after its first epoch."""
    runner = run(make_runner, "lenient", save_best=["toy/map_50", "toy/mAP"])
    assert capfd.readouterr().err.count("the evaluator gives no 'toy/map_50'; did you mean 'toy/mAP'") == 1
    assert best_of(runner).keys() == {"toy/mAP"}
    with pytest.raises(KeyError, match=r"save_best: the evaluator gives no 'toy/map_50'; did you mean 'toy/mAP'"):
        run(make_runner, "strict", save_best="toy/map_50", strict=True)


def test_a_metric_that_cannot_come_is_named_before_training(make_runner, capfd):
    with pytest.raises(KeyError, match=r"no metric of val_evaluator gives 'coco/mAP'; did you mean 'toy/mAP'"):
        run(make_runner, save_best="coco/mAP", strict=True)
    assert "epoch 1" not in capfd.readouterr().err
    run(make_runner, "lenient", epochs=1, save_best="mAP")
    assert capfd.readouterr().err.count("save_best: no metric of val_evaluator gives 'mAP'; did you mean") == 1


def test_interval_and_last(make_runner):
    assert names(run(make_runner, "a", interval=3)) == {"epoch_3.pth", "epoch_4.pth"}
    assert names(run(make_runner, "b", interval=3, save_last=False)) == {"epoch_3.pth"}
    assert names(run(make_runner, "c", interval=-1)) == {"epoch_4.pth"}
    assert names(run(make_runner, "d", interval=2, by_epoch=False, epochs=2)) == {
        "iter_2.pth",
        "iter_4.pth",
        "iter_6.pth",
    }
    assert names(run(make_runner, "e", filename_tmpl="e{}.pth", epochs=1)) == {"e1.pth"}


def test_leftovers_of_a_killed_writer_are_swept_up(make_runner, tmp_path):
    (tmp_path / "run").mkdir()
    leftover = tmp_path / "run" / ".epoch_1.pth.123.tmp"
    leftover.touch()
    run(make_runner, epochs=1)
    assert not leftover.exists()


def test_a_new_run_puts_the_checkpoints_of_an_earlier_one_aside(make_runner, capfd):
    """Killed before its first save, it leaves nothing that resuming could take for its own."""
    first = run(make_runner, epochs=2, save_best="toy/mAP")
    folder = Path(first.work_dir)
    written = (folder / "last_checkpoint").stat().st_mtime
    kept = {name: (folder / name).read_bytes() for name in (*names(first), "last_checkpoint")}
    for once in (1, 2):  # the second time within the same second
        stop = {"type": "ToyDataset", "fail_at": 0}
        data = toy_config("")["train_dataloader"] | {"dataset": stop}
        second = make_runner(epochs=2, train_dataloader=data)
        capfd.readouterr()
        with pytest.raises(ValueError, match="truncated"):
            second.train()
        assert names(second) == set()
        assert not (folder / "last_checkpoint").exists()
        aside = sorted(folder.glob("previous_*"))
        assert len(aside) == once
        assert f"checkpoints of an earlier run were moved to {aside[-1]}" in capfd.readouterr().err
        assert {path.name: path.read_bytes() for path in aside[-1].iterdir()} == kept
        for name, content in kept.items():
            (folder / name).write_bytes(content)
        os.utime(folder / "last_checkpoint", (written, written))
    for name in kept:
        (folder / name).unlink()
    resumed = run(make_runner, epochs=1, resume=True)
    assert "starting from scratch" in capfd.readouterr().err
    assert names(resumed) == {"epoch_1.pth"}
    again = run(make_runner, epochs=2, resume=True)  # what goes on moves nothing
    assert names(again) == {"epoch_1.pth", "epoch_2.pth"}
    assert len(list(folder.glob("previous_*"))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval must be at least 1"),
        ({"interval": 1.5}, "interval must be at least 1 and whole, or None, got 1.5"),
        ({"max_keep_ckpts": 0}, "max_keep_ckpts must be at least 1"),
        ({"rule": "higher", "save_best": "a"}, "rule must be 'greater' or 'less'"),
        ({"rule": ["less"], "save_best": ["a", "b"]}, "rule must be 'greater' or 'less'"),
        ({"filename_tmpl": "model.pth"}, "filename_tmpl must end in"),
        ({"filename_tmpl": "{}_{}.pth"}, "filename_tmpl must end in"),
        ({"filename_tmpl": "a/{}.pth"}, "filename_tmpl must end in"),
        ({"final_name": "best_model.pth"}, "final_name must be a file name that ends in .pth"),
        ({"final_name": "a/b.pth"}, "final_name must be a file name that ends in .pth"),
        ({"out_dir": "s3://bucket"}, "out_dir must be a folder, got 's3://bucket'"),
        ({"backend_args": {"backend": "petrel"}}, "backend_args must be None, got {'backend': 'petrel'}; checkpoints"),
    ],
)
def test_constructor_checks(options, message):
    with pytest.raises(ValueError, match=message):
        CheckpointHook(**options)


def iterations(make_runner, name="run", count=40, val_interval=10, values=(), resume=False, evaluator=True, **options):
    """An iteration-based run; returns it and the names of what was written, in order."""
    hook = {"type": "CheckpointHook", "by_epoch": False, "interval": 10, **options}
    train_cfg = {"by_epoch": False, "max_iters": count, "val_interval": val_interval}
    changes = {"val_evaluator": {"type": "ToyMetric", "values": values}} if evaluator else {}
    if not evaluator:
        changes = dict.fromkeys(("val_evaluator", "val_dataloader", "val_cfg"))
    hooks = toy_config("")["default_hooks"] | {"checkpoint": hook}
    runner = make_runner(name, train_cfg=train_cfg, default_hooks=hooks, resume=resume, **changes)
    written = []
    save = runner.save_checkpoint

    def spy(folder, name, **kwargs):
        written.append(name)
        save(folder, name, **kwargs)

    runner.save_checkpoint = spy
    runner.train()
    return runner, written


@pytest.mark.parametrize(
    ("rule", "values", "saves", "best"),
    [
        # Detectron2's numbers
        ("greater", (0.3, 0.4, 0.35, 0.5), 3, 0.5),
        ("less", (1.0, 0.8, 0.9, 0.9), 2, 0.8),
        # Where it saves 1, since it looks whether the first value is finite only; here 0.8 is the first
        ("less", (float("nan"), 0.8, 0.9, 0.9), 1, 0.8),
        # it writes 3 files here, and for mmengine infinity stays the best for ever
        ("greater", (0.5, float("inf"), 0.4, float("nan"), 0.6), 2, 0.6),
    ],
)
def test_how_often_the_best_is_saved(make_runner, rule, values, saves, best):
    runner, written = iterations(
        make_runner, count=10 * len(values), values=values, save_best="toy/mAP", rule=rule, max_keep_ckpts=1
    )
    assert sum(name.startswith("best_") for name in written) == saves
    assert len(written) == len(values) + saves  # and nothing is written twice
    assert best_of(runner)["toy/mAP"]["score"] == best
    assert len([name for name in names(runner) if name.startswith("best_")]) == 1


def test_a_resumed_run_keeps_the_better_model_and_starts_where_it_ended(make_runner):
    """Detectron2 forgets the 0.9, and resumes from the best file, one iteration late."""
    options = {
        "save_best": "toy/mAP",
        "interval": 5,
        "filename_tmpl": "model_{:07d}.pth",
        "final_name": "model_final.pth",
    }
    first, _ = iterations(make_runner, count=10, values=(0.9,), **options)
    assert Path(first.work_dir, "last_checkpoint").read_text() == "model_final.pth"
    # The last checkpoint was written before its validation, which is repeated first, and gives the same.
    second, written = iterations(make_runner, count=30, values=(0.9, 0.1, 0.2), resume=True, **options)
    assert best_of(second)["toy/mAP"] == {
        "score": 0.9,
        "file": "best_toy_mAP_model_0000010.pth",
        "epoch": first.epoch,
        "iter": 10,
    }
    # Step 11 came next, no other: the next checkpoint is that of step 15.
    assert written == ["best_toy_mAP_model_0000010.pth", *(f"model_00000{number}.pth" for number in (15, 20, 25, 30))]
    assert load_checkpoint_file(Path(second.work_dir, "model_final.pth"))["meta"]["iter"] == 30
    # From a checkpoint after a validation: the best is in it, the next score is not the first.
    (Path(second.work_dir) / "last_checkpoint").write_text("model_0000015.pth")
    third, written = iterations(make_runner, count=30, values=(0.1, 0.2), resume=True, **options)
    assert not [name for name in written if name.startswith("best_")]
    assert best_of(third)["toy/mAP"]["score"] == 0.9


def test_the_final_name_is_no_second_write(make_runner):
    """Detectron2's names, counted from 1: period 2, 4 steps. It writes the last one twice."""
    options = {"filename_tmpl": "model_{:07d}.pth", "final_name": "model_final.pth", "interval": 2, "evaluator": False}
    runner, written = iterations(make_runner, "even", count=4, **options)
    folder = Path(runner.work_dir)
    assert names(runner) == {"model_0000002.pth", "model_0000004.pth", "model_final.pth"}
    assert written == ["model_0000002.pth", "model_0000004.pth"]
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    assert (folder / "model_final.pth").samefile(folder / "model_0000004.pth")
    runner, written = iterations(make_runner, "odd", count=5, max_keep_ckpts=1, **options)
    assert names(runner) == {"model_0000004.pth", "model_final.pth"}
    assert written[-1] == "model_final.pth"
    assert load_checkpoint_file(Path(runner.work_dir, "model_final.pth"))["meta"]["iter"] == 5


def test_period_and_number_of_files(make_runner):
    """fvcore's case: every tenth of 100 steps, and the last three of them."""
    runner, _ = iterations(make_runner, "all", count=100, evaluator=False)
    assert names(runner) == {f"iter_{number}.pth" for number in range(10, 101, 10)}
    runner, _ = iterations(make_runner, "three", count=100, evaluator=False, max_keep_ckpts=3)
    assert names(runner) == {"iter_80.pth", "iter_90.pth", "iter_100.pth"}
    # The same steps, ten times as often: a file has no history in it (some bytes are digits of numbers).
    sizes = [Path(runner.work_dir, f"iter_{number}.pth").stat().st_size for number in (80, 100)]
    first = Path(runner.work_dir, "..", "all", "iter_10.pth").stat().st_size
    assert max(abs(size - first) for size in sizes) < 600


def test_a_save_starts_no_process_and_formats_no_config(make_runner, monkeypatch):
    """mmengine formats the config and asks git at each save, for seconds."""

    class Forbid(Hook):
        def before_train(self, runner):
            for place, name in ((subprocess.Popen, "__init__"), (Config, "pretty_text"), (runner_module, "dump")):
                monkeypatch.setattr(place, name, lambda *_, name=name: pytest.fail(f"{name} was called"))

    runner = make_runner(epochs=2)
    runner.register_hook(Forbid())
    runner.train()
    assert "epoch_2.pth" in names(runner)
    assert "SGD" in load_checkpoint_file(Path(runner.work_dir, "epoch_2.pth"))["meta"]["cfg"]


def test_checkpoints_may_be_elsewhere(make_runner, tmp_path):
    options = {"epochs": 1, "save_best": "toy/mAP", "out_dir": str(tmp_path / "store")}
    first = run(make_runner, **options)
    assert names(first) == set()
    store = tmp_path / "store" / "run"
    assert {path.name for path in store.iterdir()} == {"epoch_1.pth", "best_toy_mAP_epoch_1.pth", "last_checkpoint"}
    assert run(make_runner, **options | {"epochs": 2}, resume=True).iter == 6
    assert (store / "epoch_2.pth").is_file()


def test_published_files_hold_what_is_asked_for(make_runner):
    runner = run(make_runner, epochs=2, values=(0.2, 0.1), save_best="toy/mAP", published_keys=["state_dict", "meta"])
    published = sorted(name for name in names(runner) if "-" in name)
    assert [name.partition("-")[0] for name in published] == ["best_toy_mAP_epoch_1", "epoch_2"]
    for name in published:
        content = load_checkpoint_file(Path(runner.work_dir, name))
        assert content.keys() == {"state_dict", "meta"}
        assert hashlib.sha256(Path(runner.work_dir, name).read_bytes()).hexdigest()[:8] == name.partition("-")[2][:8]
    assert run(make_runner, epochs=3, resume=True).iter == 9  # from epoch_2.pth, not from what was published


def test_a_run_that_is_stopped_early_is_saved(make_runner):
    class Stop(Hook):
        priority = "LOW"

        def after_val_epoch(self, runner, metrics=None):
            runner.train_loop.stop_training = runner.epoch == 2

    for failing in (False, True):
        hooks = toy_config("")["default_hooks"] | {"checkpoint": {"type": "CheckpointHook", "interval": 3}}
        runner = make_runner(f"run_{failing}", epochs=4, default_hooks=hooks)
        runner.register_hook(Stop())
        if failing:  # an error is no end that is to be saved
            runner.register_hook(Fails())
        with pytest.raises(ZeroDivisionError) if failing else nullcontext():
            runner.train()
        assert names(runner) == (set() if failing else {"epoch_2.pth"})


def test_an_interval_in_epochs_of_a_run_by_iterations_is_warned_of(make_runner):
    for by_epoch in (True, False):
        hooks = {"checkpoint": {"type": "CheckpointHook", "interval": 1, "by_epoch": by_epoch}}
        runner = make_runner(str(by_epoch), train_cfg={"by_epoch": False, "max_iters": 2}, default_hooks=hooks)
        runner.train()
        assert ("nothing is saved before the end" in Path(runner.logger.log_file).read_text()) == by_epoch


def test_a_run_that_is_stopped_inside_an_epoch_leaves_the_last_epochs_checkpoint_alone(make_runner):
    class Stop(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            runner.train_loop.stop_training = runner.iter + 1 == 7  # of 3 per epoch

    runner = make_runner(epochs=4)
    runner.register_hook(Stop())
    runner.train()
    assert names(runner) == {"epoch_1.pth", "epoch_2.pth", "iter_7.pth"}
    assert load_checkpoint_file(Path(runner.work_dir, "epoch_2.pth"))["meta"]["iter"] == 6
    resumed = run(make_runner, epochs=4, resume=True)
    assert (resumed.epoch, resumed.iter) == (4, 12)
    whole = run(make_runner, "whole", epochs=4)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


class Fails(Hook):
    def after_train_epoch(self, runner):
        if runner.epoch == 1:
            raise ZeroDivisionError


def test_a_moved_folder_is_resumed_from(make_runner, tmp_path):
    """mmengine looks for the old place, or resumes a copy from the original's files."""
    run(make_runner, epochs=2)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "run").rename(tmp_path / "moved")
    for name in ("moved", "copy"):
        assert run(make_runner, name, epochs=3, resume=True).iter == 9
        assert (tmp_path / name / "epoch_3.pth").is_file()


def test_weights_to_start_from_are_no_run(make_runner, tmp_path):
    """Detectron2's file says iteration 89999: the run starts at 0, whether resuming was asked for or not."""
    weights = make_runner("source").model.state_dict()
    save_checkpoint_file({"model": weights, "iteration": 89999, "__author__": "x"}, tmp_path / "weights.pth")
    for resume in (False, True):
        runner = make_runner(f"run_{resume}", epochs=1, load_from=str(tmp_path / "weights.pth"), resume=resume)
        runner.train()
        assert (runner.epoch, runner.iter) == (1, 3)
        assert "epoch_1.pth" in names(runner)


@pytest.mark.parametrize(
    ("options", "values", "best"),
    [
        ({"save_best": "auto", "rule": "less"}, (0.3, 0.1, 0.2), {"toy/mAP": 0.1}),
        ({"save_best": "toy/mAP", "less_keys": ["map"]}, (0.3, 0.1, 0.2), {"toy/mAP": 0.1}),
        ({"save_best": "toy/loss", "greater_keys": "loss"}, (0.3, 0.1, 0.2), {"toy/loss": 1.0}),
        (
            {"save_best": ["toy/mAP", "toy/loss"], "rule": ["less", "greater"]},
            (0.3, 0.1),
            {"toy/mAP": 0.1, "toy/loss": 1},
        ),
    ],
)
def test_rules_are_told_by_name_or_given(make_runner, options, values, best):
    runner = run(make_runner, epochs=len(values), values=values, **options)
    assert {key: record["score"] for key, record in best_of(runner).items()} == best


def test_a_run_starts_from_weights_under_other_names(make_runner, tmp_path, capfd):
    source = make_runner("source").model
    head = {name.replace("fc", "linear"): value + 1 for name, value in source.bbox_head.state_dict().items()}
    path = tmp_path / "head.pth"
    save_checkpoint_file({"model_state": {f"net.{name}": value for name, value in head.items()}}, path)
    runner = make_runner("rules")
    runner.load_checkpoint(path, revise_keys=[(r"^net\.linear", "fc")])  # by their ends, as pycls's files ask for
    assert torch.equal(runner.model.bbox_head.fc.bias, head["linear.bias"])
    save_checkpoint_file({"fc.bias": head["linear.bias"]}, path)
    runner = make_runner("query", epochs=1, load_from=f"{path}?matching_heuristics=True")
    runner.train()
    assert "1 by the end of their names (fc.bias as bbox_head.fc.bias)" in capfd.readouterr().err
    with pytest.raises(ValueError, match=r"head\.pth: no tensor of it fits this model"):
        make_runner("plain", epochs=1, load_from=str(path)).train()


def test_metrics_that_improve_together_share_one_write(make_runner):
    runner, written = iterations(make_runner, count=10, values=(0.5,), save_best=["toy/mAP", "toy/loss"])
    one, two = (Path(runner.work_dir, f"best_toy_{key}_iter_10.pth") for key in ("mAP", "loss"))
    assert one.samefile(two)
    assert sum(name.startswith("best_") for name in written) == 1
    assert load_checkpoint_file(two)["meta"]["metric"] == {"toy/mAP": 0.5, "toy/loss": 1.0}
