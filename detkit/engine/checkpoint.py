"""Checkpoint files: written atomically, holding only plain types, and read without running any code."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from detkit.models.pretrained import load_checkpoint_file, open_checkpoint

__all__ = [
    "LoadReport",
    "load_checkpoint_file",
    "load_weights",
    "open_checkpoint",
    "resume_candidates",
    "save_checkpoint_file",
    "to_plain",
    "write_text",
]


def to_plain(value: Any, place: str = "checkpoint") -> Any:
    """Copy ``value`` into dicts, lists, tuples, strings, numbers, None and CPU tensors.

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


def _replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name is on disk only once the folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class LoadReport(NamedTuple):
    """What :func:`load_weights` did; the names are state-dict keys.

    Attributes:
        loaded: How many tensors were taken over.
        missing: In the model, not in the file.
        unexpected: In the file, not in the model.
        mismatched: In both, with different shapes: ``name: file (64, 3), model (64, 1)``.
    """

    loaded: int
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    @property
    def complete(self) -> bool:
        """Whether model and file have the same keys and shapes."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors loaded"]
        for label in ("missing", "unexpected", "mismatched"):
            names: list[str] = getattr(self, label)
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                parts.append(f"{len(names)} {label} ({', '.join(names[:5])}{more})")
        return "; ".join(parts)


def load_weights(
    model: nn.Module, source: str | os.PathLike[str] | Mapping[str, Any], strict: bool = False
) -> LoadReport:
    """Load the weights of a checkpoint into ``model``.

    Args:
        model: Receives the tensors whose name and shape agree.
        source: A checkpoint file or its content: ``{'state_dict': ...}`` or a bare state dict.
        strict: Whether every key and shape must agree.

    Raises:
        ValueError: Nothing fits, or ``strict`` and something does not; the model is then unchanged.
    """
    name = "checkpoint" if isinstance(source, Mapping) else str(source)
    content = source if isinstance(source, Mapping) else load_checkpoint_file(source)
    state = {key.removeprefix("module."): value for key, value in content.get("state_dict", content).items()}
    own = model.state_dict()
    mismatched = [
        f"{key}: file {tuple(value.shape)}, model {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and isinstance(value, Tensor) and value.shape != own[key].shape
    ]
    left_out = {text.partition(":")[0] for text in mismatched}
    fitting = {key: value for key, value in state.items() if key in own and key not in left_out}
    report = LoadReport(
        len(fitting),
        [key for key in own if key not in state],
        [key for key in state if key not in own],
        mismatched,
    )
    if not fitting:
        raise ValueError(f"{name}: no tensor of it fits this model; is it the checkpoint of another one? {report}")
    if strict and not report.complete:
        raise ValueError(f"{name}: weights and model do not agree: {report}")
    model.load_state_dict(fitting, strict=False)
    return report


def resume_candidates(folder: str | os.PathLike[str]) -> list[Path]:
    """Checkpoints of a work directory in the order in which resuming should try them.

    The one that ``last_checkpoint`` names comes first, then those before it, by the number in their names;
    later ones belong to an earlier run in the same folder. Without that file, all of them, the latest first.
    """
    folder = Path(folder)
    numbered = {
        path: int(match[1])
        for path in folder.glob("*.pth")
        if (match := re.search(r"(\d+)\.pth$", path.name)) and not path.name.startswith("best_")
    }
    latest_first = sorted(numbered, key=lambda path: (-numbered[path], path.name))
    pointer = folder / "last_checkpoint"
    # mmengine wrote absolute paths there, which break when the folder moves: only the name counts.
    last = folder / Path(pointer.read_text().strip()).name if pointer.is_file() else None
    if last not in numbered:
        return latest_first
    return [last, *(path for path in latest_first if numbered[path] < numbered[last])]
