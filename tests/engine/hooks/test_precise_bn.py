"""Statistics of batch norms over many batches; numbers of fvcore's tests and of Detectron2's hook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine.engine_toys import ToyModel
from torch import nn

from detkit.engine import Hook, PreciseBNHook, load_checkpoint_file
from detkit.engine.model.batch_norm import update_bn_stats
from detkit.events import get_event_storage
from detkit.registry import HOOKS, MODELS

KINDS = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@pytest.mark.parametrize("shape", [(16, 8, 24), (16, 8, 24, 8), (16, 8, 4, 12, 6)])
def test_statistics_are_the_populations_however_it_is_split(shape):
    torch.manual_seed(0)
    batches = [torch.randn(shape) * 3 + 100 for _ in range(8)]
    whole = torch.cat(batches).double()
    dims = [0, *range(2, whole.ndim)]
    layer = KINDS[whole.ndim](8)
    weight = nn.init.normal_(layer.weight).detach().clone()
    splits = (batches, torch.cat(batches)[: 2 + 2 + 4 + 8 + 16 + 32 + 64].split([2, 2, 4, 8, 16, 32, 64]))
    for part in splits:
        assert update_bn_stats(layer, part, len(part)) == [""]
        values = torch.cat(list(part)).double()
        torch.testing.assert_close(layer.running_mean.double(), values.mean(dims), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(layer.running_var.double(), values.var(dims, correction=0), rtol=1e-4, atol=1e-5)
    assert torch.equal(layer.weight, weight)
    assert layer.num_batches_tracked == 0


def test_by_hand():
    layer = nn.BatchNorm1d(1)
    update_bn_stats(layer, [torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [4.0], [6.0], [8.0]])], 2)
    # 1, 3, 2, 4, 6, 8: mean 4, squares of the differences 9 + 1 + 4 + 0 + 4 + 16
    assert layer.running_mean.item() == 4.0
    assert layer.running_var.item() == pytest.approx(34 / 6)
    assert layer.momentum == 0.1


class Parts(nn.Module):
    """Layers that are frozen, keep nothing, are used twice or never, and a statistic of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.BatchNorm1d(1)
        self.frozen = nn.BatchNorm1d(1).eval()
        self.plain = nn.BatchNorm1d(1, track_running_stats=False)
        self.unused = nn.BatchNorm1d(1)
        self.register_buffer("seen", torch.zeros(()))
        self.fails = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        if self.fails:
            raise RuntimeError("broken")
        return self.plain(self.frozen(self.twice(self.twice(x))))


def test_only_layers_that_train_and_are_used_change():
    model = Parts()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batches = [torch.tensor([[1.0], [3.0]])] * 3
    assert update_bn_stats(model, batches, 2) == ["twice"]
    # values 1, 3 and, normalised, about -1, 1: mean 1, squares 1 + 9 + 1 + 1 over 4, less 1
    assert model.twice.running_mean.item() == pytest.approx(1.0)
    assert model.twice.running_var.item() == pytest.approx(2.0, abs=1e-4)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"twice.running_mean", "twice.running_var"}


