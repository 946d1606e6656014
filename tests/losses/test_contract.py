"""What every loss of the table promises: gradients, precision, tracing, no waiting, empty input, clear refusals."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import pytest
import torch
from losses.loss_table import TABLE, Entry
from no_sync import NoSync
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from detkit import losses
from detkit.losses import GHMC, GHMR, DDQAuxLoss, L2Loss
from detkit.registry import MODELS

every_loss = pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.id) for entry in TABLE])


def has(loss: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(loss.forward).parameters


def losses_with(*arguments: str, values: bool = False) -> pytest.MarkDecorator:
    """Parametrize with the losses whose ``forward`` has these arguments, and that have one value per sample.

    Seesaw has two losses, and Gaussian focal loss at given positions has a term per position.
    """
    found = [
        pytest.param(entry, id=entry.id)
        for entry in TABLE
        if all(has(entry.build(), argument) for argument in arguments)
        and not (values and (entry.id.startswith("Seesaw") or "pos_inds" in entry.make_inputs(6, torch.float64)))
    ]
    return pytest.mark.parametrize("entry", found)


def total(out: Any) -> Tensor:
    """Sum of all that a loss returns."""
    if isinstance(out, Tensor):
        return out.sum()
    return sum(total(value) for value in (out.values() if isinstance(out, Mapping) else out))


def prepare(entry: Entry, num: int, dtype: torch.dtype, **options: Any) -> tuple[nn.Module, dict[str, Any], str]:
    """A fresh loss (some keep statistics), its arguments, and the name of the one that is differentiated."""
    loss = entry.build(**options)
    inputs = entry.make_inputs(num, dtype)
    first = next(iter(inputs))
    inputs[first].requires_grad_()
    if has(loss, "avg_factor") and options.get("reduction") != "sum":
        inputs["avg_factor"] = 2.0
    return loss, inputs, first


def on_all_tensors(change: Callable[[Tensor], Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with every tensor changed, those in tuples too."""

    def changed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        return tuple(map(changed, value)) if isinstance(value, tuple) else value

    return {name: changed(value) for name, value in inputs.items()}


def strided(x: Tensor) -> Tensor:
    """The same values with gaps between them."""
    return torch.stack([x, x], dim=-1)[..., 0]


def test_the_table_holds_every_registered_loss():
    MODELS.get("L1Loss")  # registers all of them
    registered = {cls for cls in MODELS.module_dict.values() if cls.__module__.startswith("detkit.losses.")}
    # DDQAuxLoss has no forward: it assigns a batch of images first, and its own test holds it to the promises.
    assert {type(entry.build()) for entry in TABLE} == registered - {DDQAuxLoss}


# Functions under names that MMDetection's have too, there with a weight as the third argument.
WEIGHTED_THERE = [
    losses.balanced_l1_loss,
    losses.binary_cross_entropy,
    losses.bounded_iou_loss,
    losses.ciou_loss,
    losses.cross_entropy,
    losses.dice_loss,
    losses.diou_loss,
    losses.distribution_focal_loss,
    losses.eiou_loss,
    losses.gaussian_focal_loss,
    losses.giou_loss,
    losses.iou_loss,
    losses.knowledge_distillation_kl_div_loss,
    losses.l1_loss,
    losses.l2_loss,
    losses.mse_loss,
    losses.multi_pos_cross_entropy,
    losses.quality_focal_loss,
    losses.sigmoid_focal_loss,
    losses.siou_loss,
    losses.smooth_l1_loss,
    losses.varifocal_loss,
]


@pytest.mark.parametrize("function", WEIGHTED_THERE)
def test_a_weight_by_position_is_no_other_parameter(function):
    with pytest.raises(TypeError, match="positional argument"):
        function(torch.zeros(1, 4), torch.zeros(1, 4), torch.ones(1))


@every_loss
def test_gradients_are_those_of_finite_differences(entry):
    _, inputs, first = prepare(entry, 6, torch.float64)

    def value(pred):
        return total(entry.build()(**{**inputs, first: pred}))

    assert torch.autograd.gradcheck(value, (inputs[first],), check_undefined_grad=False)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(entry, dtype):
    loss, inputs, first = prepare(entry, 6, dtype)
    with torch.autocast("cpu", dtype):
        out = total(loss(**inputs))
    assert out.dtype == torch.float32
    (grad,) = torch.autograd.grad(out, inputs[first])
    assert grad.dtype == dtype
    assert torch.isfinite(grad).all()
    full = {
        name: value.detach().float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    torch.testing.assert_close(out, total(entry.build()(**full)), rtol=1e-4, atol=1e-5)


@every_loss
def test_traces_into_one_graph(entry):
    torch._dynamo.reset()
    loss, inputs, first = prepare(entry, 6, torch.float32)
    out = total(torch.compile(loss, backend="eager", fullgraph=True)(**inputs))
    expected = total(entry.build()(**inputs))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.autograd.grad(out, inputs[first]), torch.autograd.grad(expected, inputs[first]))


