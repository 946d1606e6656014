"""Every loss with inputs for it: what ``test_contract.py`` holds each of them to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detkit.losses import (
    GHMC,
    GHMR,
    AssociativeEmbeddingLoss,
    BalancedL1Loss,
    BoundedIoULoss,
    CIoULoss,
    CrossEntropyCustomLoss,
    CrossEntropyLoss,
    DiceLoss,
    DIoULoss,
    DistributionFocalLoss,
    EIoULoss,
    EQLV2Loss,
    FocalCustomLoss,
    FocalLoss,
    GaussianFocalLoss,
    GIoULoss,
    IoULoss,
    KnowledgeDistillationKLDivLoss,
    L1Loss,
    L2Loss,
    MarginL2Loss,
    MSELoss,
    MultiPosCrossEntropyLoss,
    QualityFocalLoss,
    SeesawLoss,
    SIoULoss,
    SmoothL1Loss,
    TripletLoss,
    VarifocalLoss,
)


class Entry(NamedTuple):
    """One loss.

    Attributes:
        id: Unique name.
        build: Makes the loss; called with ``reduction=`` where the loss has one.
        make_inputs: Called with the number of samples, which may be 0, and the type of the floats; returns the
            arguments of ``forward`` by name, of which the first one is differentiated. Away from kinks, so that
            finite differences are right. The contract adds ``avg_factor`` where ``forward`` has it.
    """

    id: str
    build: Callable[..., nn.Module]
    make_inputs: Callable[[int, torch.dtype], dict[str, Any]]


def rand(*shape: int, dtype: torch.dtype, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Tensor:
    """Uniform in [low, high), the same at every call, rounded to ``dtype``."""
    x = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (x * (high - low) + low).to(dtype)


def labels(num: int, num_classes: int, background: bool = True) -> Tensor:
    """Labels (N,) of all classes in turn, background among them."""
    return torch.arange(num) % (num_classes + background)


def class_scores(num: int, dtype: torch.dtype, background: bool = True) -> dict[str, Tensor]:
    """Scores (N, 3) in (0.1, 0.9), good as logits and as probabilities, with labels (N,)."""
    return {
        "pred": rand(num, 3, dtype=dtype, low=0.1, high=0.9),
        "target": labels(num, 3, background),
        "weight": rand(num, dtype=dtype, seed=1),
    }


def cross_entropy_scores(num: int, dtype: torch.dtype, background: bool = False) -> dict[str, Tensor]:
    """As ``class_scores``, under the names of CrossEntropyLoss."""
    scores = class_scores(num, dtype, background)
    return {"cls_score": scores["pred"], "label": scores["target"], "weight": scores["weight"]}


def vectors(num: int, dtype: torch.dtype, weight_shape: tuple[int, ...] = (4,)) -> dict[str, Tensor]:
    """Regression values (N, 4) whose differences are up to 1."""
    return {
        "pred": rand(num, 4, dtype=dtype),
        "target": rand(num, 4, dtype=dtype, seed=2),
        "weight": rand(num, *weight_shape, dtype=dtype, seed=1),
    }


def channel_scores(num: int, dtype: torch.dtype, channels: int = 4) -> dict[str, Tensor]:
    """Logits (N, channels) of 3 classes and background, under the names of CrossEntropyLoss."""
    return {
        "cls_score": rand(num, channels, dtype=dtype),
        "label": labels(num, 3),
        "weight": rand(num, dtype=dtype, seed=1),
    }


def seesaw_scores(num: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Logits (N, 5) that are right: the factor of classes that score higher takes no part in the gradient."""
    scores = channel_scores(num, dtype, channels=5)
    right = scores["label"].unsqueeze(1) == torch.arange(5)
    return {
        "cls_score": scores["cls_score"] + right.to(dtype),
        "labels": scores["label"],
        "label_weights": scores["weight"],
    }


def quality_scores(num: int, dtype: torch.dtype) -> dict[str, Any]:
    """Class scores with labels (N,) and qualities (N,)."""
    scores = class_scores(num, dtype)
    return {**scores, "target": (scores["target"], rand(num, dtype=dtype, seed=2))}


