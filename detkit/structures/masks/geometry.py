"""Plane geometry of polygons given as flat arrays (x0, y0, x1, y1, …)."""

from __future__ import annotations

import numpy as np

__all__ = ["area", "clip"]


def area(polygon: np.ndarray) -> float:
    """Area of a polygon that does not cross itself, by the shoelace formula."""
    x, y = polygon[0::2], polygon[1::2]
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def clip(polygon: np.ndarray, x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    """The part of a polygon inside a rectangle (Sutherland and Hodgman, CACM 17(1), 1974).

    What a concave polygon leaves in several pieces stays one polygon, joined by edges without area along
    the border of the rectangle.

    Returns:
        The clipped polygon, or an empty array where no area is left.
    """
    points = polygon.reshape(-1, 2).astype(np.float64)
    for axis, bound, sign in ((0, x1, 1), (0, x2, -1), (1, y1, 1), (1, y2, -1)):
        points = _clip_edge(points, axis, bound, sign)
    flat = points.reshape(-1)
    return flat if len(points) >= 3 and area(flat) > 0 else flat[:0]


def _clip_edge(points: np.ndarray, axis: int, bound: float, sign: int) -> np.ndarray:
    """Cut off what is below (sign 1) or above (sign -1) ``bound`` on an axis."""
    if not len(points):
        return points
    before = np.roll(points, 1, axis=0)
    depth, depth_before = sign * (points[:, axis] - bound), sign * (before[:, axis] - bound)
    kept: list[np.ndarray] = []
    for point, last, d, d_last in zip(points, before, depth, depth_before, strict=True):
        if (d >= 0) != (d_last >= 0):
            kept.append(last + (point - last) * (d_last / (d_last - d)))
        if d >= 0:
            kept.append(point)
    return np.array(kept).reshape(-1, 2)
