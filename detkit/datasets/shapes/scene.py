"""Draws one image of the example data: textured shapes that are objects, and others that are clutter.

The same seed draws the same scene everywhere: all randomness comes from numpy's ``RandomState``, whose
stream is frozen (that of ``default_rng`` is not), and coverage, texture and light are float64 numpy
arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

__all__ = ["CATEGORIES", "VERSION", "Scene", "draw_scene"]

Array = NDArray[np.float64]
Inside = Callable[[Array, Array], NDArray[np.bool_]]


class Scene(NamedTuple):
    """One drawn image.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        category_ids: The category of each of the G objects.
        masks: (G, H, W) bool, the visible pixels of each.
    """

    image: NDArray[np.uint8]
    category_ids: list[int]
    masks: NDArray[np.bool_]


VERSION = "1.2"  # of the drawing: raise it whenever a pixel or an annotation changes
# The ids have holes, as those of COCO do: code that takes an id for a label fails here at once.
CATEGORIES = {1: "disc", 3: "triangle", 4: "square", 7: "star", 9: "cross"}

_SIZES = [(128, 128)] * 7 + [(96, 128), (128, 96), (96, 128)]  # (height, width), one drawn per image
_MAX_OBJECTS = 6
_EMPTY_SHARE = 0.05  # images with clutter only
_RADIUS = (8.0, 36.0)  # of objects, in pixels, log-uniform
_MIN_VISIBLE = 0.65  # of an object's full area; whatever would leave less of it is not drawn
_MIN_CONTRAST = 0.3  # RGB distance, channels in [0, 1], between an object's colour and what it is drawn on
_SUBPIXELS = 4  # coverage is counted on a 4 x 4 grid in each pixel
_ATTEMPTS = 20


def _all_but(allowed: int, sides: int, distance: float) -> Inside:
    """Inside all of ``sides`` evenly turned half-planes, but for ``allowed``: a polygon, or a star's tips as well."""
    angles = [2 * math.pi * k / sides for k in range(sides)]

    def inside(u: Array, v: Array) -> NDArray[np.bool_]:
        beyond = np.zeros(np.broadcast_shapes(u.shape, v.shape), np.uint8)
        for angle in angles:
            beyond += math.cos(angle) * u + math.sin(angle) * v > distance
        return beyond <= allowed

    return inside


# Each says which points of the plane belong to a shape about two units wide.
_OBJECTS: dict[str, Inside] = {
    "disc": lambda u, v: u * u + v * v <= 1,
    "triangle": _all_but(0, sides=3, distance=0.57),
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.84,
    "star": _all_but(1, sides=5, distance=0.36),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) <= 0.32) & (np.maximum(abs(u), abs(v)) <= 1),
}
_CLUTTER: dict[str, Inside] = {
    "bar": lambda u, v: (abs(u) <= 1.2) & (abs(v) <= 0.09),
    "ring": lambda u, v: (u * u + v * v <= 1) & (u * u + v * v >= 0.6),
    "crescent": lambda u, v: (u * u + v * v <= 1) & ((u - 0.45) ** 2 + v * v >= 0.85),
    "bracket": lambda u, v: (np.maximum(abs(u), abs(v)) <= 0.8) & (np.minimum(u, v) <= -0.45),
}
_REACH = 1.25  # no shape has a point farther than this from its centre


def draw_scene(rng: RandomState) -> Scene:
    """Draw one image: a textured ground, then objects and clutter in turn, each over the ones before, then light."""
    height, width = _SIZES[rng.randint(len(_SIZES))]
    ground = rng.uniform(0.1, 0.9, 3)
    canvas = _texture(rng, height, width, ground, np.clip(ground + rng.uniform(-0.35, 0.35, 3), 0, 1))
    canvas += 0.2 * (_blotches(rng, height, width) - 0.5)[..., None]

    num_objects = 0 if rng.random_sample() < _EMPTY_SHARE else rng.randint(1, _MAX_OBJECTS + 1)
    kinds = ["object"] * num_objects + ["clutter"] * rng.randint(1, 6)
    rng.shuffle(kinds)
    category_ids: list[int] = []
    visible: list[Array] = []  # (H, W), the part of each pixel that shows the object
    full_areas: list[float] = []
    for kind in kinds:
        category_id = list(CATEGORIES)[rng.randint(len(CATEGORIES))] if kind == "object" else None
        shapes = _CLUTTER if category_id is None else {CATEGORIES[category_id]: _OBJECTS[CATEGORIES[category_id]]}
        inside = list(shapes.values())[rng.randint(len(shapes))]
        for _ in range(_ATTEMPTS):
            coverage, full_area = _place(rng, inside, height, width)
            if category_id is not None and coverage.sum() < _MIN_VISIBLE * full_area:
                continue  # mostly outside the image
            remaining = [part * (1 - coverage) for part in visible]
            if all(p.sum() >= _MIN_VISIBLE * full for p, full in zip(remaining, full_areas, strict=True)):
                break
        else:
            continue  # no free place
        _paint(rng, canvas, coverage)
        visible = remaining
        if category_id is not None:
            category_ids.append(category_id)
            visible.append(coverage)
            full_areas.append(full_area)

    masks = np.array(visible).reshape(-1, height, width) >= 0.5
    for number in range(len(masks) - 1):
        masks[number] &= ~masks[number + 1 :].any(axis=0)  # a pixel shared by halves is the upper one's
    return Scene(_expose(rng, canvas), category_ids, masks)


