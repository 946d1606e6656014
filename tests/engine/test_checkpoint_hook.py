"""Which checkpoints are kept, which is the best, and what a kill between two writes leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from engine.engine_toys import toy_config

from detkit.checkpoints import files
from detkit.engine import load_checkpoint_file
from detkit.engine.hooks import CheckpointHook


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
        ({"max_keep_ckpts": 0}, "max_keep_ckpts must be at least 1"),
        ({"rule": "higher", "save_best": "a"}, "rule must be 'greater' or 'less'"),
        ({"rule": ["less"], "save_best": ["a", "b"]}, "rule must be 'greater' or 'less'"),
        ({"filename_tmpl": "model.pth"}, "filename_tmpl must end in"),
    ],
)
def test_constructor_checks(options, message):
    with pytest.raises(ValueError, match=message):
        CheckpointHook(**options)


def test_killed_at_any_write_or_deletion_the_run_can_go_on(make_runner, monkeypatch):
    """Keeping one checkpoint and the best is the case in which mmengine loses everything."""

    class Killed(BaseException):
        pass

    replace, unlink = os.replace, Path.unlink
    left = 0

    def count(function, after):
        def wrapped(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0 and not after:
                raise Killed
            result = function(*args, **kwargs)
            if left == 0:
                raise Killed
            return result

        return wrapped

    options = {"epochs": 3, "values": (), "save_best": "toy/mAP", "max_keep_ckpts": 1}
    expected = names(run(make_runner, "whole", **options))
    killed = 0
    for after in (False, True):
        for step in range(2, 30):  # the first write is config.py
            left = step
            monkeypatch.setattr(files.os, "replace", count(replace, after))
            monkeypatch.setattr(Path, "unlink", count(unlink, after))
            try:
                run(make_runner, f"run_{step}_{after}", **options)
                break
            except Killed:
                killed += 1
            finally:
                monkeypatch.undo()
            runner = run(make_runner, f"run_{step}_{after}", **options, resume=True)
            assert names(runner) == expected, (step, after)
            assert all(load_checkpoint_file(Path(runner.work_dir, file)) for file in expected)
    assert killed > 15
