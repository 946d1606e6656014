"""One label map for the whole run: datasets, heads, metric and checkpoint must agree before the first step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["check_heads", "check_metric", "check_same_classes", "class_difference", "label_map"]


def label_map(dataset: Any) -> dict[str, Any] | None:
    """Class names and category ids of a dataset in label order, in plain types; None where it names no classes."""
    metainfo = getattr(dataset, "metainfo", None) or {}
    classes = metainfo.get("classes")
    if classes is None:
        return None
    ids = metainfo.get("category_ids")
    return {"classes": list(classes), "category_ids": list(ids if ids is not None else range(len(classes)))}


def check_heads(model: nn.Module, dataset: Any, source: str) -> None:
    """Hold the ``num_classes`` of every head against the dataset.

    Args:
        model: Its modules with an integer ``num_classes`` are looked at, but those of the backbone (which may
            be a classifier) and of region proposal heads (which know object and background only).
        dataset: Its ``metainfo['classes']`` counts.
        source: Config path of the dataset, for the message.

    Raises:
        ValueError: With both numbers, the names and the config path to change.
    """
    labels = label_map(dataset)
    if labels is None:
        return
    classes = labels["classes"]
    for name, module in model.named_modules():
        parts = name.split(".")
        count = getattr(module, "num_classes", None)
        if not isinstance(count, int) or count < 0 or parts[0] == "backbone" or parts[-1] == "rpn_head":
            continue
        if count != len(classes):
            path = f"model.{name}.num_classes" if name else "model.num_classes"
            raise ValueError(
                f"{path}={count}, but {source} has {len(classes)} classes ({_names(classes)}); "
                f"set {path}={len(classes)}"
            )


def check_same_classes(classes: Any, source: str, other_classes: Any, other_source: str) -> None:
    """Refuse two class lists that differ, in names or in order: label 3 would be two things.

    Raises:
        ValueError: With the first label at which they differ.
    """
    difference = class_difference(classes, source, other_classes, other_source)
    if difference is not None:
        raise ValueError(
            f"{difference}; give both the same list in the same order (dataset.metainfo=dict(classes=[...]))"
        )


def class_difference(classes: Any, source: str, other_classes: Any, other_source: str) -> str | None:
    """What differs between two class lists, in names or in order; None where nothing does or one is None."""
    if classes is None or other_classes is None or list(classes) == list(other_classes):
        return None
    one, two = list(classes), list(other_classes)
    first = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    names = [repr(names[first]) if first < len(names) else "nothing" for names in (one, two)]
    return (
        f"{source} has {len(one)} classes ({_names(one)}), {other_source} has {len(two)} ({_names(two)}): label "
        f"{first} is {names[0]} in one and {names[1]} in the other"
    )


def check_metric(metric: Any, dataset: Any, path: str) -> None:
    """Refuse a metric that reads another annotation file than its dataset.

    Args:
        metric: With an ``ann_file``, if it reads one.
        dataset: With ``metainfo['ann_file']``, if it was read from one.
        path: Config path of the metric.

    Raises:
        ValueError: With both files.
    """
    wanted = (getattr(dataset, "metainfo", None) or {}).get("ann_file")
    given = metric.get("ann_file") if isinstance(metric, Mapping) else getattr(metric, "ann_file", None)
    if not wanted or not given or os.path.realpath(wanted) == os.path.realpath(given):
        return
    raise ValueError(
        f"{path}.ann_file={given}, but its dataset reads {wanted}: images and truth would not belong together; "
        f"leave {path}.ann_file out to use the dataset's"
    )


def _names(classes: list[str]) -> str:
    return ", ".join(map(str, classes[:8])) + (", …" if len(classes) > 8 else "")