def _place(rng: RandomState, inside: Inside, height: int, width: int) -> tuple[Array, float]:
    """Coverage of each pixel, (H, W) in [0, 1], by a shape of random place, size, angle and stretch; its full area."""
    centre_y, centre_x = rng.uniform(0, height), rng.uniform(0, width)
    radius = math.exp(rng.uniform(math.log(_RADIUS[0]), math.log(_RADIUS[1])))
    angle, stretch = rng.uniform(0, 2 * math.pi), math.exp(rng.uniform(-0.15, 0.15))
    reach = math.ceil(radius * _REACH * math.exp(0.15)) + 1
    top, left, size = int(centre_y) - reach, int(centre_x) - reach, 2 * reach + 1

    steps = (np.arange(size * _SUBPIXELS) + 0.5) / _SUBPIXELS
    y, x = (top + steps - centre_y)[:, None] / radius, (left + steps - centre_x)[None, :] / radius
    u = math.cos(angle) * stretch * x + math.sin(angle) * stretch * y
    v = math.cos(angle) / stretch * y - math.sin(angle) / stretch * x
    # Rows before columns, in bytes: the sums run along memory.
    counts = inside(u, v).reshape(size, _SUBPIXELS, -1).sum(axis=1, dtype=np.uint8)
    window = counts.reshape(size, size, _SUBPIXELS).sum(axis=2, dtype=np.uint8) / _SUBPIXELS**2

    coverage = np.zeros((height, width))
    rows = slice(max(top, 0), min(top + size, height))
    columns = slice(max(left, 0), min(left + size, width))
    coverage[rows, columns] = window[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return coverage, float(window.sum())


def _paint(rng: RandomState, canvas: Array, coverage: Array) -> None:
    """Lay a texture over the covered part of ``canvas`` (H, W, 3), in a colour that stands out from it."""
    rows, columns = np.flatnonzero(coverage.any(axis=1)), np.flatnonzero(coverage.any(axis=0))
    if not len(rows):
        return
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    alpha = coverage[window][..., None]
    height, width, _ = alpha.shape
    beneath = np.asarray((canvas[window] * alpha).sum(axis=(0, 1)) / alpha.sum())
    colour = rng.uniform(0.05, 0.95, 3)
    while ((colour - beneath) ** 2).sum() < _MIN_CONTRAST**2:
        colour = rng.uniform(0.05, 0.95, 3)
    second = np.clip(colour + rng.uniform(-0.25, 0.25, 3), 0, 1)
    canvas[window] += alpha * (_texture(rng, height, width, colour, second) - canvas[window])


def _texture(rng: RandomState, height: int, width: int, colour: Array, second: Array) -> Array:
    """(H, W, 3): plain, a gradient, stripes or blotches between two colours."""
    kind, angle = rng.randint(4), rng.uniform(0, 2 * math.pi)
    along = math.sin(angle) * np.arange(height)[:, None] + math.cos(angle) * np.arange(width)[None, :]
    if kind == 0:
        blend = np.zeros((height, width))
    elif kind == 1:
        blend = (along - along.min()) / (np.ptp(along) + 1)
    elif kind == 2:
        waves = np.sin(along * (2 * math.pi / rng.uniform(4, 14)) + rng.uniform(0, 2 * math.pi))
        blend = 0.5 + 0.5 * np.clip(3 * waves, -1, 1)
    else:
        blend = _blotches(rng, height, width)
    return colour + blend[..., None] * (second - colour)


def _blotches(rng: RandomState, height: int, width: int) -> Array:
    """(H, W) smooth noise in [0, 1]: random values on a coarse grid, interpolated linearly between its points."""
    pitch = rng.uniform(5, 30)
    rows, columns = _interpolation(height, pitch), _interpolation(width, pitch)
    return rows @ rng.random_sample((rows.shape[1], columns.shape[1])) @ columns.T


def _interpolation(length: int, pitch: float) -> Array:
    """(length, points) weights of the grid points ``pitch`` pixels apart at every pixel."""
    positions = np.arange(length)[:, None] / pitch
    return np.maximum(0, 1 - abs(positions - np.arange(int(length / pitch) + 2)))


def _expose(rng: RandomState, canvas: Array) -> NDArray[np.uint8]:
    """Light that falls off to one side, the sensor's noise, and 8 bits."""
    height, width, _ = canvas.shape
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    light = rng.uniform(0.7, 1.15) * (1 + rng.uniform(0, 0.3) * (math.sin(angle) * y + math.cos(angle) * x))
    noise = (rng.randint(0, 256, canvas.shape, dtype=np.uint8) / 255 - 0.5) * rng.uniform(4, 24)
    return np.clip(255 * canvas * light[..., None] + noise, 0, 255).round().astype(np.uint8)
