"""convolve_together: one convolution does what several do."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detkit.models.layers import convolve_together


def hooked(layer):
    layer.register_forward_hook(lambda layer, args, out: 2 * out)
    return layer


@pytest.mark.parametrize(
    ("second", "calls"),
    [
        (lambda: nn.Conv2d(5, 1, 3, padding=1), 2),  # one for each map
        (lambda: hooked(nn.Conv2d(5, 1, 3, padding=1)), 4),
        (lambda: nn.Conv2d(5, 1, 3, padding=1, bias=False), 4),
        (lambda: nn.Conv2d(5, 1, 1), 4),
        (lambda: nn.Sequential(nn.Conv2d(5, 1, 3, padding=1)), 4),
    ],
)
def test_outputs_and_gradients_are_those_of_each(second, calls, monkeypatch):
    torch.manual_seed(0)
    layers = [nn.Conv2d(5, 4, 3, padding=1), second()]
    maps = [torch.randn(2, 5, 6, 7, requires_grad=True), torch.randn(2, 5, 3, 3, requires_grad=True)]
    leaves = [*maps, *(parameter for layer in layers for parameter in layer.parameters())]
    expected = [tuple(layer(one) for layer in layers) for one in maps]
    made = []
    forward = nn.Conv2d._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda *args: made.append(1) or forward(*args))
    found = convolve_together(layers, maps)
    assert len(made) == calls
    assert_close(found, expected)
    wanted = torch.autograd.grad(sum(part.square().sum() for outs in expected for part in outs), leaves)
    assert_close(torch.autograd.grad(sum(part.square().sum() for outs in found for part in outs), leaves), wanted)


def test_one_alone_is_called():
    layer = nn.Linear(3, 2)
    one = torch.rand(4, 3)
    ((out,),) = convolve_together([layer], [one])
    assert torch.equal(out, layer(one))
