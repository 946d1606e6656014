"""Weights from files, URLs and torchvision, read without running what they contain."""

from __future__ import annotations

import errno
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

__all__ = ["load_checkpoint_file", "load_torchvision", "open_checkpoint"]

# Where weights may come from: a file, a URL, torchvision, or OpenMMLab's lists of URLs.
SAFE_SCHEMES = {"", "http://", "https://", "torchvision://", "modelzoo://", "open-mmlab://", "openmmlab://", "mmcls://"}

# The unpickler raises whatever a broken stream makes it stumble over.
_BROKEN = (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, pickle.UnpicklingError)


def load_checkpoint_file(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Args:
        path: A file written by a run, or by ``torch.save`` from plain types.
        map_location: Device of the tensors, as for ``torch.load``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is truncated, is no checkpoint, or would run code when opened.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except OSError as error:
        # torch seeks before the start of some truncated files; any other failure of the system speaks for itself.
        if error.errno != errno.EINVAL:
            raise
        raise ValueError(_unreadable(path, error)) from error
    except _BROKEN as error:
        raise ValueError(_unreadable(path, error)) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path}: a dict was expected in the checkpoint, got {type(checkpoint).__name__}")
    return checkpoint


def _unreadable(path: Path, error: Exception) -> str:
    size = path.stat().st_size
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if isinstance(error, EOFError) or (is_zip and not zipfile.is_zipfile(path)):
        return f"{path} ({size} bytes): the checkpoint is truncated; copy it again, or resume from an older one"
    foreign = re.search(r"GLOBAL (\S+)|class (\S+) ", str(error))
    if isinstance(error, pickle.UnpicklingError) and foreign:
        name = foreign[1] or foreign[2]
        return (
            f"{path} ({size} bytes): opening this file would run code ({name}), so it was not opened; a checkpoint "
            "from elsewhere must be saved again by its owner with tensors and plain types only"
        )
    reason = str(error).partition("\n")[0] or type(error).__name__
    if "Weights only load failed" in reason:
        reason = "not written by torch.save"
    return f"{path} ({size} bytes): not a checkpoint that torch can open ({reason}); give the path of a .pth file"


def open_checkpoint(source: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint from a file, or from what mmengine has a scheme for (``https://``, ``torchvision://`` …)."""
    if "://" in str(source):
        return CheckpointLoader.load_checkpoint(str(source), map_location)
    return load_checkpoint_file(source, map_location)


def load_torchvision(name: str, map_location: Any = "cpu", **_: Any) -> dict[str, Any]:
    """ImageNet weights of a torchvision model.

    ``torchvision://resnet50`` takes the first version published, which MMDetection trains from;
    ``torchvision://resnet50.IMAGENET1K_V2`` names another.

    Raises:
        ValueError: torchvision has no such model or weights.
    """
    from torchvision.models import get_model_weights

    model, _dot, version = name.partition("://")[2].partition(".")
    try:
        weights = get_model_weights(model)[version or "IMAGENET1K_V1"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"torchvision has no weights {name!r}") from error
    return _load_from_url(weights.url, map_location)


def _load_from_url(url: str, map_location: Any = None, **_: Any) -> dict[str, Any]:
    return torch.hub.load_state_dict_from_url(url, map_location=map_location, weights_only=True)


def _load_from_path(filename: str, map_location: Any = None) -> dict[str, Any]:
    return load_checkpoint_file(filename, map_location)


def _refuse(filename: str, map_location: Any = None, **_: Any) -> dict[str, Any]:
    scheme = filename.partition(":")[0]
    raise ValueError(f"{filename}: weights are not fetched from {scheme}:; download the file and give its path")


# mmengine opens what an `init_cfg` or a URL names with weights_only=False (or, for local files, with torch's
# default, which is False before torch 2.6): a file could run code. Its loaders are replaced, for every caller.
CheckpointLoader.register_scheme(prefixes="", loader=_load_from_path, force=True)
CheckpointLoader.register_scheme(prefixes=["http://", "https://"], loader=_load_from_url, force=True)
CheckpointLoader.register_scheme(prefixes=["torchvision://", "modelzoo://"], loader=load_torchvision, force=True)
for _prefix in set(CheckpointLoader._schemes) - SAFE_SCHEMES:
    CheckpointLoader.register_scheme(prefixes=_prefix, loader=_refuse, force=True)
mmengine_checkpoint.load_from_http = _load_from_url  # open-mmlab:// and mmcls:// go through these two
mmengine_checkpoint.load_from_local = _load_from_path