def test_an_error_changes_nothing():
    model = Parts()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="over 20 batches were asked for, and there are 10"):
        update_bn_stats(model, [torch.randn(4, 1)] * 10, 20)
    model.fails = True
    with pytest.raises(RuntimeError, match="broken"):
        update_bn_stats(model, [torch.randn(4, 1)] * 10, 5)
    with pytest.raises(ValueError, match="num_iters must be at least 1, got 0"):
        update_bn_stats(model, [], 0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.twice.momentum == 0.1
    assert model.training
    assert not model.frozen.training
    assert not model.twice._forward_pre_hooks


def test_compiled_models_are_seen_into_and_not_compiled_again():
    compilations: list[int] = []

    def backend(graph, _):
        compilations.append(1)
        return graph.forward

    model = nn.Sequential(nn.BatchNorm1d(1))
    compiled = torch.compile(model, backend=backend)
    compiled(torch.randn(4, 1))
    update_bn_stats(compiled, [torch.tensor([[1.0], [3.0]])] * 2, 2)
    assert model[0].running_mean.item() == 2.0
    assert len(compilations) == 1


@MODELS.register_module()
class StatisticsNotingModel(ToyModel):
    """Notes a value where the run keeps its records."""

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        if mode == "loss":
            get_event_storage().put_scalar("noted", 1.0)
        return super().forward(inputs, data_samples, mode)


@HOOKS.register_module()
class StatisticsHook(Hook):
    """Notes statistics and random numbers after each iteration, before the checkpoint."""

    priority = "LOW"

    def __init__(self) -> None:
        self.means: list[torch.Tensor] = []
        self.draws: list[torch.Tensor] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.means.append(runner.model.body[1].running_mean.clone())
        self.draws.append(torch.rand(2))


def notes(runner: Any) -> StatisticsHook:
    return next(hook for hook in runner.hooks if isinstance(hook, StatisticsHook))


NO_VALIDATION = {"val_cfg": None, "val_dataloader": None, "val_evaluator": None}
NOTING = {"type": "StatisticsNotingModel", "bbox_head": {"type": "ToyHead"}}


def run(make_runner: Any, name: str, **changes: Any) -> tuple[Any, StatisticsHook, dict[str, Any]]:
    hooks = [*changes.pop("hooks", ()), {"type": "StatisticsHook"}]
    runner = make_runner(name, epochs=2, model=NOTING, custom_hooks=hooks, **NO_VALIDATION, **changes)
    runner.train()
    return runner, notes(runner), load_checkpoint_file(Path(runner.work_dir, "epoch_2.pth"))


def test_the_training_sees_nothing_of_it(make_runner):
    plain, before, expected = run(make_runner, "plain")
    hook = {"type": "PreciseBNHook", "interval": 1, "num_iters": 7}
    runner, after, checkpoint = run(make_runner, "precise", hooks=[hook])
    assert all(map(torch.equal, before.draws, after.draws))
    differing = {
        key for key, value in checkpoint["state_dict"].items() if not torch.equal(value, expected["state_dict"][key])
    }
    assert differing == {"body.1.running_mean", "body.1.running_var"}
    # What the checkpoint has was computed before it was written, at the ends of both epochs.
    assert torch.equal(checkpoint["state_dict"]["body.1.running_mean"], after.means[-1])
    assert [torch.equal(one, other) for one, other in zip(before.means, after.means, strict=True)] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
    counts = [len(one.events.history("noted").values()) for one in (plain, runner)]
    assert counts == [6, 6]


def test_its_statistics_are_those_of_its_data(make_runner):
    hook = {"type": "PreciseBNHook", "num_iters": 6}
    runner, seen, checkpoint = run(make_runner, "run", hooks=[hook])
    assert len({tuple(mean.tolist()) for mean in seen.means}) == 6
    precise = next(one for one in runner.hooks if isinstance(one, PreciseBNHook))
    inputs = []
    handle = runner.model.body[1].register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach().clone()))
    runner.train_loop._iter -= 1  # as at the end of the last iteration
    precise.estimate(runner)
    handle.remove()
    assert len(inputs) == 6
    values = torch.cat(inputs)
    state = checkpoint["state_dict"]
    torch.testing.assert_close(state["body.1.running_mean"], values.mean(0))
    torch.testing.assert_close(state["body.1.running_var"], values.var(0, correction=0))
    runner.train_loop._iter += 1
    precise.estimate(runner)
    assert not torch.equal(runner.model.body[1].running_mean, state["body.1.running_mean"])  # other images


def test_a_resumed_run_computes_the_same_and_its_data_may_be_others(make_runner):
    loader = {
        "dataset": {"type": "ToyDataset"},
        "sampler": {"type": "GlobalShuffle"},
        "batch_size": 4,
        "num_workers": 0,
    }
    hook = {"type": "PreciseBNHook", "interval": 1, "num_iters": 4, "dataloader": loader}
    _, seen, whole = run(make_runner, "whole", hooks=[hook])
    make_runner("cut", epochs=1, model=NOTING, custom_hooks=[hook, {"type": "StatisticsHook"}], **NO_VALIDATION).train()
    _, again, resumed = run(make_runner, "cut", hooks=[hook], resume=True)
    assert all(map(torch.equal, seen.means[3:], again.means))
    assert torch.equal(whole["state_dict"]["body.1.running_mean"], resumed["state_dict"]["body.1.running_mean"])
    _, _, trained_on = run(make_runner, "plain", hooks=[{**hook, "dataloader": None}])
    assert not torch.equal(whole["state_dict"]["body.1.running_mean"], trained_on["state_dict"]["body.1.running_mean"])


def test_an_average_takes_the_statistics_over(make_runner):
    hooks = [{"type": "EMAHook"}, {"type": "PreciseBNHook", "num_iters": 3}]
    _, seen, checkpoint = run(make_runner, "run", hooks=hooks)
    assert torch.equal(checkpoint["state_dict"]["body.1.running_mean"], seen.means[-1])


def test_without_batch_norms_it_does_nothing_and_says_so_once(make_runner):
    hook = {"type": "PreciseBNHook", "interval": 1}
    model = {"type": "ToyConvModel", "bbox_head": {"type": "ToyHead"}}
    runner = make_runner(epochs=2, model=model, custom_hooks=[hook], **NO_VALIDATION)
    runner.train()
    text = next(Path(runner.work_dir).glob("*/*.log")).read_text()
    assert text.count("PreciseBNHook: the model has no batch norm that trains") == 1
    assert next(one for one in runner.hooks if isinstance(one, PreciseBNHook))._stream is None


def test_arguments_are_checked(make_runner):
    for options in ({"interval": 0}, {"num_iters": 0}):
        with pytest.raises(ValueError, match="interval and num_iters must be at least 1"):
            PreciseBNHook(**options)
    wrong = {"datasets": {}}
    for hook, name in (
        ({"type": "PreciseBNHook", "dataloader": wrong}, "dataloader"),
        ({"type": "SWAHook", "begin_epoch": 1, "bn_dataloader": wrong}, "bn_dataloader"),
    ):
        runner = make_runner(epochs=1, custom_hooks=[hook], **NO_VALIDATION)
        with pytest.raises(KeyError, match=rf"custom_hooks\.0\.{name}\.datasets: unknown key; did you mean 'dataset'"):
            runner.train()
        assert runner.iter == 0  # before anything was trained
