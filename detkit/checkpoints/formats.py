"""Reading: one function for every kind of weights file, which recognises it by its first bytes.

| file | written by | read as |
|---|---|---|
| ``.pth`` (zip, or torch's older format) | detkit, mmengine, MMDetection, Detectron2, torchvision, DETR | by torch |
| ``.pyth`` | pycls | by torch; batch counters are dropped |
| ``.pkl`` with ``model`` | Detectron2's model zoo | as data |
| ``.pkl`` of blobs | Caffe2, Detectron | as data; renamed and reordered by ``caffe2.py`` |
| ``.safetensors`` | safetensors | as data |

Weights are under ``state_dict`` in the result, whatever the file calls them.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detkit.checkpoints.broadcast import from_rank0
from detkit.checkpoints.caffe2 import convert_caffe2
from detkit.checkpoints.safetensors import load_safetensors
from detkit.checkpoints.unpickle import StructureUnpickler, load_pickle, only_data, stand_ins_allowed

__all__ = ["check_form", "load_checkpoint_file", "peek", "with_state_dict"]

_ZIP = b"PK\x03\x04"
_FOLDER = 0x10
# A pickle of torch's magic number opens its older format.
_TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# What torch, pickle and numpy say of an end that is missing, or of a tensor that is too short for its shape.
_CUT_OFF = re.compile(r"unexpected EOF|truncated|does not match expected size|buffer is too small|is cut off")

# The unpickler raises whatever a broken stream makes it stumble over.
_BROKEN = (
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    MemoryError,
    OverflowError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)


def load_checkpoint_file(
    path: str | os.PathLike[str], map_location: Any = "cpu", broadcast_from_rank0: bool = False
) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Args:
        path: A file of one of the kinds above.
        map_location: Device of the tensors, as for ``torch.load``.
        broadcast_from_rank0: Whether the first process alone reads the file and tells the others; all must call.

    Returns:
        Its content, with the weights under ``state_dict``; ``matching_heuristics`` is true where names are parts of
        the model's names, as in files of Caffe2 and pycls.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is truncated or damaged, is no checkpoint, or would run code when opened; its parts are of
            another form than a checkpoint's.
    """
    if broadcast_from_rank0:
        return from_rank0(lambda: load_checkpoint_file(path, map_location))
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    try:
        content = _read(path, map_location)
    except OSError as error:
        # torch seeks before the start of some truncated files; any other failure of the system speaks for itself.
        if error.errno != errno.EINVAL:
            raise
        raise ValueError(_unreadable(path, error)) from error
    except _BROKEN as error:
        raise ValueError(_unreadable(path, error)) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a dict was expected in the checkpoint, got {type(content).__name__}")
    content = with_state_dict(_converted(content, path))
    check_form(content, str(path))
    return content


def _read(path: Path, map_location: Any) -> Any:
    with open(path, "rb") as file:
        start = file.read(len(_TORCH_LEGACY))
        if start[:4] != _ZIP and start != _TORCH_LEGACY:
            if start[:1] == b"\x80" or (path.suffix == ".pkl" and start):
                file.seek(0)
                return {**_dict_of(load_pickle(file), path), "__format__": "pickle"}
            if start[8:9] == b"{":
                return {"state_dict": load_safetensors(path)}
            if _ZIP.startswith(start):
                raise EOFError
            # Such as the tar files of torch's first years, from which it runs code below 2.6 (CVE-2025-32434).
            raise pickle.UnpicklingError("not written by torch.save")
    if start[:4] == _ZIP:
        _check_sums(path)
    with stand_ins_allowed():
        return only_data(torch.load(path, map_location=map_location, weights_only=True))


def _dict_of(content: Any, path: Path) -> dict[str, Any]:
    if isinstance(content, dict):
        return content
    raise ValueError(f"{path}: a dict was expected in the checkpoint, got {type(content).__name__}")


def _check_sums(path: Path) -> None:
    """Compare the checksum of each entry: torch loads a file with flipped bits without a word."""
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
        # What is marked as a folder torch takes for empty: its tensor would be whatever is in memory.
        if any(entry.external_attr & _FOLDER for entry in entries):
            raise zipfile.BadZipFile("its table of contents is wrong")
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):  # older torch loads and runs it
            raise pickle.UnpicklingError("a program of TorchScript, not weights")
        if not any(entry.CRC for entry in entries):
            return  # torch.serialization.set_crc32_options(False) writes none
        damaged = file.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"checksum of {damaged} differs")