def soft_scores(num: int, dtype: torch.dtype, weight_shape: tuple[int, ...] = (3,)) -> dict[str, Tensor]:
    """Class scores with targets (N, 3): 0, and between 0.1 and 1 at the true class."""
    own = labels(num, 3).unsqueeze(1) == torch.arange(3)
    return {
        "pred": rand(num, 3, dtype=dtype, low=0.1, high=0.9),
        "target": torch.where(own, rand(num, 3, dtype=dtype, low=0.1, seed=2), 0),
        "weight": rand(num, *weight_shape, dtype=dtype, seed=1),
    }


def distances(num: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Logits (N, 6) of the distances 0 to 5, and distances (N,)."""
    return {
        "pred": rand(num, 6, dtype=dtype),
        "target": rand(num, dtype=dtype, low=0.1, high=4.9, seed=2),
        "weight": rand(num, dtype=dtype, seed=1),
    }


def heatmaps(num: int, dtype: torch.dtype, **positives: Tensor) -> dict[str, Tensor]:
    """Probabilities (N, 3) in (0.1, 0.9) with targets of which some are 1."""
    target = rand(num, 3, dtype=dtype, seed=2)
    return {
        "pred": rand(num, 3, dtype=dtype, low=0.1, high=0.9),
        "target": torch.where(target > 0.6, 1, target),
        "weight": rand(num, 3, dtype=dtype, seed=1),
        **positives,
    }


def named_heatmaps(num: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Heatmaps with every other row named as a positive."""
    rows = torch.arange(0, num, 2)
    return heatmaps(num, dtype, pos_inds=rows, pos_labels=rows % 3)


def pairs(num: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Logits (N, 4) with labels of both kinds; the first row has no positive."""
    return {
        "cls_score": rand(num, 4, dtype=dtype),
        "label": (torch.arange(num * 4).view(num, 4) % 3 == 0).long() * (torch.arange(num) > 0).unsqueeze(1),
        "weight": rand(num, dtype=dtype, seed=1),
    }


def boxes(num: int, dtype: torch.dtype, weight_shape: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """Boxes (N, 4) in pixels, of which every third lies apart from its target."""
    corner = rand(num, 2, dtype=torch.float64, high=40, seed=2)
    target = torch.cat([corner, corner + rand(num, 2, dtype=torch.float64, low=10, high=40, seed=3)], dim=1)
    apart = 60.0 * (torch.arange(num) % 3 == 2).unsqueeze(1)
    return {
        "pred": (target + rand(num, 4, dtype=torch.float64, low=-4, high=4) + apart).to(dtype),
        "target": target.to(dtype),
        "weight": rand(num, *weight_shape, dtype=dtype, seed=1),
    }


def similarities(num: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Similarities (N, 5) in (0.1, 0.9) of targets 0 and 1; some elements do not count."""
    return {
        "pred": rand(num, 5, dtype=dtype, low=0.1, high=0.9),
        "target": (rand(num, 5, dtype=dtype, seed=2) > 0.7).long(),
        "weight": (rand(num, 5, dtype=dtype, seed=1) > 0.2).to(dtype),
    }


def harmonized(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same under the names of the GHM losses."""
    return {"pred": inputs["pred"], "target": inputs["target"], "label_weight": inputs["weight"]}


def masks(num: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Mask scores (N, 3, 4), good as logits and as probabilities."""
    return {
        "pred": rand(num, 3, 4, dtype=dtype, low=0.1, high=0.9),
        "target": (rand(num, 3, 4, dtype=dtype, seed=2) > 0.5).to(dtype),
        "weight": rand(num, dtype=dtype, seed=1),
    }


def teacher_and_student(num: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Logits (N, 5) of both."""
    return {
        "pred": rand(num, 5, dtype=dtype, low=-3, high=3),
        "soft_label": rand(num, 5, dtype=dtype, low=-3, high=3, seed=2),
        "weight": rand(num, dtype=dtype, seed=1),
    }


def corner_maps(num: int, dtype: torch.dtype) -> dict[str, Any]:
    """Embeddings (2, 1, 4, 6) of an image with N objects and one without any."""
    return {
        "pred": rand(2, 1, 4, 6, dtype=dtype),
        "target": rand(2, 1, 4, 6, dtype=dtype, seed=2),
        "match": [[[[i % 4, i % 6], [(i + 1) % 4, (i + 2) % 6]] for i in range(num)], []],
    }


def identities(num: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Features (N, 4) of three identities."""
    return {"inputs": rand(num, 4, dtype=dtype), "targets": labels(num, 3, background=False)}


TABLE = [
    Entry("AssociativeEmbeddingLoss", AssociativeEmbeddingLoss, corner_maps),
    Entry("BalancedL1Loss", partial(BalancedL1Loss, beta=0.5), vectors),
    Entry("BoundedIoULoss", BoundedIoULoss, partial(boxes, weight_shape=(4,))),
    Entry("CIoULoss", CIoULoss, boxes),
    Entry("CrossEntropyCustomLoss", partial(CrossEntropyCustomLoss, num_classes=3), channel_scores),
    Entry("CrossEntropyLoss", CrossEntropyLoss, cross_entropy_scores),
    Entry(
        "CrossEntropyLoss-sigmoid",
        partial(CrossEntropyLoss, use_sigmoid=True, class_weight=[1.0, 2.0, 0.5]),
        partial(cross_entropy_scores, background=True),
    ),
    Entry("DIoULoss", DIoULoss, boxes),
    Entry("DiceLoss", DiceLoss, masks),
    Entry("DiceLoss-naive", partial(DiceLoss, naive_dice=True, activate=False), masks),
    Entry("DistributionFocalLoss", DistributionFocalLoss, distances),
    Entry("EIoULoss", partial(EIoULoss, smooth_point=0.4), boxes),
    Entry("EQLV2Loss", partial(EQLV2Loss, num_classes=3), channel_scores),
    Entry("FocalCustomLoss", partial(FocalCustomLoss, num_classes=3), class_scores),
    Entry("FocalLoss", FocalLoss, class_scores),
    Entry("FocalLoss-activated", partial(FocalLoss, activated=True), class_scores),
    Entry("GHMC", GHMC, lambda num, dtype: harmonized(class_scores(num, dtype))),
    Entry("GHMC-momentum", partial(GHMC, momentum=0.5), lambda num, dtype: harmonized(class_scores(num, dtype))),
    Entry("GHMR", GHMR, lambda num, dtype: harmonized(vectors(num, dtype))),
    Entry("GIoULoss", GIoULoss, partial(boxes, weight_shape=(4,))),
    Entry("GaussianFocalLoss", GaussianFocalLoss, heatmaps),
    Entry("GaussianFocalLoss-positives", GaussianFocalLoss, named_heatmaps),
    Entry("IoULoss", IoULoss, boxes),
    Entry("IoULoss-linear", partial(IoULoss, linear=True), boxes),
    Entry("IoULoss-square", partial(IoULoss, mode="square"), boxes),
    Entry("KnowledgeDistillationKLDivLoss", partial(KnowledgeDistillationKLDivLoss, T=2), teacher_and_student),
    Entry("L1Loss", L1Loss, vectors),
    Entry("L2Loss", L2Loss, similarities),
    Entry("L2Loss-mining", partial(L2Loss, neg_pos_ub=1, hard_mining=True), similarities),
    Entry("MSELoss", MSELoss, vectors),
    Entry("MarginL2Loss", partial(MarginL2Loss, pos_margin=0.05, neg_margin=0.25), similarities),
    Entry("MultiPosCrossEntropyLoss", MultiPosCrossEntropyLoss, pairs),
    Entry("QualityFocalLoss", QualityFocalLoss, quality_scores),
    Entry("QualityFocalLoss-activated", partial(QualityFocalLoss, activated=True), quality_scores),
    Entry("QualityFocalLoss-soft", QualityFocalLoss, partial(soft_scores, weight_shape=())),
    Entry("SIoULoss", SIoULoss, boxes),
    Entry("SIoULoss-paper", partial(SIoULoss, neg_gamma=True), boxes),
    Entry("SeesawLoss", partial(SeesawLoss, num_classes=3), seesaw_scores),
    Entry("SmoothL1Loss", partial(SmoothL1Loss, beta=0.5), partial(vectors, weight_shape=(1,))),
    Entry("TripletLoss", TripletLoss, identities),
    Entry("VarifocalLoss", VarifocalLoss, soft_scores),
]
