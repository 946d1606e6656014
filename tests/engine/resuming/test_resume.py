"""Resuming at any iteration: the weights and the order of samples of the run that was never interrupted."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from engine.engine_toys import toy_config

from detkit.engine import Hook, load_checkpoint_file
from detkit.registry import DATA_SAMPLERS, DATASETS

EPOCH = {"train_cfg": {"by_epoch": True, "max_epochs": 3}}
ITERATION = {
    "train_cfg": {"by_epoch": False, "max_iters": 9, "val_interval": 4},
    "param_scheduler": [{"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 4}],
}
INFINITE = {
    **ITERATION,
    "train_dataloader": toy_config("")["train_dataloader"] | {"sampler": {"type": "InfiniteSampler"}},
}
KINDS = {
    "plain": {},
    "remembering": {"model": {"type": "RememberingToy", "bbox_head": {"type": "ToyHead"}}},
    "ema": {"custom_hooks": [{"type": "EMAHook", "momentum": 0.1, "update_buffers": True}]},
    "accumulation": {
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}, "accumulative_counts": 2}
    },
    "bf16": {
        "optim_wrapper": {"type": "AmpOptimWrapper", "dtype": "bfloat16", "optimizer": {"type": "SGD", "lr": 0.1}}
    },
}


class Trace(Hook):
    """Notes the samples of each iteration, and stops the run after one of them."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.images: list[tuple[str, ...]] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.stop_after:
            raise KeyboardInterrupt
        self.images.append(tuple(sample.img_path for sample in data_batch["data_samples"]))


def every_iteration(changes: dict, workers: int = 0) -> dict:
    hooks = toy_config("")["default_hooks"] | {
        "checkpoint": {"type": "CheckpointHook", "interval": 1, "by_epoch": False}
    }
    loader = changes.get("train_dataloader", toy_config("")["train_dataloader"]) | {"num_workers": workers}
    return {**changes, "default_hooks": hooks, "train_dataloader": loader}


def end_of(folder: Path) -> dict:
    return load_checkpoint_file(folder / (folder / "last_checkpoint").read_text())


def equal(one, two) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(equal, one, two))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("loop", "stop"), [("epoch", 4), ("iteration", 5), ("infinite", 7)])
def test_resumed_within_an_epoch_a_run_ends_with_the_same_weights(make_runner, tmp_path, loop, stop, kind):
    changes = every_iteration({**{"epoch": EPOCH, "iteration": ITERATION, "infinite": INFINITE}[loop], **KINDS[kind]})
    whole, cut, rest = Trace(), Trace(stop), Trace()
    runner = make_runner("whole", **changes)
    runner.register_hook(whole)
    runner.train()
    runner = make_runner("cut", **changes)
    runner.register_hook(cut)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    runner = make_runner("cut", resume="auto", **changes)
    runner.register_hook(rest)
    runner.train()
    one, two = end_of(tmp_path / "whole"), end_of(tmp_path / "cut")
    for part in ("state_dict", "optimizer", "rng", "position"):
        assert equal(one[part], two[part]), part
    assert len(whole.images) == 9
    assert cut.images + rest.images == whole.images
    assert [len(set(sum(whole.images[i : i + 3], ()))) for i in (0, 3, 6)] == [12, 12, 12]


def test_workers_do_not_change_what_a_resumed_run_sees(make_runner, tmp_path):
    for name, workers in (("none", 0), ("two", 2)):
        runner = make_runner(name, **every_iteration(EPOCH, workers))
        runner.register_hook(Trace(5))
        with pytest.raises(KeyboardInterrupt):
            runner.train()
        make_runner(name, resume=True, **every_iteration(EPOCH, 2 - workers)).train()
    assert equal(end_of(tmp_path / "none")["state_dict"], end_of(tmp_path / "two")["state_dict"])


@DATASETS.register_module()
class SlowToys(DATASETS.get("ToyDataset")):
    """Ten milliseconds per sample, and a count of the samples that were made."""

    def __init__(self) -> None:
        super().__init__(size=40_000)
        self.made = 0

    def __getitem__(self, index):
        self.made += 1
        time.sleep(0.01)
        return super().__getitem__(index)


