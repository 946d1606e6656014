"""One training step: which entries are optimised, what comes back, whose step and parsing are used."""

from __future__ import annotations

import pytest
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from detkit.engine import OptimWrapper
from detkit.engine.run.train_step import sum_losses, train_step


class Net(BaseModel):
    """Returns what ``outputs`` makes of its two weights, 1 and 2."""

    def __init__(self, outputs) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.outputs = outputs

    def forward(self, inputs: Tensor, mode: str = "tensor"):
        assert mode == "loss"
        return self.outputs(self.weight * inputs)


def step(outputs, cls=Net) -> tuple[dict, list[float]]:
    """Outputs of one step, and what was taken off the weights: the gradient, as the learning rate is 1."""
    model = cls(outputs).train()
    values = train_step(model, {"inputs": torch.ones(2)}, OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0)))
    return values, (torch.tensor([1.0, 2.0]) - model.weight.detach()).tolist()


def test_entries_named_loss_are_summed_and_the_rest_is_reported():
    values, gradient = step(lambda w: {"loss_a": w[0], "acc": w[1].detach(), "aux.loss": 3 * w[1], "count": 7})
    # 1 + 3 * 2; the accuracy has no part in it
    assert list(values) == ["loss", "loss_a", "acc", "aux.loss", "count"]
    assert {name: float(value) for name, value in values.items()} == {
        "loss": 7.0,
        "loss_a": 1.0,
        "acc": 2.0,
        "aux.loss": 6.0,
        "count": 7.0,
    }
    assert not any(value.requires_grad for value in values.values() if isinstance(value, Tensor))
    assert gradient == [1.0, 3.0]


def test_means_of_tensors_and_sums_of_lists():
    # mean (1 + 2) / 2, and 1 + 4 + mean (1 + 2) / 2 for the list
    values, gradient = step(lambda w: {"loss_a": w, "loss_b": [w[0], 2 * w[1], w], "ious": torch.tensor([1, 2])})
    assert [float(values[name]) for name in ("loss_a", "loss_b", "loss", "ious")] == [1.5, 6.5, 8.0, 1.5]
    assert gradient == [0.5 + 1 + 0.5, 0.5 + 2 + 0.5]


def test_a_single_tensor_is_the_loss():
    values, gradient = step(lambda w: w.sum())
    assert {name: float(value) for name, value in values.items()} == {"loss": 3.0}
    assert gradient == [1.0, 1.0]


def test_the_total_is_mmengines_to_the_bit():
    entries = {f"loss_{i}": torch.rand((), requires_grad=True) for i in range(7)}
    total, values = sum_losses(entries)
    theirs, _ = Net(None).parse_losses(entries)
    assert torch.equal(total, theirs)
    # scalars go in as they are: a mean over one element would only add a node to the graph
    assert all(values[name] is entry for name, entry in entries.items())


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        (lambda w: {"loss_a": w.sum(), "centerness": w[0]}, ValueError, "'centerness', which requires a gradient"),
        (lambda w: {"acc": w[0].detach()}, ValueError, r"no loss: no name contains 'loss' among \['acc'\]"),
        (lambda w: {}, ValueError, "no loss"),
        (lambda w: {"loss_a": w[0].detach()}, ValueError, r"\['loss_a'\] depend on no parameter"),
        (lambda w: {"loss_a": 1.0}, TypeError, "'loss_a' as float; a tensor or a list of tensors was expected"),
        (lambda w: {"loss_a": w[0], "name": "x"}, TypeError, "'name' as str; .*, or a number was expected"),
        (lambda w: {"loss_a": []}, TypeError, "'loss_a' as list"),
    ],
)
def test_outputs_that_cannot_be_optimised_are_refused_by_name(outputs, error, message):
    with pytest.raises(error, match=message):
        step(outputs)


def test_a_model_in_eval_mode_is_refused_at_the_first_step():
    model = Net(lambda w: w.sum()).eval()
    with pytest.raises(ValueError, match="Net is in eval mode"):
        train_step(model, {"inputs": torch.ones(2)}, OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0)))


class OwnParse(Net):
    def parse_losses(self, losses):
        return 2 * losses["a"], {"loss": 2 * losses["a"], "a": losses["a"]}


class OwnStep(Net):
    def train_step(self, data, optim_wrapper):
        optim_wrapper.update_params(self.weight[1] * 5)
        return {"loss": self.weight[1] * 5}


def test_a_models_own_parsing_and_step_are_used():
    values, gradient = step(lambda w: {"a": w[0]}, OwnParse)
    assert gradient == [2.0, 0.0]
    assert list(values) == ["loss", "a"]
    values, gradient = step(None, OwnStep)
    assert gradient == [0.0, 5.0]
    assert not values["loss"].requires_grad
    model = Net(lambda w: w.sum())
    model.train_step = lambda data, optim_wrapper: {"loss": torch.tensor(9.0)}  # as torch.compile replaces it
    assert train_step(model, None, None)["loss"] == 9.0


def test_a_reported_buffer_is_copied():
    seen = torch.tensor(1.0)
    values, _ = step(lambda w: {"loss": w.sum(), "seen": seen})
    seen.add_(1)
    assert values["seen"] == 1.0
