"""MSELoss by hand."""

import pytest
import torch

from detkit.losses import MSELoss


def test_by_hand():
    pred, target = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.5]])
    torch.testing.assert_close(MSELoss(reduction="none")(pred, target), torch.tensor([[4.0, 0.25]]))
    torch.testing.assert_close(MSELoss(loss_weight=2.0)(pred, target), torch.tensor(4.25))


def test_an_empty_target_is_refused():
    with pytest.raises(ValueError, match=r"MSELoss: pred \(5, 4\) and target \(0, 4\) differ in shape"):
        MSELoss()(torch.zeros(5, 4), torch.zeros(0, 4))
