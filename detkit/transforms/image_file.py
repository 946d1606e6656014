"""Image files: read, refuse what is cut off, decode."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import cv2
import mmcv
import numpy as np
from mmengine import fileio

__all__ = ["COLOR_TYPES", "decode_image", "jpeg_is_whole", "read_bytes"]

COLOR_TYPES = ("color", "grayscale", "unchanged", "color_ignore_orientation", "grayscale_ignore_orientation")
_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
# In JPEG image data a 0xFF that begins a marker is followed neither by 0 (a stuffed byte) nor by another
# 0xFF (fill) nor by a restart number.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def read_bytes(path: str, backend_args: Mapping[str, Any] | None = None) -> bytes:
    """Content of a file; a file that is not there or empty is named.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has no content.
    """
    if backend_args is None and "://" not in path and not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: the image file does not exist")
    content = fileio.get(path, backend_args=backend_args)
    if not content:
        raise ValueError(f"{path}: the image file is empty (0 bytes)")
    return content


def decode_image(content: bytes, path: str, color_type: str = "color", backend: str = "cv2") -> np.ndarray:
    """Decode an image file, refusing one that is cut off even where the decoder would fill it up in grey.

    Args:
        content: The file.
        path: Its name, for messages.
        color_type: A colour flag of :func:`mmcv.imread`.
        backend: A decoder of :func:`mmcv.imread`.

    Returns:
        (H, W, 3) BGR, or what ``color_type`` says.

    Raises:
        ValueError: The content is cut off, or is no image.
    """
    if content.startswith(_JPEG_START) and not jpeg_is_whole(content):
        raise ValueError(f"{path}: the JPEG file is cut off: its end marker is missing after {len(content)} bytes")
    if content.startswith(_PNG_START) and _PNG_END not in content[-64:] and _PNG_END not in content:
        raise ValueError(f"{path}: the PNG file is cut off: its end chunk is missing after {len(content)} bytes")
    try:
        img = mmcv.imfrombytes(content, flag=color_type, backend=backend)
    except (cv2.error, OSError, SyntaxError) as error:  # Pillow reports broken PNGs as SyntaxError
        raise ValueError(f"{path}: cannot be decoded as an image: {error}") from error
    if img is None:
        raise ValueError(f"{path}: not an image, or damaged ({len(content)} bytes, begins with {content[:8]!r})")
    return img


def jpeg_is_whole(content: bytes) -> bool:
    """Whether a JPEG file reaches its end-of-image marker; bytes after it do not matter.

    Walks from segment to segment by their lengths, so that the end marker of an embedded thumbnail does
    not count, and over the image data by looking for the next marker.
    """
    at = 2
    while (found := _NEXT_MARKER.search(content, at)) is not None:
        if found.group() == _JPEG_END:
            return True
        length = int.from_bytes(content[found.end() : found.end() + 2], "big")
        at = found.end() + max(length, 2)
    return False
