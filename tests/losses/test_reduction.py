"""Weighting, averaging and reduction by hand."""

import torch

from detkit.losses import weight_reduce_loss


def test_avg_factor_may_be_a_tensor_and_none_ignores_it():
    loss = torch.tensor([2.0, 4.0])
    torch.testing.assert_close(weight_reduce_loss(loss, avg_factor=torch.tensor(3)), torch.tensor(2.0))
    torch.testing.assert_close(weight_reduce_loss(loss, reduction="none", avg_factor=3.0), loss)
