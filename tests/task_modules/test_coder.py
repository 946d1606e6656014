"""DeltaXYWHBBoxCoder: round trip, clipping, gradients."""

import math

import pytest
import torch

from detkit.task_modules import DeltaXYWHBBoxCoder


def boxes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 50
    return torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=generator, dtype=torch.float64) * 40], dim=1)


@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)])
def test_decode_undoes_encode(stds):
    coder = DeltaXYWHBBoxCoder(target_means=(0.1, 0.0, -0.1, 0.0), target_stds=stds)
    priors, gt = boxes(20, 0).view(4, 5, 4), boxes(20, 1).view(4, 5, 4)
    torch.testing.assert_close(coder.decode(priors, coder.encode(priors, gt)), gt)


def test_by_hand():
    # Prior centre (5, 5), size 10; object centre (6, 5), size 20 x 10
    deltas = DeltaXYWHBBoxCoder().encode(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[-4.0, 0, 16, 10]]))
    torch.testing.assert_close(deltas, torch.tensor([[0.1, 0.0, math.log(2), 0.0]]))


def test_boxes_are_clipped_to_each_image():
    coder = DeltaXYWHBBoxCoder()
    priors = torch.tensor([[0.0, 0, 100, 100]]).expand(2, 1, 4)
    decoded = coder.decode(priors, torch.zeros(2, 1, 4), max_shape=[(50, 60), (70, 80)])
    assert decoded[:, 0].tolist() == [[0, 0, 60, 50], [0, 0, 80, 70]]


def test_gradcheck():
    coder, priors = DeltaXYWHBBoxCoder(), boxes(5, 0)
    deltas = (torch.rand(5, 4, dtype=torch.float64) - 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: coder.decode(priors, d), (deltas,))
    gt = boxes(5, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: coder.encode(priors, g), (gt,))


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="target_stds needs 4 numbers"):
        DeltaXYWHBBoxCoder(target_stds=(1.0, 1.0))
