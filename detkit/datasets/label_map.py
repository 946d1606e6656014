"""The label map: which class a label is, and which category id the annotation file has for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detkit.registry import nearest

__all__ = ["LabelMap"]


@dataclass(frozen=True)
class LabelMap:
    """Class names in label order, each with its category id: label ``i`` is ``classes[i]``.

    Attributes:
        classes: Names, label 0 first; no name twice.
        category_ids: The annotation file's id of each class, any distinct integers.

    Raises:
        ValueError: Names and ids differ in number, or one of either occurs twice.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.category_ids):
            raise ValueError(
                f"label map: {len(self.classes)} class names but {len(self.category_ids)} category ids: "
                f"{self.classes} and {self.category_ids}"
            )
        for what, values in (("class name", self.classes), ("category id", self.category_ids)):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"label map: the {what} {twice[0]!r} occurs more than once in {values}")

    @classmethod
    def match(cls, category_ids: Mapping[str, int], classes: Sequence[str] | None, file: str) -> LabelMap:
        """Choose and order the categories of an annotation file by a list of names.

        Args:
            category_ids: Id of each category name of the file.
            classes: Wanted names in label order; None takes all, ordered by ascending id.
            file: The annotation file, for messages.

        Raises:
            TypeError: ``classes`` is not a list of names.
            ValueError: The file lacks a name, or ``classes`` is empty or names a class twice.
        """
        if classes is None:
            classes = sorted(category_ids, key=lambda name: category_ids[name])
        if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
            raise TypeError(f"metainfo.classes: a list of class names was expected, got {classes!r}")
        if not classes:
            raise ValueError(f"{file}: no classes: the file has {len(category_ids)} categories, metainfo.classes has 0")
        for name in classes:
            if name not in category_ids:
                close = " or ".join(repr(other) for other in nearest(name, category_ids, 3)) or "nothing"
                raise ValueError(
                    f"metainfo.classes: {name!r} is not a category of {file}; did you mean {close}? "
                    f"The file has: {', '.join(sorted(category_ids))}"
                )
        return cls(tuple(classes), tuple(category_ids[name] for name in classes))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> LabelMap:
        """The label map that ``to_dict`` gave, or the one a dataset's ``metainfo`` holds."""
        return cls(tuple(value["classes"]), tuple(value["category_ids"]))

    def to_dict(self) -> dict[str, list]:
        """Plain lists, as a checkpoint stores them."""
        return {"classes": list(self.classes), "category_ids": list(self.category_ids)}