@every_loss
def test_nothing_waits_for_the_device(entry):
    loss, inputs, _ = prepare(entry, 6, torch.float32)
    with NoSync():
        total(loss(**inputs)).backward()


@every_loss
def test_on_a_gpu_nothing_stays_on_the_host(entry):
    """Under fake tensors, which know their device and hold no values: any machine can run this."""
    with FakeTensorMode(), mock.patch.object(Tensor, "pin_memory", lambda x: x):
        loss = entry.build().to("cuda")
        inputs = on_all_tensors(lambda x: x.to("cuda"), entry.make_inputs(6, torch.float32))
        with NoSync():
            out = total(loss(**inputs))
    assert out.device.type == "cuda"


@every_loss
def test_runs_without_values(entry):
    """On the meta device, with which shapes and memory of a model are planned."""
    loss, inputs, first = prepare(entry, 6, torch.float32)
    inputs = on_all_tensors(lambda x: x.detach().to("meta"), inputs)
    inputs[first].requires_grad_()
    total(loss.to("meta")(**inputs)).backward()
    assert inputs[first].grad.shape == inputs[first].shape


@every_loss
def test_memory_may_have_gaps(entry):
    loss, inputs, first = prepare(entry, 6, torch.float32)
    expected = total(loss(**inputs))
    out = total(entry.build()(**on_all_tensors(strided, inputs)))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.autograd.grad(out, inputs[first]), torch.autograd.grad(expected, inputs[first]))


@losses_with("reduction_override", values=True)
def test_mean_and_sum_are_those_of_the_values(entry):
    loss, inputs, _ = prepare(entry, 6, torch.float64)
    values = entry.build(reduction="none")(**inputs)
    assert values.shape[0] == 6
    if isinstance(loss, (GHMC, GHMR, L2Loss)):
        return  # they count their own divisor
    torch.testing.assert_close(total(loss(**inputs)), values.sum() / 2)
    del inputs["avg_factor"]
    torch.testing.assert_close(total(entry.build(reduction="sum")(**inputs)), values.sum())
    torch.testing.assert_close(total(entry.build()(**inputs)), values.mean())


@every_loss
def test_inputs_are_left_as_they_are(entry):
    loss, inputs, _ = prepare(entry, 6, torch.float32)
    before = {name: value.detach().clone() for name, value in inputs.items() if isinstance(value, Tensor)}
    total(loss(**inputs)).backward()
    for name, value in before.items():
        torch.testing.assert_close(inputs[name].detach(), value, rtol=0, atol=0)


@every_loss
@pytest.mark.parametrize("avg_factor", [None, 1.0])
def test_nothing_gives_a_zero_with_gradient(entry, avg_factor):
    loss, inputs, first = prepare(entry, 0, torch.float32)
    if has(loss, "avg_factor"):
        inputs["avg_factor"] = avg_factor
    out = total(loss(**inputs))
    assert out == 0
    (grad,) = torch.autograd.grad(out, inputs[first])
    assert torch.isfinite(grad).all()
    assert not grad.any()


@losses_with("reduction_override")
@pytest.mark.parametrize("unknown", ["avg", "", False])
def test_an_unknown_reduction_is_refused_by_name(entry, unknown):
    loss, inputs, _ = prepare(entry, 6, torch.float32)
    message = rf"{type(loss).__name__}: reduction {unknown!r} is not one of 'none', 'mean', 'sum'"
    with pytest.raises(ValueError, match=message):
        entry.build(reduction=unknown)
    with pytest.raises(ValueError, match=message):
        loss(**inputs, reduction_override=unknown)


@losses_with("avg_factor")
def test_a_sum_has_no_average_factor(entry):
    loss, inputs, _ = prepare(entry, 6, torch.float32)
    with pytest.raises(ValueError, match=r"avg_factor.*sum|sum.*avg_factor"):
        loss(**inputs, reduction_override="sum")
