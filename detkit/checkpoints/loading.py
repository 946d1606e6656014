"""Weights into a model, with a report of what fitted."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from detkit.checkpoints.formats import with_state_dict
from detkit.checkpoints.key_matching import common_prefix, match_suffixes, revise_keys, strip_wrapper
from detkit.checkpoints.schemes import open_checkpoint

__all__ = ["LoadReport", "load_weights"]

_MATCHING = ("exact", "suffix")
# What Detectron2 keeps among its weights and computes here.
_COMPUTED = re.compile(r"(^|\.)(pixel_mean|pixel_std)$|anchor_generator\.cell_anchors")


class LoadReport(NamedTuple):
    """What :func:`load_weights` did; the names are state-dict keys.

    Attributes:
        loaded: How many tensors of the file were taken over.
        missing: In the model, not in the file.
        unexpected: In the file, not in the model.
        mismatched: In both, with different shapes: ``name: file (64, 3), model (64, 1)``.
        renamed: Name in the model -> name in the file, where they differ.
    """

    loaded: int
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    renamed: dict[str, str] = {}

    @property
    def complete(self) -> bool:
        """Whether model and file have the same keys and shapes."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors loaded"]
        for label in ("missing", "unexpected", "mismatched"):
            names: list[str] = getattr(self, label)
            if names:
                parts.append(f"{len(names)} {label} ({_shortened(names)})")
        if self.renamed:
            pairs = [f"{given} as {own}" for own, given in self.renamed.items()]
            parts.append(f"{len(pairs)} by the end of their names ({_shortened(pairs)})")
        return "; ".join(parts)


def _shortened(names: list[str]) -> str:
    if len(names) <= 5:
        return ", ".join(names)
    shared = common_prefix(names).rpartition(".")[0]
    return f"all in {shared}" if shared else f"{', '.join(names[:5])} and {len(names) - 5} more"


def load_weights(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    strict: bool = False,
    revise: Sequence[tuple[str, str]] = (),
    key_matching: str | None = None,
    name: str | None = None,
) -> LoadReport:
    """Load the weights of a checkpoint into ``model``, which may be wrapped for several processes.

    Args:
        model: Receives the tensors whose name and shape agree. Lazy parameters take the shape of what they receive.
        source: A checkpoint file, a URL, or the content: ``{'state_dict': ...}`` or a bare state dict. A ``module.``
            before all its names is dropped.
        strict: Whether every key and shape must agree.
        revise: Pairs (pattern, replacement) that rename what the file holds, before names are compared.
        key_matching: ``exact``, or ``suffix``: a name of the model takes the longest name of the file with which it
            ends, ``backbone.body.conv1.weight`` that of ``conv1.weight``. By default ``suffix`` for files that ask
            for it, by their format or by ``?matching_heuristics=True`` after their name, and else ``exact``.
        name: What messages call the source where it is no file.

    Returns:
        What was loaded and what was not.

    Raises:
        ValueError: Nothing fits, or ``strict`` and something does not, or it is not clear what belongs where; the
            model is then unchanged.
    """
    name = name or ("checkpoint" if isinstance(source, Mapping) else str(source))
    if key_matching is not None and key_matching not in _MATCHING:
        raise ValueError(f"key_matching must be 'exact' or 'suffix', got {key_matching!r}")
    content = with_state_dict(source if isinstance(source, Mapping) else open_checkpoint(source))
    state = _tensors(content.get("state_dict", content), name)
    if revise:
        state = revise_keys(state, revise)
    module = _unwrapped(model)
    own = module.state_dict()
    matching = key_matching or ("suffix" if content.get("matching_heuristics") else "exact")
    pairs = match_suffixes(own, state) if matching == "suffix" else {key: key for key in own if key in state}
    mismatched = {key: given for key, given in pairs.items() if not _fits(state[given], own[key])}
    fitting = {key: given for key, given in pairs.items() if key not in mismatched}
    _refuse_ambiguous(fitting, name)
    report = _report(module, own, state, fitting, mismatched)
    if not fitting:
        raise ValueError(f"{name}: no tensor of it fits this model; is it the checkpoint of another one? {report}")
    if strict and not report.complete:
        raise ValueError(f"{name}: weights and model do not agree: {report}")
    module.load_state_dict({key: state[given] for key, given in fitting.items()}, strict=False)
    return report


def _tensors(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    tensors = {}
    for key, value in strip_wrapper(state).items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        # What a module gives as extra state may be anything.
        if not isinstance(value, Tensor) and not key.endswith("_extra_state"):
            raise ValueError(f"{name}: {key} is a {type(value).__name__}, where a tensor was expected")
        tensors[key] = value
    return tensors


def _unwrapped(model: nn.Module) -> nn.Module:
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, wrappers) else model


def _fits(value: Any, own: Any) -> bool:
    if not isinstance(value, Tensor) or not isinstance(own, Tensor) or is_lazy(own):
        return True
    return is_lazy(value) or value.shape == own.shape


def _refuse_ambiguous(fitting: Mapping[str, str], name: str) -> None:
    takers: dict[str, list[str]] = defaultdict(list)
    for key, given in fitting.items():
        takers[given].append(key)
    for given, keys in takers.items():
        if len(keys) > 1:
            raise ValueError(f"{name}: {given!r} is ambiguous, it could be {' or '.join(keys)}; use revise_keys")


def _report(
    module: nn.Module,
    own: Mapping[str, Any],
    state: Mapping[str, Any],
    fitting: Mapping[str, str],
    mismatched: Mapping[str, str],
) -> LoadReport:
    used = {*fitting.values(), *mismatched.values()}
    filled = _with_aliases(module, fitting)
    return LoadReport(
        len(fitting),
        [key for key in own if key not in filled and key not in mismatched and not _COMPUTED.search(key)],
        [key for key in state if key not in used and not _COMPUTED.search(key)],
        [f"{key}: file {tuple(state[name].shape)}, model {tuple(own[key].shape)}" for key, name in mismatched.items()],
        {key: given for key, given in fitting.items() if key != given},
    )


def _with_aliases(module: nn.Module, names: Iterable[str]) -> set[str]:
    """``names``, and what else the tensors behind them are called in the model."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    identity = {name: id(tensor) for name, tensor in tensors}
    filled = {identity[name] for name in names if name in identity}
    return {*names, *(name for name, tensor in identity.items() if tensor in filled)}