@pytest.mark.parametrize("sampler", ["DefaultSampler", "InfiniteSampler"])
def test_a_run_resumed_at_step_10000_steps_at_once(make_runner, tmp_path, sampler):
    loader = {"dataset": {"type": "SlowToys"}, "sampler": {"type": sampler, "shuffle": True}, "batch_size": 4}
    options = {"train_dataloader": loader, "val_dataloader": None, "val_cfg": None, "val_evaluator": None}
    changes = every_iteration({"param_scheduler": None, **options})
    cfg = {"by_epoch": False, "max_iters": 10_002}
    runner = make_runner(**changes, train_cfg=cfg)
    runner.register_hook(JumpTo(10_000))
    runner.train()
    runner = make_runner(**changes, train_cfg=cfg | {"max_iters": 10_004}, resume=True)
    start = time.perf_counter()
    runner.train()
    assert runner.iter == 10_004
    assert time.perf_counter() - start < 5
    assert runner.train_dataloader.dataset.made == 8


class JumpTo(Hook):
    """Lets a run begin at an iteration, as if it had been trained up to there."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_train_epoch(self, runner):
        per_pass = len(runner.train_dataloader)
        position = {"epoch": 0, "batch": self.iteration} if per_pass > self.iteration else {"epoch": 1, "batch": 0}
        runner.train_loop.load_state_dict({**position, "validated": 0}, 0, self.iteration)


def test_a_batch_can_be_loaded_again(make_runner):
    class Reload(Hook):
        def __init__(self) -> None:
            self.batches = []

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.batches.append(torch.stack(data_batch["inputs"]))
            state = torch.get_rng_state()
            for back in range(min(len(self.batches), 3)):
                again = torch.stack(runner.train_loop.load_again(runner.iter + 1 - back)["inputs"])
                assert torch.equal(again, self.batches[-1 - back])
            assert torch.equal(torch.get_rng_state(), state)

    plain, watched = make_runner("plain", epochs=2), make_runner("watched", epochs=2)
    reload = Reload()
    watched.register_hook(reload)
    plain.train()
    watched.train()
    assert len(reload.batches) == 6
    assert equal(plain.model.state_dict(), watched.model.state_dict())
    with pytest.raises(ValueError, match="cannot be loaded again"):
        watched.train_loop.load_again(0)


@pytest.mark.parametrize("changes", [EPOCH, ITERATION])
def test_a_loader_is_replaced_within_a_run(make_runner, changes):
    seen = []

    class Replace(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            seen.append(len(data_batch["data_samples"]))

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 3:
                small = toy_config("")["train_dataloader"] | {"batch_size": 2}
                runner.train_loop.reset_dataloader(lambda: runner.build_dataloader(small, runner.seed))

    runner = make_runner(**changes)
    runner.register_hook(Replace())
    runner.train()
    assert seen[:4] == [4, 4, 4, 4]
    assert set(seen[4:]) == {2}
    runner.train()  # nothing is left to do, and nothing fails


@pytest.mark.parametrize(
    ("cfg", "validations"),
    [
        ({"by_epoch": False, "max_iters": 30, "val_interval": 15}, 2),
        ({"by_epoch": False, "max_iters": 31, "val_interval": 15}, 3),
        ({"by_epoch": False, "max_iters": 20, "val_interval": 0}, 1),
        ({"by_epoch": True, "max_epochs": 3, "val_interval": 0}, 1),
        ({"by_epoch": True, "max_epochs": 3, "val_interval": 2}, 2),
    ],
)
def test_how_often_a_run_validates(make_runner, cfg, validations):
    runner = make_runner(train_cfg=cfg, param_scheduler=None)
    runner.train()
    assert runner.val_evaluator.metrics[0].count == validations


@pytest.mark.parametrize("fail_at", [7, 8])
def test_a_run_that_fails_is_not_validated_at_its_end(make_runner, fail_at):
    class Fail(Hook):
        ended = False

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == fail_at:
                raise RuntimeError("the machine is on fire")

        def after_train(self, runner):
            self.ended = True

    runner = make_runner(train_cfg={"by_epoch": False, "max_iters": 9, "val_interval": 0}, param_scheduler=None)
    hook = Fail()
    runner.register_hook(hook)
    with pytest.raises(RuntimeError, match="on fire"):
        runner.train()
    assert runner.val_evaluator.metrics[0].count == 0
    assert hook.ended
    assert not runner.train_completed


def test_a_pass_shorter_than_announced_is_told(make_runner, capfd):
    class Announcing(torch.utils.data.BatchSampler):
        def __len__(self):
            return 5

    DATA_SAMPLERS.register_module(name="AnnouncingBatches", module=Announcing, force=True)
    loader = toy_config("")["train_dataloader"] | {"batch_sampler": {"type": "AnnouncingBatches", "drop_last": False}}
    make_runner(epochs=1, train_dataloader=loader).train()
    assert "its batch sampler announced 5 batches and gave 3" in capfd.readouterr().err
