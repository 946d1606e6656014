"""Every method's variant on the example data, on a GPU: what a step waits for, mixed precision, predictions."""

from __future__ import annotations

import importlib
import warnings
from contextlib import contextmanager

import pytest
import torch
import torchvision
from configs.test_slim_variants import BATCHES, SLIM, WAITS, expect_detections, model_of, raw_batch
from shipped import name_of, parametrized

from detkit.engine import AmpOptimWrapper, OptimWrapper
from detkit.engine.run.train_step import train_step

pytestmark = pytest.mark.gpu
STEPS = 12
# As torch says it; of the mode itself it warns in other words.
WAITS_FOR = "called a synchronizing CUDA operation"


@pytest.fixture
def model(path):
    return model_of(path).cuda()


def optimizer_of(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)


@contextmanager
def sync_debug_mode(mode):
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def without_counting(function):
    def called(*args, **kwargs):
        with sync_debug_mode("default"):
            return function(*args, **kwargs)

    return called


@pytest.fixture
def suppression_aside(monkeypatch):
    """What suppression waits for is not counted."""
    monkeypatch.setattr(torchvision.ops, "nms", without_counting(torchvision.ops.nms))
    module = importlib.import_module("detkit.ops.nms_match")
    monkeypatch.setattr(module, "_unsuppressed", without_counting(module._unsuppressed))


@pytest.mark.usefixtures("suppression_aside")
@pytest.mark.parametrize("kind", BATCHES)
@parametrized(SLIM)
def test_a_whole_step_waits_as_often_as_is_said(path, kind, model):
    """From the images on the host to the update."""
    wrapper = OptimWrapper(optimizer_of(model))
    wrapper.initialize_count_status(model, 0, 10)
    train_step(model, raw_batch(kind), wrapper)  # what is made once
    with warnings.catch_warnings(record=True) as found, sync_debug_mode("warn"):
        warnings.simplefilter("always")
        outputs = train_step(model, raw_batch(kind), wrapper)
    assert torch.isfinite(outputs["loss"])
    waits = [f"{one.filename}:{one.lineno}" for one in found if WAITS_FOR in str(one.message)]
    assert len(waits) == WAITS.get(name_of(path), (0, ""))[0], waits


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@parametrized(SLIM)
def test_steps_in_mixed_precision_are_finite_and_change_weights(path, dtype, model):
    wrapper = AmpOptimWrapper(optimizer=optimizer_of(model), dtype=dtype)
    wrapper.initialize_count_status(model, 0, 10)
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    after = [p for p in model.parameters() if p.requires_grad]

    def changed():
        return any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))

    for step in range(STEPS):
        outputs = train_step(model, raw_batch(("all", "some")[step % 2]), wrapper)
        assert outputs["loss"].dtype == torch.float32
        assert torch.isfinite(outputs["loss"])
        if step > 2 and changed():
            break  # float16 halves the scale of its gradients first, once a step
    assert changed()


@parametrized(SLIM)
def test_predictions_after_some_steps(path, model):
    wrapper = OptimWrapper(optimizer_of(model))
    wrapper.initialize_count_status(model, 0, 10)
    for _ in range(STEPS):
        train_step(model, raw_batch("all"), wrapper)
    expect_detections(model)
