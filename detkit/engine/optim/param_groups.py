"""Parameter groups as torch's optimizers take them: one per parameter, as few as there can be, and what they say.

The two operations are those of Detectron2's solver: groups may be written one after the other, each changing some
settings of some parameters, and are then merged. A group is a dict with ``params`` and hyperparameters; where
``param_names`` is there, it stays beside its parameter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

__all__ = ["describe_param_groups", "expand_param_groups", "reduce_param_groups", "summary_group_id", "summary_lr"]

_LISTS = ("params", "param_names")


def expand_param_groups(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One group per parameter, in the order in which parameters are first named; later groups overwrite settings.

    Args:
        groups: ``params`` is one parameter or several; none of the dicts is changed.

    Raises:
        ValueError: A group's ``param_names`` are not as many as its ``params``.
    """
    found: dict[torch.Tensor, dict[str, Any]] = {}
    for group in groups:
        params = [group["params"]] if isinstance(group["params"], torch.Tensor) else list(group["params"])
        names = list(group["param_names"]) if "param_names" in group else [None] * len(params)
        if len(names) != len(params):
            raise ValueError(f"a parameter group has {len(params)} params and {len(names)} param_names")
        settings = {key: value for key, value in group.items() if key not in _LISTS}
        for parameter, name in zip(params, names, strict=True):
            own = found.setdefault(parameter, {"params": [parameter]})
            own.update(settings)
            if name is not None:
                own["param_names"] = [name]
    return list(found.values())


def reduce_param_groups(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Merge parameters of equal settings; the order of keys does not matter, and values may be lists.

    An optimizer's step costs one launch per group and kernel: 2 groups instead of one per parameter.

    Args:
        groups: As for :func:`expand_param_groups`, which is applied first.
    """
    merged: dict[Any, dict[str, Any]] = {}
    for group in expand_param_groups(groups):
        settings = {key: value for key, value in group.items() if key not in _LISTS}
        key = tuple((name, _freeze(value)) for name, value in sorted(settings.items()))
        named = "param_names" in group  # torch wants names for all parameters of a group, or for none
        into = merged.setdefault((key, named), {"params": [], **({"param_names": []} if named else {}), **settings})
        for name in _LISTS[: 1 + named]:
            into[name].extend(group[name])
    return list(merged.values())


def _freeze(value: Any) -> Any:
    """Something hashable that is equal where ``value`` is; a list and a tuple of the same numbers are."""
    if isinstance(value, Mapping):
        return "dict", tuple(sorted((key, _freeze(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return "list", tuple(map(_freeze, value))
    if isinstance(value, torch.Tensor):  # torch's optimizers take a learning rate as a tensor: the same one only
        return "tensor", id(value)
    return value


def summary_group_id(optimizer: torch.optim.Optimizer) -> int:
    """Index of the group whose learning rate stands for all in a log line.

    That of most parameters; where each group has one, the first with the most frequent rate.
    """
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if max(sizes) > 1:
        return sizes.index(max(sizes))
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    return rates.index(Counter(rates).most_common(1)[0][0])


def summary_lr(optimizer: torch.optim.Optimizer) -> float:
    """Learning rate of :func:`summary_group_id`'s group."""
    return float(optimizer.param_groups[summary_group_id(optimizer)]["lr"])


def describe_param_groups(groups: Sequence[Mapping[str, Any]]) -> str:
    """A table with one line per group: how many tensors and values it has, and its settings."""
    # Sorted, as a group need not have the keys of the first; settings that all groups share are of no interest.
    keys = sorted({key for group in groups for key in group} - set(_LISTS))
    varying = [key for key in keys if len({repr(_freeze(group.get(key))) for group in groups}) > 1]
    columns = ["lr", "weight_decay", *(key for key in varying if key not in ("lr", "weight_decay"))]
    rows = [["group", "tensors", "values", *columns]]
    for index, group in enumerate(groups):
        values = sum(parameter.numel() for parameter in group["params"])
        settings = [_text(group.get(key)) for key in columns]
        rows.append([str(index), f"{len(group['params'])}", f"{values:,}", *settings])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, (int, float)) else str(value)
