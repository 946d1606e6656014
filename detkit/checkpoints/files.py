"""Writing: plain types only, and a file is there whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["link_file", "remove_partial_files", "save_checkpoint_file", "to_plain", "write_text"]

# Checksums: torch.save writes a zip, whose entries carry a CRC-32 each. They cost nothing extra to write, come with
# the file in one rename, and `torch.load` still opens it; a digest of our own would be a second pass over the file, or
# a second file that can be lost. torch never compares them, so `formats.py` does before it opens a file.


def to_plain(value: Any, place: str = "checkpoint") -> Any:
    """Copy ``value`` into dicts, lists, tuples, strings, numbers, None and CPU tensors.

    Tensors that are on the CPU already are not copied.

    Args:
        value: What is to be saved; numpy scalars become numbers and numeric arrays become tensors.
        place: Path of ``value`` inside the saved object, for the message.

    Raises:
        TypeError: Something else is inside, with its path.
    """
    if value is None or isinstance(value, (bool, np.bool_)):
        return None if value is None else bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Tensor):
        return _plain_tensor(value)
    if isinstance(value, np.ndarray):
        return _plain_array(value, place)
    if isinstance(value, Mapping):
        return {to_plain(key, f"{place}.{key}"): to_plain(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [to_plain(item, f"{place}.{index}") for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    raise TypeError(
        f"{place}: {type(value).__module__}.{type(value).__qualname__} cannot be saved; a checkpoint holds dicts, "
        "lists, tuples, strings, numbers, None and tensors only"
    )


def _plain_tensor(tensor: Tensor) -> Tensor:
    plain = tensor.detach().cpu().as_subclass(Tensor)
    # A view would drag the whole storage it looks into along into the file.
    is_view = plain.untyped_storage().nbytes() > plain.numel() * plain.element_size()
    return plain.clone() if is_view else plain


def _plain_array(array: np.ndarray, place: str) -> Any:
    if array.dtype.kind in "biufc" and array.dtype.isnative:
        return torch.from_numpy(np.array(array))
    return to_plain(array.tolist(), place)


def save_checkpoint_file(obj: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint so that a reader finds the old file or the whole new one, whenever the writer is killed.

    It goes straight to the disk: no second copy is made in memory of tensors that are on the CPU.

    Args:
        obj: The checkpoint; see :func:`to_plain` for what it may hold.
        path: Where to; its folder must exist.

    Raises:
        TypeError: ``obj`` holds something that is not a plain type.
    """
    plain = to_plain(obj)
    _replace(Path(path), lambda file: torch.save(plain, file))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a small text file as atomically as a checkpoint."""
    _replace(Path(path), lambda file: file.write(text.encode()))


def link_file(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Give a file a second name, as atomically as it was written; where links are impossible, it is copied.

    Files are only ever replaced, never changed, so that the two names cannot disturb each other.
    """
    path = Path(path)
    partial = _partial(path)
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:  # file systems without links
        _replace(path, lambda file: file.write(Path(source).read_bytes()))
        return
    os.replace(partial, path)
    _sync_folder(path.parent)


def remove_partial_files(folder: str | os.PathLike[str]) -> None:
    """Delete what writers left half written when they were killed; nobody else may be writing there."""
    for path in Path(folder).glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name):
            path.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    partial = _partial(path)
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # a new name is on disk only once the folder is
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