def _converted(content: dict[str, Any], path: Path) -> dict[str, Any]:
    is_pickle = content.pop("__format__", None) == "pickle"
    if path.suffix == ".pyth" or isinstance(content.get("model_state"), Mapping):
        if not isinstance(content.get("model_state"), Mapping):
            raise ValueError(f"{path}: a .pyth file of pycls has its weights under 'model_state', this one has none")
        state = content.pop("model_state")
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        return {**content, "state_dict": state, "matching_heuristics": True}
    if is_pickle and "blobs" not in content and ("state_dict" in content or isinstance(content.get("model"), Mapping)):
        return content
    if is_pickle:
        blobs = content.get("blobs", content)
        if not isinstance(blobs, Mapping):
            raise ValueError(f"{path}: 'blobs' must be a dict of arrays, got {type(blobs).__name__}")
        arrays = {name: value for name, value in blobs.items() if isinstance(value, Tensor)}
        return {"state_dict": convert_caffe2(arrays), "__author__": "Caffe2", "matching_heuristics": True}
    return content


def with_state_dict(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the weights under ``state_dict``, which some call ``model`` and others leave bare."""
    if isinstance(content.get("state_dict"), Mapping):
        return dict(content)
    if _is_weights(content.get("model")):
        rest = {key: value for key, value in content.items() if key != "model"}
        return {"state_dict": content["model"], **rest}
    return {"state_dict": content} if _is_weights(content) else dict(content)


def check_form(content: Mapping[str, Any], name: str) -> None:
    """Refuse a checkpoint whose parts are not of the form that its readers rely on.

    Raises:
        ValueError: ``state_dict``, ``meta`` or the classes in it are no dict, or a weight is not named by a text.
    """
    meta = content.get("meta")
    parts = {"state_dict": content.get("state_dict"), "meta": meta}
    if isinstance(meta, Mapping):
        parts.update({f"meta.{key}": meta.get(key) for key in ("dataset_meta", "label_map")})
    for part, value in parts.items():
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"{name}: a dict was expected as {part!r} of the checkpoint, got {type(value).__name__}")
    for key in content.get("state_dict") or ():
        if not isinstance(key, str):
            raise ValueError(f"{name}: names of weights were expected in 'state_dict', got {key!r}")


def _is_weights(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    others = [key for key, item in value.items() if not isinstance(item, (Tensor, np.ndarray))]
    return all(str(key).endswith("_extra_state") for key in others)


def peek(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What a checkpoint says beside its tensors, in milliseconds; None where it cannot be read.

    Args:
        path: A ``.pth`` file in torch's present format. Only its table of contents is read, not its tensors, so that
            these may be damaged all the same.
    """
    try:
        with zipfile.ZipFile(path) as file:
            name = next(name for name in file.namelist() if name.endswith("/data.pkl"))
            with file.open(name) as data:
                content = only_data(StructureUnpickler(data).load())
    except (*_BROKEN, OSError, StopIteration):
        return None
    return content if isinstance(content, dict) else None


def _has_end(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # its table of contents is there, and wrong
        return True


def _unreadable(path: Path, error: Exception) -> str:
    size = path.stat().st_size
    with open(path, "rb") as file:
        is_zip = file.read(4) == _ZIP
    reason = str(error).partition("\n")[0] or type(error).__name__
    if isinstance(error, EOFError) or (is_zip and not _has_end(path)) or _CUT_OFF.search(reason):
        where = f" ({reason})" if _CUT_OFF.search(reason) else ""
        return f"{path} ({size} bytes): the checkpoint is truncated{where}; copy it again, or resume from an older one"
    if isinstance(error, zipfile.BadZipFile):
        return f"{path} ({size} bytes): the checkpoint is damaged ({reason}); copy it again, or take an older one"
    foreign = re.search(r"GLOBAL (\S+)|class (\S+) ", str(error))
    if foreign:
        name = foreign[1] or foreign[2]
        return (
            f"{path} ({size} bytes): opening this file would run code ({name}), so it was not opened; a checkpoint "
            "from elsewhere must be saved again by its owner with tensors and plain types only"
        )
    if "Weights only load failed" in reason:
        reason = "not written by torch.save"
    return f"{path} ({size} bytes): not a checkpoint that torch can open ({reason}); give the path of a .pth file"
