"""Boxes, masks, names and scores on an image, with Pillow; images are (H, W, 3) uint8 RGB arrays here."""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["Colour", "captioned", "class_colour", "contact_sheet", "draw_instances"]

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]
_Rectangle = tuple[float, float, float, float]

_READABLE_SIDE = 480  # pixels: a smaller image is enlarged to about this, or its labels would cover it
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_MARGIN = 2  # pixels around text
_GAP = 8  # pixels between pictures of a sheet
_PAPER: Colour = (255, 255, 255)


def class_colour(label: int) -> Colour:
    """A vivid colour for a class, always the same; neighbouring labels are far apart in hue."""
    hue = (0.02 + label * _GOLDEN_RATIO) % 1
    value = (1.0, 0.8, 0.62)[label // 12 % 3]  # beyond a dozen hues, brightness tells classes apart
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_instances(
    image: Pixels,
    boxes: NDArray[np.floating],
    labels: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float] | None = None,
    masks: NDArray[np.bool_] | None = None,
    colours: Sequence[Colour] | None = None,
    mask_colours: Sequence[Colour] | None = None,
    text_colour: Colour | None = None,
    line_width: int | None = None,
    mask_opacity: float = 0.4,
) -> Pixels:
    """A copy of ``image``, enlarged if small, with objects drawn on it.

    Args:
        image: (H, W, 3).
        boxes: (D, 4) xyxy in pixels of ``image``.
        labels: (D,) index of each object's class.
        names: Class names in label order; a label beyond them is shown as its number.
        scores: (D,) in [0, 1], shown in percent after the name.
        masks: (D, H, W).
        colours: Colour of each class, repeated if there are more; :func:`class_colour` if None.
        mask_colours: Likewise for masks; ``colours`` if None.
        text_colour: Black or white, whichever is readable, if None.
        line_width: Pixels of the picture; by its size if None.
        mask_opacity: In [0, 1].

    Returns:
        (kH, kW, 3) for a whole number k.
    """
    factor = max(1, math.ceil(_READABLE_SIDE / max(image.shape[:2])))
    shades = _shades(labels, colours)
    if masks is not None:
        image = _tint(image, masks, _shades(labels, mask_colours or colours), mask_opacity)
    picture = Image.fromarray(image.repeat(factor, axis=0).repeat(factor, axis=1))
    pen = ImageDraw.Draw(picture)
    side = max(picture.size)
    width = line_width or max(2, side // 320)
    # The least certain first, so that the others lie on top.
    order = range(len(boxes)) if scores is None else np.argsort(scores, kind="stable").tolist()
    corners = [[float(value) * factor for value in box] for box in boxes]
    for i in order:
        pen.rectangle(_within(corners[i], picture.size), outline=shades[i], width=width)
    font = _font(max(12, side // 42))
    taken: list[_Rectangle] = []
    for i in reversed(order):
        text = names[labels[i]] if labels[i] < len(names) else str(labels[i])
        text += "" if scores is None else f" {100 * scores[i]:.0f}%"
        taken.append(_label(pen, picture.size, corners[i], text, font, shades[i], text_colour, taken))
    return np.asarray(picture)


def captioned(image: Pixels, caption: str) -> Pixels:
    """``image`` under a line of text."""
    font = _font(max(12, max(image.shape[:2]) // 36))
    height = _text_height(font)
    head = Image.new("RGB", (image.shape[1], height), _PAPER)
    ImageDraw.Draw(head).text((_MARGIN, _MARGIN), _fit(caption, font, image.shape[1]), fill=(0, 0, 0), font=font)
    return np.concatenate([np.asarray(head), image])


def contact_sheet(images: Sequence[Pixels], columns: int) -> Pixels:
    """Several pictures on one, row by row; each stands at the top left of a cell as large as the largest.

    Raises:
        ValueError: There is no picture, or ``columns`` is not positive.
    """
    if not images or columns < 1:
        raise ValueError(f"a sheet needs pictures and columns, got {len(images)} pictures and columns={columns}")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    height, width = max(i.shape[0] for i in images) + _GAP, max(i.shape[1] for i in images) + _GAP
    sheet = np.full((rows * height - _GAP, columns * width - _GAP, 3), _PAPER, dtype=np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def _shades(labels: Sequence[int], colours: Sequence[Colour] | None) -> list[Colour]:
    return [colours[label % len(colours)] if colours else class_colour(label) for label in labels]


def _tint(image: Pixels, masks: NDArray[np.bool_], shades: Sequence[Colour], opacity: float) -> Pixels:
    tinted = image.astype(np.float32)
    for mask, shade in zip(masks, shades, strict=True):
        tinted[mask] += opacity * (np.array(shade, np.float32) - tinted[mask])
    return tinted.round().astype(np.uint8)


def _label(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corners: Sequence[float],
    text: str,
    font: ImageFont.FreeTypeFont,
    shade: Colour,
    text_colour: Colour | None,
    taken: Sequence[_Rectangle],
) -> _Rectangle:
    """Write ``text`` on a plate at a box: inside the picture always, and off other labels where there is room."""
    text = _fit(text, font, size[0])
    width, height = min(size[0], math.ceil(font.getlength(text)) + 2 * _MARGIN), _text_height(font)
    x1, y1, x2, y2 = corners
    places = [(x1, y1 - height), (x1, y2), (x1, y1), (x2 - width, y1 - height), (x2 - width, y2), (x1, y2 - height)]
    plates = [_shifted(x, y, width, height, size) for x, y in places]
    fitting = [plate for plate, place in zip(plates, places, strict=True) if plate[1] == place[1]] or plates
    plate = min(fitting, key=lambda plate: sum(_overlap(plate, other) for other in taken))
    pen.rectangle((plate[0], plate[1], plate[2] - 1, plate[3] - 1), fill=shade)
    luminance = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2]
    readable: Colour = (0, 0, 0) if luminance > 128 else (255, 255, 255)
    pen.text((plate[0] + _MARGIN, plate[1] + _MARGIN), text, fill=text_colour or readable, font=font)
    return plate


def _shifted(x: float, y: float, width: int, height: int, size: tuple[int, int]) -> _Rectangle:
    """The plate at (x, y), moved into the picture."""
    x, y = max(0.0, min(x, size[0] - width)), max(0.0, min(y, size[1] - height))
    return x, y, x + width, y + height


def _within(corners: Sequence[float], size: tuple[int, int]) -> _Rectangle:
    """The last pixels inside a box; one that is inside out or outside becomes a point or line at the border."""
    x1, x2 = (min(max(x, 0), size[0] - 1) for x in (corners[0], corners[2] - 1))
    y1, y2 = (min(max(y, 0), size[1] - 1) for y in (corners[1], corners[3] - 1))
    return x1, y1, max(x1, x2), max(y1, y2)


def _overlap(a: _Rectangle, b: _Rectangle) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """``text``, shortened to ``width`` pixels."""
    room = width - 2 * _MARGIN
    if font.getlength(text) <= room:
        return text
    kept = next((n for n in range(len(text) - 1, 0, -1) if font.getlength(text[:n] + "…") <= room), 0)
    return text[:kept] + "…"


def _text_height(font: ImageFont.FreeTypeFont) -> int:
    return sum(font.getmetrics()) + 2 * _MARGIN


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib brings this font along on every system; it knows Latin, Greek, Cyrillic, Arabic and more.
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
