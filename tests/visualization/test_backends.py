"""Backends with a recorder in the place of the service, which the tests cannot reach."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

from detkit.registry import VISBACKENDS
from detkit.visualization import DetLocalVisualizer, WandbVisBackend


@pytest.fixture
def calls(monkeypatch):
    """A module that writes down what is called in it."""
    seen = []
    wandb = ModuleType("wandb")
    for name in ("init", "define_metric", "log", "finish"):
        setattr(wandb, name, lambda *args, name=name, **kwargs: seen.append((name, args, kwargs)))
    wandb.Image = lambda image: ("image", image.shape)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return seen


def test_wandb_gets_the_step_of_what_it_gets(calls, tmp_path):
    visualizer = DetLocalVisualizer(
        name="wandb", vis_backends=[{"type": "WandbVisBackend", "commit": False}], save_dir=str(tmp_path)
    )
    assert type(visualizer._vis_backends["WandbVisBackend"]) is WandbVisBackend
    assert VISBACKENDS.get("WandbVisBackend") is WandbVisBackend
    visualizer.add_scalars({"loss": 0.5}, step=50)
    visualizer.add_image("sample", np.zeros((2, 3, 3), np.uint8), step=40)
    visualizer.add_scalar("mAP", 0.3, step=50)
    visualizer.close()
    assert [name for name, _, _ in calls] == ["init", "define_metric", "define_metric", "log", "log", "log", "finish"]
    assert calls[2][1:] == (("*",), {"step_metric": "step"})
    assert [call[1:] for call in calls if call[0] == "log"] == [
        (({"loss": 0.5, "step": 50},), {"commit": False}),
        (({"sample": ("image", (2, 3, 3)), "step": 40},), {"commit": False}),
        (({"mAP": 0.3, "step": 50},), {"commit": False}),
    ]


def test_a_run_that_gave_it_nothing_starts_nothing(calls, tmp_path):
    visualizer = DetLocalVisualizer(name="none", vis_backends=[{"type": "WandbVisBackend"}], save_dir=str(tmp_path))
    visualizer.close()
    assert calls == []
