"""Knowledge distillation by hand and in its limits."""

import math

import pytest
import torch

from detkit.losses import KnowledgeDistillationKLDivLoss, knowledge_distillation_kl_div_loss


def test_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2): the divergence, its mean over two classes
    pred, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    torch.testing.assert_close(knowledge_distillation_kl_div_loss(pred, teacher, T=1), torch.tensor([expected]))
    # Logits twice as large at temperature 2 are the same distributions; T^2 = 4
    torch.testing.assert_close(knowledge_distillation_kl_div_loss(pred, 2 * teacher, T=2), torch.tensor([4 * expected]))


def test_a_student_that_agrees_costs_nothing_and_one_that_does_not_costs():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    loss = KnowledgeDistillationKLDivLoss(reduction="none")
    torch.testing.assert_close(loss(logits, logits + 3), torch.zeros(5))  # a shift changes no distribution
    assert (loss(logits, -logits) > 0).all()


def test_only_the_student_learns():
    pred, teacher = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    KnowledgeDistillationKLDivLoss()(pred, teacher).backward()
    assert teacher.grad is None
    assert knowledge_distillation_kl_div_loss(pred.detach(), teacher, T=1, detach_target=False).requires_grad


def test_temperature_below_1_is_refused():
    with pytest.raises(ValueError, match="KnowledgeDistillationKLDivLoss: T must be >= 1, got 0"):
        KnowledgeDistillationKLDivLoss(T=0)


def test_a_weight_per_class_is_refused():
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"KnowledgeDistillationKLDivLoss: weight \(2, 3\) does not fit losses \(2,\)"):
        KnowledgeDistillationKLDivLoss()(logits, logits, torch.ones(2, 3))
