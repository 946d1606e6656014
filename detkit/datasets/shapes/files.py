"""Writes the example data as a COCO data set.

ROOT/train/annotations.json    boxes and run-length masks of the visible parts
ROOT/train/images/00000.jpg    128 x 128, 128 x 96 or 96 x 128 pixels
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import RandomState
from PIL import Image
from pycocotools import mask as rle

from detkit.datasets.shapes.scene import CATEGORIES, VERSION, draw_scene

__all__ = ["ANNOTATIONS", "IMAGES", "OWN_FOLDER", "SPLITS", "generate", "is_foreign"]

ORIGIN = "detkit example data"


class Split(NamedTuple):
    """How many images a split has, and the seed they are drawn from."""

    num_images: int
    seed: int


SPLITS = {"train": Split(1000, seed=0), "val": Split(250, seed=1)}
ANNOTATIONS = "annotations.json"
IMAGES = "images"
OWN_FOLDER = "shapes"  # a data_root of this name is the example data's own


def generate(root: str | Path, split: str, num_images: int | None = None, seed: int | None = None) -> Path:
    """Write one split below ``root``, unless it is there.

    The files are written to a folder beside the final one, which is then renamed: a killed run leaves no half
    split, and of two processes that start at once one wins and both read the same.

    Args:
        root: Folder of the data set, made if missing.
        split: Name of the folder to write; ``train`` and ``val`` have a default number and seed.
        num_images: Other than the default of the split.
        seed: Other than the default of the split.

    Returns:
        The folder of the split.

    Raises:
        ValueError: ``split`` has no default and number or seed is not given, or the folder was drawn otherwise
            or holds other annotations.
        FileNotFoundError: The folder is there, without annotations.
        OSError: ``root`` cannot be written.
    """
    if split in SPLITS:
        num_images = SPLITS[split].num_images if num_images is None else num_images
        seed = SPLITS[split].seed if seed is None else seed
    if num_images is None or seed is None:
        raise ValueError(f"the example data has the splits {' and '.join(map(repr, SPLITS))}, not {split!r}")
    folder, partial = Path(root, split), Path(root, f".{split}-{uuid.uuid4().hex}")
    drawn = {
        "description": f"{ORIGIN}: {num_images} images drawn by a program from seed {seed}",
        "version": VERSION,
        "license": "CC0-1.0",
    }
    if not folder.exists():
        try:
            _write(partial, num_images, seed, drawn)
            _rename(partial, folder)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write the example data to {folder.absolute()} ({error.strerror}); "
                "name a folder that can be written (data_root)",
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    _check_drawn(folder, drawn)
    return folder


def is_foreign(folder: Path) -> bool:
    """Whether the folder of a split is there and is not one that ``generate`` wrote."""
    if not folder.exists():
        return False
    file = folder / ANNOTATIONS
    try:
        return not file.is_file() or not _is_drawn(json.loads(file.read_text()).get("info"))
    except (ValueError, AttributeError):
        return True  # no COCO file of anybody's; whoever reads it says what is wrong


def _is_drawn(info: Any) -> bool:
    return isinstance(info, dict) and str(info.get("description", "")).startswith(ORIGIN)


def _write(folder: Path, num_images: int, seed: int, info: dict[str, str]) -> None:
    images_folder = folder / IMAGES
    images_folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(num_images):
        scene = draw_scene(RandomState([seed, index]))
        height, width = scene.image.shape[:2]
        name = f"{index:05d}.jpg"
        Image.fromarray(scene.image).save(images_folder / name, quality=92)
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width, "license": 1})
        for category_id, mask in zip(scene.category_ids, scene.masks, strict=True):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            x, y = int(columns[0]), int(rows[0])
            counts = rle.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": category_id,
                    "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": [height, width], "counts": counts},
                }
            )
    content = {
        "info": info,
        "licenses": [{"id": 1, "name": info["license"]}],
        "categories": [{"id": category_id, "name": name} for category_id, name in CATEGORIES.items()],
        "images": images,
        "annotations": annotations,
    }
    (folder / ANNOTATIONS).write_text(json.dumps(content))


def _rename(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process has just written the same
            raise


def _check_drawn(folder: Path, info: dict[str, str]) -> None:
    """Refuse a folder that holds something else than what was asked for."""
    file = folder / ANNOTATIONS
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist, but its folder does; the example data is not written into a folder with "
            "other files: name another one"
        )
    found = json.loads(file.read_text()).get("info")
    if found != info:
        # Only what was drawn may be removed: it can be drawn again.
        remedy = f"remove {folder} to have it written anew" if _is_drawn(found) else "name another folder"
        raise ValueError(f"{file}: expected {info}, found {found}; {remedy}")
