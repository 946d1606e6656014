"""tools/benchmark.py step: both models train on the same loss, and the table says what is no convolution."""

import importlib

import pytest
import torch
from run_here import run_here


def test_both_models_have_one_loss():
    done = run_here(
        "benchmark", "step", "--batch", "1", "--size", "64", "64", "--objects", "3", "--runs", "1", "--split"
    )
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split("|") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip() for row in rows] == ["retinanet", "fcos"]
    for _, *cells, losses in rows:
        yardstick, ours, ratio, rest_of_yardstick, rest_of_ours, _ = map(float, cells)
        assert ratio == pytest.approx(ours / yardstick, abs=0.02)
        assert 0 < rest_of_yardstick < yardstick
        assert 0 < rest_of_ours < ours
        # Of one image; anchors are rounded there, and points match otherwise at the borders of the ranges.
        expected, found = map(float, losses.split(","))
        assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "0"], "--batch, --size, --runs and --threads must be at least 1"),
        (["--size", "100", "64"], "--size must be multiples of 32, which neither model pads, got 100 64"),
        (["--split", "--dtype", "bfloat16"], "--split times convolutions in float32 alone"),
    ],
)
def test_wrong_arguments(arguments, message):
    done = run_here("benchmark", "step", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("what", ["step", "infer", "two-stage"])
def test_an_unknown_device_is_refused(what, monkeypatch, capsys):
    monkeypatch.syspath_prepend("tools")
    name = {"step": "benchmark_step", "infer": "benchmark_inference", "two-stage": "benchmark_two_stage"}[what]
    with pytest.raises(SystemExit):
        importlib.import_module(name).main(["--device", "gpu"])
    assert "device: 'cpu', 'cuda' or 'cuda:<index>' was expected, got 'gpu'" in capsys.readouterr().err


def test_the_clock_changes_no_gradient(monkeypatch):
    monkeypatch.syspath_prepend("tools")
    from benchmark_step import convolution_clock

    layer = torch.nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)
    x = torch.randn(1, 2, 8, 8, requires_grad=True)
    leaves = (x, *layer.parameters())
    expected = torch.autograd.grad(layer(x).square().sum(), leaves)
    with convolution_clock("cpu") as taken:
        found = torch.autograd.grad(layer(x).square().sum(), leaves)
    torch.testing.assert_close(found, expected)
    assert len(taken) == 2
    layer(x)
    assert len(taken) == 2
