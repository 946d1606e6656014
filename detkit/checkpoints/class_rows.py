"""Rows of classes from the weights of one class list to those of another, by name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

__all__ = ["ClassRows", "carry_rows"]

# Prediction layers, by their names under a head, and what their rows are.
_BLOCKS = re.compile(r"(fc_reg|fc_logits|fc_mask_iou)\.(weight|bias)")  # a block of rows per class
_YOLO = re.compile(r"convs_pred\.\d+\.(weight|bias)")  # four distances and the objectness of each anchor in front
_ROWS = re.compile(  # per anchor a row per class
    r"(fc_cls|conv_logits|cls_score|reppoints_cls_out|conv_cls|retina_cls|atss_cls|gfl_cls|vfnet_cls|tood_cls|paa_cls"
    r"|heatmap_head\.2|rtm_cls\.\d+|multi_level_conv_cls\.\d+|cls_convs\.\d+\.\d)\.(weight|bias)"
    r"|loss_cls\.(cum_samples|pos_grad|neg_grad|pos_neg)"
)
_YOLO_FRONT = 5
# Modules with a number of classes that are no heads, or whose class is any object.
_NO_HEAD = re.compile(r"backbone(\.|$)|(.*\.)?(rpn_head|loss_\w+)$")


class ClassRows(NamedTuple):
    """What became of the rows of classes.

    Attributes:
        kept: Classes that both lists name, whose rows were taken over.
        new: Classes of the model only, whose rows are as they were initialised.
        layers: Which tensors, by their names in the model.
    """

    kept: list[str]
    new: list[str]
    layers: list[str]


class _Form(NamedTuple):
    """Rows as (anchors, front + classes + back, block)."""

    anchors: int = 1
    front: int = 0
    back: int = 0
    block: int = 1

    def rows(self, classes: int) -> int:
        return self.anchors * (self.front + classes + self.back) * self.block

    def fits(self, own: Tensor, value: Tensor, count: int, file_count: int) -> bool:
        """Whether the shapes are those of so many classes."""
        same = own.shape[1:] == value.shape[1:]
        return same and self.rows(count) == len(own) and self.rows(file_count) == len(value)

    def view(self, value: Tensor, classes: int) -> Tensor:
        return value.reshape(self.anchors, self.front + classes + self.back, self.block, *value.shape[1:])


def carry_rows(
    module: nn.Module,
    own: Mapping[str, Any],
    state: Mapping[str, Any],
    pairs: Mapping[str, str],
    classes: Sequence[str],
    file_classes: Sequence[str],
) -> tuple[dict[str, Tensor], ClassRows]:
    """Prediction layers of the model with the rows of those classes that the file has, too.

    What does not belong to a class (background, distances of YOLOv3) is taken over.

    Args:
        module: The model; modules with ``num_classes`` equal to the number of ``classes`` are its heads.
        own: Its state dict.
        state: The file's weights.
        pairs: Name of the model -> name in the file.
        classes: The model's, in label order.
        file_classes: The file's.
    """
    places = {name: index for index, name in enumerate(file_classes)}
    both = [(index, places[name]) for index, name in enumerate(classes) if name in places]
    heads = {
        name: head
        for name, head in module.named_modules()
        if getattr(head, "num_classes", None) == len(classes) and not _NO_HEAD.match(name)
    }
    counts = len(classes), len(file_classes)
    carried: dict[str, Tensor] = {}
    by_head: dict[str, list[str]] = defaultdict(list)
    for key, given in pairs.items():
        name = max((name for name in heads if key.startswith(f"{name}.")), key=len, default=None)
        if name is not None and isinstance(state[given], Tensor) and state[given].dim() == own[key].dim() > 0:
            by_head[name].append(key)
    for name, keys in by_head.items():
        lengths = {key: (len(own[key]), len(state[pairs[key]])) for key in keys}
        forms = {key: _form(heads[name], key.removeprefix(f"{name}."), lengths[key], counts) for key in keys}
        if not any(forms.values()):  # of a user's own head: a row per class, and perhaps one of the background
            forms = {key: _Form(back=back) for key in keys if 0 <= (back := len(own[key]) - len(classes)) <= 1}
        for key, form in forms.items():
            value = state[pairs[key]]
            if form is not None and form.fits(own[key], value, *counts):
                carried[key] = _carried(form, own[key], value, *counts, both)
    kept = [classes[index] for index, _ in both]
    return carried, ClassRows(kept, [name for name in classes if name not in places], list(carried))


def _form(head: nn.Module, rest: str, lengths: tuple[int, int], counts: tuple[int, int]) -> _Form | None:
    """What the rows of a layer are.

    Args:
        head: Where it is.
        rest: Its name there.
        lengths: Rows in the model and in the file.
        counts: Classes of both.
    """
    (rows, _), (count, _) = lengths, counts
    if _BLOCKS.fullmatch(rest):
        whole = rows % count == 0 and not getattr(head, "reg_class_agnostic", False)
        return _Form(block=rows // count) if whole else None
    if _YOLO.fullmatch(rest):
        return _Form(anchors=rows // (_YOLO_FRONT + count), front=_YOLO_FRONT)
    if not _ROWS.fullmatch(rest):
        return None
    more_rows, more_classes = lengths[0] - lengths[1], counts[0] - counts[1]
    if more_classes and more_rows % more_classes == 0 and more_rows // more_classes > 0:
        anchors = more_rows // more_classes
        return _Form(anchors, back=rows // anchors - count)
    # Softmax has a row for the background, SeesawLoss one more for objects and one for what is none.
    if 0 <= rows - count <= 2:
        return _Form(back=rows - count)
    back = 0 if getattr(getattr(head, "loss_cls", None), "use_sigmoid", True) else 1
    return _Form(rows // (count + back), back=back)


def _carried(
    form: _Form, own: Tensor, value: Tensor, count: int, file_count: int, both: Sequence[tuple[int, int]]
) -> Tensor:
    mine = form.view(own.detach().clone(), count)
    theirs = form.view(value.to(own), file_count)
    mine[:, : form.front] = theirs[:, : form.front]
    mine[:, form.front + count :] = theirs[:, form.front + file_count :]
    for index, other in both:
        mine[:, form.front + index] = theirs[:, form.front + other]
    return mine.reshape(own.shape)
