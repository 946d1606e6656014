"""Weights into a model, with a report of what fitted."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from detkit.checkpoints.class_rows import ClassRows, carry_rows
from detkit.checkpoints.formats import check_form, with_state_dict
from detkit.checkpoints.key_matching import match_suffixes, revise_keys, strip_wrapper
from detkit.checkpoints.origins import class_names, with_own_names
from detkit.checkpoints.report import LoadReport
from detkit.checkpoints.schemes import open_checkpoint
from detkit.checkpoints.trunk import check_trunk, describe, needs_no_loading

__all__ = ["load_weights"]

_MATCHING = ("exact", "suffix")
# What Detectron2 keeps among its weights and computes here.
_COMPUTED = re.compile(r"(^|\.)(pixel_mean|pixel_std)$|anchor_generator\.cell_anchors")


def load_weights(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    strict: bool = False,
    revise: Sequence[tuple[str, str]] = (),
    key_matching: str | None = None,
    name: str | None = None,
    classes: Sequence[str] | None = None,
) -> LoadReport:
    """Load the weights of a checkpoint into ``model``, which may be wrapped for several processes.

    Files of torchvision's and Detectron2's detectors are recognised by their names, which are translated; so are those
    that MMDetection has changed since.

    Args:
        model: Receives the tensors whose name and shape agree. Lazy parameters take the shape of what they receive.
        source: A checkpoint file, a URL, or the content: ``{'state_dict': ...}`` or a bare state dict. A ``module.``
            before all its names is dropped.
        strict: Whether every key and shape must agree.
        revise: Pairs (pattern, replacement) that rename what the file holds, before anything else.
        key_matching: ``exact``, or ``suffix``: a name of the model takes the longest name of the file with which it
            ends, ``backbone.body.conv1.weight`` that of ``conv1.weight``. By default ``suffix`` for files that ask
            for it, by their format or by ``?matching_heuristics=True`` after their name, and else ``exact``.
        name: What messages call the source where it is no file.
        classes: Names of the model's classes in label order. Where the file names others, the rows of those that both
            have are taken over, and the others' rows stay as they are; not with ``strict``.

    Returns:
        What was loaded and what was not.

    Raises:
        ValueError: Nothing fits, the backbone is another one, ``strict`` and something does not fit, or it is not
            clear what belongs where; the model is then unchanged.
    """
    name = name or ("checkpoint" if isinstance(source, Mapping) else str(source))
    if key_matching is not None and key_matching not in _MATCHING:
        raise ValueError(f"key_matching must be 'exact' or 'suffix', got {key_matching!r}")
    content = with_state_dict(source if isinstance(source, Mapping) else open_checkpoint(source))
    check_form(content, name)
    state = _tensors(content.get("state_dict", content), name)
    if revise:
        state = revise_keys(state, revise)
    module = _unwrapped(model)
    own = module.state_dict()
    state, origin = _translated(state, content, own, name)
    by_suffix = content.get("matching_heuristics") and origin is None  # conv1 would fit every block
    matching = key_matching or ("suffix" if by_suffix else "exact")
    pairs = match_suffixes(own, state) if matching == "suffix" else {key: key for key in own if key in state}
    rows = None
    carried: dict[str, Tensor] = {}
    file_classes = None if strict or classes is None else class_names(content)
    if classes is not None and file_classes is not None and list(classes) != file_classes:
        carried, rows = carry_rows(module, own, state, pairs, classes, file_classes)
    mismatched = {
        key: given for key, given in pairs.items() if key not in carried and not _fits(state[given], own[key])
    }
    fitting = {key: given for key, given in pairs.items() if key not in mismatched}
    _refuse_ambiguous(fitting, name)
    report = _report(module, own, state, fitting, mismatched, rows, origin)
    if not fitting:
        raise ValueError(
            f"{name}: no tensor of it fits this model; is it the checkpoint of another one? It looks like "
            f"{describe(state)}; the model is {describe(own)}; {report}"
        )
    check_trunk(own, state, fitting, name)
    if strict and not report.complete:
        raise ValueError(f"{name}: weights and model do not agree: {report}")
    loaded = {key: carried.get(key, state[given]) for key, given in fitting.items()}
    module.load_state_dict(loaded, strict=False)
    return report


def _translated(
    state: Mapping[str, Any], content: Mapping[str, Any], own: Mapping[str, Any], name: str
) -> tuple[dict[str, Any], str | None]:
    try:
        return with_own_names(state, content, own)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


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
    rows: ClassRows | None,
    origin: str | None,
) -> LoadReport:
    used = {*fitting.values(), *mismatched.values()}
    filled = _with_aliases(module, fitting)
    return LoadReport(
        len(fitting),
        [key for key in own if key not in filled and key not in mismatched and not _is_computed(key)],
        [key for key in state if key not in used and not _COMPUTED.search(key)],
        [f"{key}: file {tuple(state[name].shape)}, model {tuple(own[key].shape)}" for key, name in mismatched.items()],
        {key: given for key, given in fitting.items() if key != given},
        rows,
        origin,
    )


def _is_computed(name: str) -> bool:
    return needs_no_loading(name) or _COMPUTED.search(name) is not None


def _with_aliases(module: nn.Module, names: Iterable[str]) -> set[str]:
    """``names``, and what else the tensors behind them are called in the model."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    identity = {name: id(tensor) for name, tensor in tensors}
    filled = {identity[name] for name in names if name in identity}
    return {*names, *(name for name, tensor in identity.items() if tensor in filled)}
