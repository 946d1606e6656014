"""Cross entropy with several positives against its definition over pairs."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detkit.losses import MultiPosCrossEntropyLoss, multi_pos_cross_entropy


def pair_by_pair(pred, label):
    """log(1 + sum over positives i and negatives j of exp(s_j - s_i)), one row at a time."""
    rows = []
    for scores, kinds in zip(pred.tolist(), label.tolist(), strict=True):
        total = 1.0
        for positive, kind in zip(scores, kinds, strict=True):
            for negative, other in zip(scores, kinds, strict=True):
                if kind == 1 and other == 0:
                    total += math.exp(negative - positive)
        rows.append(math.log(total))
    return torch.tensor(rows)


def test_it_is_the_sum_over_pairs():
    pred = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    label = torch.randint(0, 2, (6, 7), generator=torch.Generator().manual_seed(1))
    label[0], label[1] = 0, 1  # no positive, no negative
    loss = multi_pos_cross_entropy(pred, label)
    torch.testing.assert_close(loss, pair_by_pair(pred, label))
    assert not loss[:2].any()


def test_one_positive_is_plain_cross_entropy():
    pred = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 4, 2, 2])
    torch.testing.assert_close(
        MultiPosCrossEntropyLoss()(pred, torch.nn.functional.one_hot(target, 5)),
        torch.nn.functional.cross_entropy(pred, target),
    )


def test_other_labels_are_neither():
    # MMDetection takes such an entry for a positive and a negative of score 0.
    pred = torch.tensor([[1.0, 2.0, 50.0]])
    torch.testing.assert_close(
        multi_pos_cross_entropy(pred, torch.tensor([[1, 0, -1]])),
        multi_pos_cross_entropy(pred[:, :2], torch.tensor([[1, 0]])),
    )


@pytest.mark.parametrize("scale", [100.0, 1e4])
@pytest.mark.parametrize("label", [[1, 0], [0, 1], [0, 0], [1, 1]])
def test_extreme_logits_stay_finite(scale, label):
    pred = torch.tensor([[-scale, scale]], requires_grad=True)
    loss = multi_pos_cross_entropy(pred, torch.tensor([label])).sum()
    (grad,) = torch.autograd.grad(loss, pred)
    torch.testing.assert_close(loss, torch.tensor(2 * scale if label == [1, 0] else 0.0))
    assert torch.isfinite(grad).all()


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that was made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


def test_memory_is_that_of_the_logits():
    pred = torch.zeros(3, 500, requires_grad=True)
    label = torch.arange(1500).view(3, 500) % 2
    with Largest() as largest:
        MultiPosCrossEntropyLoss()(pred, label).backward()
    assert largest.numel == pred.numel()


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"MultiPosCrossEntropyLoss: .* got \(2, 3\) and \(2, 4\)"):
        MultiPosCrossEntropyLoss()(torch.zeros(2, 3), torch.zeros(2, 4))
