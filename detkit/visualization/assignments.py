"""What an assigner makes of the priors of one image, as a row of panels in a PNG file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from detkit.task_modules.assigners.assign_result import BACKGROUND, IGNORED

__all__ = ["AssignmentPanel", "AssignmentPicture", "draw_assignment"]

Box = Sequence[float]  # x1, y1, x2, y2

# Told apart by the colour-blind too (Okabe and Ito); further objects begin again.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY, DARK, FRAME = "#a8a8a8", "#404040", "#808080"
INCHES = 10.0  # width of a picture
LEAST_PANELS = 3  # a row has room for so many, so that panels of all pictures are of one size
FEW, MANY = 30, 200  # priors, below and from which their marks are larger and smaller
COLOURS_OF_FILE = 256  # of the palette: half of the bytes, and no difference to be seen


@dataclass(frozen=True)
class AssignmentPanel:
    """The priors of one level, or another group of them.

    Attributes:
        title: What they are.
        centres: (P, 2) in pixels.
        gt_inds: (P,) ``i + 1`` for the i-th object, 0 background, -1 ignored.
        outlines: Boxes that are drawn, each with its object, as ``gt_inds`` has it.
        rings: (P,) object, from 1, in whose colour the prior is ringed; None or 0 for none.
        fit: (P,) in [0, 1]: the higher, the larger the mark of a background prior; None for all small.
    """

    title: str
    centres: Tensor
    gt_inds: Tensor
    outlines: Sequence[tuple[Box, int]] = ()
    rings: Tensor | None = None
    fit: Tensor | None = None


@dataclass(frozen=True)
class AssignmentPicture:
    """A row of panels, with what the marks in it mean.

    Attributes:
        title: Above, at the left.
        subtitle: Above, at the right.
        size: Height and width of the image in pixels.
        objects: Their boxes.
        panels: From left to right.
        region: Box in which nothing is counted.
        outline: What the outlined boxes are.
        ring: What a ring means.
        fit: What a larger mark of the background means.
    """

    title: str
    subtitle: str
    size: tuple[int, int]
    objects: Sequence[Box]
    panels: Sequence[AssignmentPanel] = field(default=())
    region: Box | None = None
    outline: str = ""
    ring: str = ""
    fit: str = ""


def draw_assignment(picture: AssignmentPicture, path: str | Path, dpi: int = 120) -> None:
    """Write a picture 10 inches wide: title, panels, and a line that explains the marks.

    Args:
        picture: What is drawn.
        path: PNG file.
        dpi: Dots per inch.
    """
    columns = max(len(picture.panels), LEAST_PANELS)
    gap, margin = 0.009, 0.008  # in widths of the picture
    width = (1 - 2 * margin - (columns - 1) * gap) / columns
    panel_height = width * INCHES * picture.size[0] / picture.size[1]
    height = 0.28 + panel_height + 0.5  # inches: legend, panel, titles
    figure = Figure(figsize=(INCHES, height), dpi=dpi)
    top = 1 - 0.13 / height
    figure.text(margin, top, picture.title, weight="bold", size=10, va="center")
    figure.text(1 - margin, top, picture.subtitle, size=8, va="center", ha="right", color=DARK)
    for index, panel in enumerate(picture.panels):
        left = margin + index * (width + gap)
        _draw_panel(figure.add_axes((left, 0.28 / height, width, panel_height / height)), panel, picture)
    _add_legend(figure, picture)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    Image.open(data).convert("RGB").quantize(COLOURS_OF_FILE).save(path, format="PNG", optimize=True)


def _colour(number: int) -> str:
    """Of the object of this number, from 1; grey for none."""
    return COLOURS[(number - 1) % len(COLOURS)] if number > 0 else GREY


def _outline(box: Box, number: int) -> Rectangle:
    return _rectangle(box, edgecolor=_colour(number), fill=False, linewidth=0.9, linestyle=(0, (4, 2)))


def _region(box: Box) -> Rectangle:
    return _rectangle(box, facecolor="#ececec", edgecolor=FRAME, linewidth=0.8)


def _rectangle(box: Box, **style: Any) -> Rectangle:
    x1, y1, x2, y2 = box
    return Rectangle((x1, y1), x2 - x1, y2 - y1, **style)


def _draw_panel(axes: Axes, panel: AssignmentPanel, picture: AssignmentPicture) -> None:
    axes.set(xlim=(0, picture.size[1]), ylim=(picture.size[0], 0), xticks=[], yticks=[])
    axes.set_title(panel.title, size=8, loc="left", pad=3)
    axes.spines[:].set_color(FRAME)
    if picture.region is not None:
        axes.add_patch(_region(picture.region))
    for number, box in enumerate(picture.objects, start=1):
        colour = _colour(number)
        axes.add_patch(_rectangle(box, facecolor=f"{colour}1c", edgecolor=colour, linewidth=1.6))
    for box, number in panel.outlines:
        axes.add_patch(_outline(box, number))

    def scatter(chosen: Tensor, size: Any, marker: str = "o", **style: Any) -> None:
        x, y = panel.centres[chosen].unbind(dim=1)
        axes.scatter(x, y, s=size, marker=marker, zorder=3, **style)

    crowded = len(panel.centres) >= MANY
    background = panel.gt_inds == BACKGROUND
    least = 3.0 if crowded else 4.0 if len(panel.centres) >= FEW else 12.0
    size = least if panel.fit is None else least + 20 * panel.fit[background] ** 3
    scatter(background, size, color=GREY, linewidths=0)
    scatter(panel.gt_inds == IGNORED, 14, "x", color=DARK, linewidths=0.9)
    rings = torch.zeros_like(panel.gt_inds) if panel.rings is None else panel.rings
    for number in range(1, len(picture.objects) + 1):
        scatter(rings == number, 20, facecolors="none", edgecolors=_colour(number), linewidths=0.8)
        scatter(panel.gt_inds == number, 17 if crowded else 26, color=_colour(number), linewidths=0)


def _add_legend(figure: Figure, picture: AssignmentPicture) -> None:
    def mark(marker: str, colour: str, size: float, filled: bool = True) -> Line2D:
        face = colour if filled else "none"
        return Line2D([], [], ls="", marker=marker, ms=size, mec=colour, mfc=face, mew=0.9)

    marks: dict[str, Any] = {}
    if picture.objects:
        dots = tuple(mark("o", _colour(number), 4.5) for number in range(1, len(picture.objects) + 1))
        marks["learns the object of its colour"] = dots
    marks["background" + (f", {picture.fit}" if picture.fit else "")] = mark("o", GREY, 2.2)
    if any(bool((panel.gt_inds == IGNORED).any()) for panel in picture.panels):
        marks["ignored"] = mark("x", DARK, 4)
    if picture.ring:
        marks[picture.ring] = mark("o", _colour(1), 4.5, filled=False)
    if picture.outline:
        marks[picture.outline] = _outline((0, 0, 1, 1), 1)
    if picture.region is not None:
        marks["ignored region"] = _region((0, 0, 1, 1))
    figure.legend(
        list(marks.values()),
        list(marks),
        loc="lower left",
        bbox_to_anchor=(0, -0.02),
        ncol=len(marks),
        fontsize=8,
        frameon=False,
        handletextpad=0.5,
        columnspacing=1.6,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.1)},
    )
