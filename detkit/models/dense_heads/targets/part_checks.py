"""Whether the parts that a config names fit a dense head: said when it is built, with the reason.

detkit's parts say by a class attribute what they are for: coders and assigners by ``prior_kind``, losses by ``learns``,
samplers by ``only_for``. An assigner with ``takes_logits`` wants logits for scores. A part of one's own that says
nothing is taken at its word.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from detkit.registry import TASK_UTILS, find
from detkit.task_modules import needed_inputs

__all__ = [
    "check_assigner",
    "check_box_loss",
    "check_coder",
    "check_label_loss",
    "check_loss",
    "check_sampler_type",
    "check_score_loss",
    "dense_sampler",
]


def check_assigner(
    assigner: Any,
    offered: Collection[str],
    head: str,
    kinds: Collection[str] = ("boxes",),
    argument: str = "train_cfg.assigner",
    num_levels: int | None = None,
) -> list[str]:
    """What of ``offered`` the assigner asks for besides priors.

    Args:
        assigner: Built assigner; None asks for nothing.
        offered: What the head can give besides.
        head: Who would use it.
        kinds: What priors of the head may be to it.
        argument: Where it comes from, for messages.
        num_levels: Levels of the head; None does not say.

    Raises:
        ValueError: It assigns something else, has ranges of another number of levels, or asks for more.
    """
    kind, name = getattr(assigner, "prior_kind", "boxes"), type(assigner).__name__
    if kind not in kinds:
        raise ValueError(f"{head}: {argument}: {name} assigns {kind}; this head has {' or '.join(kinds)}")
    own_levels = getattr(assigner, "num_levels", num_levels)
    if num_levels is not None and own_levels != num_levels:
        raise ValueError(f"{head}: {argument}: {name} has ranges of {own_levels} levels; this head has {num_levels}")
    needed = needed_inputs(assigner)
    missing = [name for name in needed if name not in offered]
    if missing:
        raise ValueError(
            f"{head}: {argument}: {name} needs {', '.join(missing)}, which this head does not give; it has "
            f"{', '.join(offered)}"
        )
    return needed


def check_coder(coder: Any, kind: str, head: str, argument: str = "bbox_coder") -> None:
    """Refuse a box coder of other priors than ``head`` has; ``argument`` is where it comes from.

    Raises:
        ValueError: With what it codes.
    """
    own = getattr(coder, "prior_kind", "boxes")
    if own != kind:
        raise ValueError(f"{head}: {argument}: {type(coder).__name__} codes boxes by {own}; this head has {kind}")


def check_loss(loss: Any, kinds: Collection[str], head: str, argument: str, remedy: str = "") -> None:
    """Refuse a loss that learns something else than ``head`` gives it.

    Args:
        loss: Built loss.
        kinds: What it may learn.
        head: Who would use it.
        argument: The head's argument, for the message.
        remedy: What to change, for the message.

    Raises:
        ValueError: With what it learns.
    """
    learns = "masks" if getattr(loss, "use_mask", False) else getattr(loss, "learns", None)
    if learns is not None and learns not in kinds:
        raise ValueError(
            f"{head}: {argument}: {type(loss).__name__} learns {learns}; here are {' or '.join(kinds)}"
            f"{'; ' if remedy else ''}{remedy}"
        )


def check_label_loss(loss: Any, head: str, argument: str = "loss_cls") -> None:
    """Refuse a loss that does not learn labels by a sigmoid for each class, as ``head`` has no channel for background.

    Raises:
        ValueError: With what it learns, or that it is a softmax.
    """
    check_loss(loss, ["labels"], head, argument)
    _check_sigmoid(loss, head, argument)


def check_score_loss(loss: Any, head: str, argument: str) -> None:
    """Refuse a loss that does not take logits and targets in [0, 1] of one shape: objectness, centerness, classes.

    Raises:
        ValueError: With what it learns, or that it is a softmax.
    """
    check_loss(loss, ["labels", "qualities of classes", "coordinates"], head, argument)
    if getattr(loss, "custom_cls_channels", False):
        raise ValueError(f"{head}: {argument}: {type(loss).__name__} learns labels of classes only; here are scores")
    _check_sigmoid(loss, head, argument)


def _check_sigmoid(loss: Any, head: str, argument: str) -> None:
    if not getattr(loss, "use_sigmoid", True):
        raise ValueError(
            f"{head}: {argument}: {type(loss).__name__} with use_sigmoid=False needs a channel for the background; "
            "there is none here"
        )


def check_box_loss(loss: Any, decoded: bool, head: str, argument: str = "loss_bbox") -> None:
    """Refuse a box loss that does not fit what ``head`` compares: boxes where ``decoded``, else their encoding.

    Raises:
        ValueError: With what it learns.
    """
    if decoded:
        check_loss(loss, ["coordinates", "boxes"], head, argument)
    else:
        check_loss(loss, ["coordinates"], head, argument, "reg_decoded_bbox=True compares boxes")


def dense_sampler(cfg: Mapping[str, Any] | None, head: str, argument: str = "train_cfg.sampler") -> Any:
    """Build a sampler of priors; None takes every prior that the assigner does not ignore.

    Raises:
        ValueError: A sampler that is not for dense heads, or one that adds objects as proposals.
    """
    if cfg is None:
        return TASK_UTILS.build({"type": "PseudoSampler"})
    check_sampler_type(cfg, head, argument, "priors")
    sampler = TASK_UTILS.build(cfg)
    if getattr(sampler, "add_gt_as_proposals", False):
        raise ValueError(
            f"{head}: {argument}: {type(sampler).__name__} adds objects as proposals, and a dense head predicts "
            "nothing for them; set add_gt_as_proposals=False"
        )
    return sampler


def check_sampler_type(
    cfg: Mapping[str, Any], head: str, path: str, sampled: str, purposes: Collection[str] = ()
) -> None:
    """Refuse a sampler of something else than ``head`` has, or a combination that names one.

    Args:
        cfg: Config of the sampler.
        head: Who would use it.
        path: Where it comes from, for messages.
        sampled: What the head has, with one object to each.
        purposes: What a sampler may be ``only_for``.

    Raises:
        ValueError: With what it is only for.
    """
    kind = cfg.get("type")
    only_for = getattr(find(kind, TASK_UTILS) if isinstance(kind, str) else kind, "only_for", None)
    if only_for is not None and only_for not in purposes:
        name = kind if isinstance(kind, str) else getattr(kind, "__name__", kind)
        raise ValueError(f"{head}: {path}: {name} {only_for}; this head has {sampled}, with one object to each")
    for part in ("pos_sampler", "neg_sampler"):
        if isinstance(cfg.get(part), Mapping):
            check_sampler_type(cfg[part], head, f"{path}.{part}", sampled, purposes)
