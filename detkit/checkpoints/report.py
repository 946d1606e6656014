"""What became of each tensor of a file and of a model."""

from __future__ import annotations

from typing import Any, NamedTuple

from detkit.checkpoints.class_rows import ClassRows
from detkit.checkpoints.key_matching import common_prefix

__all__ = ["LoadReport"]

_SHOWN = 5


class LoadReport(NamedTuple):
    """What :func:`~detkit.checkpoints.load_weights` did; the names are state-dict keys.

    As text it is short, with counts and the first names; :meth:`full` and :meth:`to_dict` have all of them.

    Attributes:
        loaded: How many tensors of the file were taken over.
        missing: In the model, not in the file: left as they were initialised.
        unexpected: In the file, not in the model: not used.
        mismatched: In both, with different shapes, and left as well: ``name: file (64, 3), model (64, 1)``.
        renamed: Name in the model -> name in the file, where one is the end of the other.
        classes: Rows that were taken over by the names of classes, where the class lists differ.
        origin: The project whose names the file has, where it is another one: ``torchvision``, ``Detectron2``.
    """

    loaded: int
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    renamed: dict[str, str] = {}
    classes: ClassRows | None = None
    origin: str | None = None

    @property
    def complete(self) -> bool:
        """Whether model and file have the same keys, shapes and classes."""
        return not (self.missing or self.unexpected or self.mismatched or self.classes)

    def __str__(self) -> str:
        return self._text(_SHOWN)

    def full(self) -> str:
        """As text with every name."""
        return self._text(None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        classes = None if self.classes is None else self.classes._asdict()
        return {**self._asdict(), "classes": classes}

    def _text(self, shown: int | None) -> str:
        parts = [f"{self.loaded} tensors loaded" + (f" from names of {self.origin}" if self.origin else "")]
        if self.classes is not None:
            parts += _rows_text(self.classes, shown)
        for label in ("missing", "unexpected", "mismatched"):
            names: list[str] = getattr(self, label)
            if names:
                parts.append(f"{len(names)} {label} ({_shortened(names, shown)})")
        if self.renamed:
            pairs = [f"{given} as {own}" for own, given in self.renamed.items()]
            parts.append(f"{len(pairs)} by the end of their names ({_shortened(pairs, shown)})")
        return "; ".join(parts)


def _rows_text(rows: ClassRows, shown: int | None) -> list[str]:
    parts = [f"in {len(rows.layers)} of them the rows of {len(rows.kept)} classes by name"]
    if rows.kept:
        parts[0] += f" ({_listed(rows.kept, shown)})"
    if rows.new:
        parts.append(f"rows of {len(rows.new)} new classes as initialised ({_listed(rows.new, shown)})")
    return parts


def _shortened(names: list[str], shown: int | None) -> str:
    if shown is None or len(names) <= shown:
        return ", ".join(names)
    shared = common_prefix(names).rpartition(".")[0]
    return f"all in {shared}" if shared else _listed(names, shown)


def _listed(names: list[str], shown: int | None) -> str:
    if shown is None or len(names) <= shown:
        return ", ".join(names)
    return f"{', '.join(names[:shown])} and {len(names) - shown} more"
