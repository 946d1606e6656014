"""Precision of float32 products and cuDNN's search, as ``env_cfg`` says."""

import pytest
import torch
from mmengine.hooks import Hook

from detkit.engine.environment import cudnn_benchmark, set_float32_precision


@pytest.fixture(autouse=True)
def _as_before():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[1:]


@pytest.mark.parametrize(
    ("precision", "convolutions"), [("highest", False), ("high", True), ("medium", True)], ids=lambda one: str(one)
)
def test_matrix_products_and_convolutions_agree(make_runner, precision, convolutions):
    torch.set_float32_matmul_precision("medium" if precision == "highest" else "highest")
    torch.backends.cudnn.allow_tf32 = not convolutions
    make_runner(env_cfg={"float32_precision": precision})
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32 is convolutions


def test_without_it_torch_is_left_alone(make_runner):
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = False
    make_runner()
    set_float32_precision(None)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("medium", False)


def test_what_is_wrong_is_refused(make_runner):
    with pytest.raises(ValueError, match=r"env_cfg.float32_precision: .* got 'hihg'; did you mean 'high'"):
        make_runner(env_cfg={"float32_precision": "hihg"})
    with pytest.raises(KeyError, match=r"env_cfg.cudnn_benchmrk: unknown key; did you mean 'cudnn_benchmark'"):
        make_runner(env_cfg={"cudnn_benchmrk": True})


@pytest.mark.parametrize("deterministic", [False, True])
def test_cudnn_searches_while_training_alone(make_runner, deterministic):
    """Not in evaluations, whose images have ever new shapes, nor in a deterministic run."""
    seen = []

    class Look(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            seen.append(("train", torch.backends.cudnn.benchmark))

        def before_val_iter(self, runner, batch_idx, data_batch=None):
            seen.append(("val", torch.backends.cudnn.benchmark))

        before_test_iter = before_val_iter

    randomness = {"seed": 0, "deterministic": deterministic}
    runner = make_runner(epochs=2, env_cfg={"cudnn_benchmark": True}, randomness=randomness)
    try:
        runner.register_hook(Look())
        assert not torch.backends.cudnn.benchmark
        runner.train()
        runner.test()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
    assert set(seen) == {("train", not deterministic), ("val", False)}
    assert seen[-1][0] == "val"
    assert seen.index(("val", False)) < len(seen) - 1 - seen[::-1].index(("train", not deterministic))
    assert not torch.backends.cudnn.benchmark


def test_the_setting_returns_after_an_error():
    with pytest.raises(KeyError), cudnn_benchmark(True):
        raise KeyError
    assert not torch.backends.cudnn.benchmark
