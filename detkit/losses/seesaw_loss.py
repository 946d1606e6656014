"""Seesaw loss for long-tailed classes, Wang et al., https://arxiv.org/abs/2008.10032."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.losses.accuracy import foreground_accuracy
from detkit.losses.labels import check_num_classes, check_range, has_classes
from detkit.losses.reduction import ElementwiseLoss, check_number, match_weight
from detkit.registry import MODELS
from detkit.structures.precision import full_precision

__all__ = ["SeesawLoss", "seesaw_ce_loss"]


def seesaw_ce_loss(
    cls_score: Tensor, labels: Tensor, *, cum_samples: Tensor, p: float = 0.8, q: float = 2.0, eps: float = 1e-2
) -> Tensor:
    """Cross entropy in which rarer classes are pushed down less, eq. 2 to 6.

    Args:
        cls_score: Logits (N, C).
        labels: (N,) in [0, C).
        cum_samples: Samples (C,) seen of each class.
        p: Exponent of the mitigation: less push on a class seen less often than the true one.
        q: Exponent of the compensation: more push on a class scored higher than the true one.
        eps: Least score of the true class that the compensation divides by, in (0, 1).

    Returns:
        Loss per sample (N,).
    """
    index = labels.unsqueeze(1)
    log_seen = cum_samples.clamp(min=1).log()
    log_prob = cls_score.detach().log_softmax(dim=1)
    own = log_prob.gather(1, index).clamp(min=math.log(eps))
    mitigation = p * (log_seen - log_seen[labels].unsqueeze(1)).clamp(max=0)
    compensation = q * (log_prob - own).clamp(min=0)
    # Both are 0 at the true class.
    return -(cls_score + mitigation + compensation).log_softmax(dim=1).gather(1, index).squeeze(1)


@MODELS.register_module()
class SeesawLoss(ElementwiseLoss):
    """Seesaw loss over the classes of objects, and cross entropy of object against background.

    The last two of C + 2 logits are object and background. A negative label is ignored, as if the sample were
    not there, and a sample of weight 0 is not counted among those seen of its class. Each process of a distributed
    run counts the samples that it sees itself, as in MMDetection.

    Args:
        use_sigmoid: Must be False; the loss is a softmax.
        p: Exponent of the mitigation, >= 0.
        q: Exponent of the compensation, >= 0.
        num_classes: C.
        eps: Least score that the compensation divides by, in (0, 1].
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.
        return_dict: Return the two losses by name instead of their sum.

    Raises:
        TypeError: A number was expected.
        ValueError: A number out of range, an unknown reduction, or ``use_sigmoid=True``.
    """

    learns = "labels with channels of its own"

    custom_cls_channels = True
    custom_activation = True
    custom_accuracy = True
    cum_samples: Tensor

    def __init__(
        self,
        use_sigmoid: bool = False,
        p: float = 0.8,
        q: float = 2.0,
        num_classes: int = 1203,
        eps: float = 1e-2,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        return_dict: bool = True,
    ) -> None:
        super().__init__(reduction, loss_weight)
        name = type(self).__name__
        if use_sigmoid:
            raise ValueError(f"{name}: use_sigmoid=True has no definition; the loss is a softmax")
        check_number(name, "p", p, low=0)
        check_number(name, "q", q, low=0)
        check_number(name, "num_classes", num_classes, low=1, whole=True)
        check_number(name, "eps", eps, above=0, high=1)
        self.use_sigmoid = use_sigmoid
        self.p = p
        self.q = q
        self.num_classes = num_classes
        self.eps = eps
        self.return_dict = return_dict
        self.register_buffer("cum_samples", torch.zeros(num_classes + 1))

    def forward(  # type: ignore[override]  # two losses, as in MMDetection
        self,
        cls_score: Tensor,
        labels: Tensor,
        label_weights: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Both losses; counts the labels first.

        Args:
            cls_score: Logits (N, C + 2).
            labels: (N,) in [0, C], C is background; negative ones are ignored.
            label_weights: Factor per sample (N,).
            avg_factor: See ``weight_reduce_loss``; used for both losses.
            reduction_override: Used instead of ``reduction``.

        Returns:
            ``loss_cls_objectness`` and ``loss_cls_classes``, or their sum without ``return_dict``. With reduction
            ``none`` the second has a value per object (P,), and is a 0-d zero where there is none; their sum has a
            value per sample (N,).

        Raises:
            ValueError: Unknown reduction, ``sum`` with ``avg_factor``, or shapes that do not fit.
            RuntimeError: A label above C, see ``check_range``.
        """
        reduction = self.resolve(avg_factor, reduction_override)
        (cls_score,) = full_precision(cls_score)
        classes, objectness = self._split(cls_score)
        counted, labels = self._checked(classes, labels)
        weight = match_weight(label_weights, classes[:, 0], type(self).__name__)
        weight = counted.to(cls_score.dtype) if weight is None else weight * counted
        self._count(labels, weight > 0)
        positive = labels < self.num_classes
        loss_classes = seesaw_ce_loss(
            classes,
            torch.where(positive, labels, 0),
            cum_samples=self.cum_samples[:-1],
            p=self.p,
            q=self.q,
            eps=self.eps,
        )
        loss_objectness = F.cross_entropy(objectness, (~positive).long(), reduction="none")
        by_count = reduction == "mean" and avg_factor is None
        losses = {
            "loss_cls_objectness": self.reduced(
                loss_objectness, weight, counted.sum() if by_count else avg_factor, reduction_override
            ),
            "loss_cls_classes": self.reduced(
                loss_classes, weight * positive, positive.sum() if by_count else avg_factor, reduction_override
            ),
        }
        if not self.return_dict:
            return losses["loss_cls_objectness"] + losses["loss_cls_classes"]
        if reduction == "none":
            # Off the training path: the number of objects shapes the result.
            own = losses["loss_cls_classes"][positive]
            losses["loss_cls_classes"] = own if len(own) else own.sum()
        return losses

    def _checked(self, classes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Which samples (N,) count, and their labels, background for the others."""
        name = type(self).__name__
        if classes.dim() != 2 or labels.shape != classes.shape[:1] or not has_classes(labels):
            raise ValueError(
                f"{name}: logits (N, C + 2) and integers (N,) were expected, got labels {tuple(labels.shape)} of "
                f"{labels.dtype} for {tuple(classes.shape[:-1])} samples"
            )
        counted = labels >= 0
        labels = torch.where(counted, labels, self.num_classes).long()
        check_range(labels, self.num_classes + 1, f"{name}: a label lies above {self.num_classes}, the background")
        return counted, labels

    def _split(self, cls_score: Tensor) -> tuple[Tensor, Tensor]:
        if cls_score.shape[-1:] != (self.num_classes + 2,):
            raise ValueError(
                f"{type(self).__name__}: {self.num_classes + 2} channels were expected for {self.num_classes} classes, "
                f"got {tuple(cls_score.shape)}"
            )
        return cls_score[..., :-2], cls_score[..., -2:]

    def _count(self, labels: Tensor, counted: Tensor) -> None:
        ones = counted.to(self.cum_samples.dtype)
        self.cum_samples += torch.zeros_like(self.cum_samples).scatter_add(0, labels, ones)

    def get_cls_channels(self, num_classes: int) -> int:
        """Channels that the head predicts for ``num_classes``: the classes, object and background."""
        check_num_classes(type(self).__name__, num_classes, self.num_classes)
        return num_classes + 2

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Scores (N, C + 1), background last, of logits (N, C + 2)."""
        classes, objectness = self._split(cls_score)
        is_object, is_background = objectness.softmax(dim=-1).split(1, dim=-1)
        return torch.cat([classes.softmax(dim=-1) * is_object, is_background], dim=-1)

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Percent of samples rightly told from background, and of objects whose class scores highest."""
        classes, objectness = self._split(cls_score)
        kind = torch.where(labels < 0, labels, (labels == self.num_classes).long())
        return {
            "acc_objectness": foreground_accuracy(objectness, kind),
            "acc_classes": foreground_accuracy(classes, labels),
        }
