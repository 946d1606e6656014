"""Region proposals computed before training, as Fast R-CNN takes them: a file of boxes for each image."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine import fileio

from detkit.checkpoints.unpickle import load_pickle
from detkit.registry import nearest

__all__ = ["add_proposals", "proposal_key"]


def proposal_key(img_path: str) -> str:
    """The name of an image in a proposal file: its folder's name and its own, ``val2017/000000000139.jpg``."""
    folder, name = os.path.split(img_path)
    return os.path.join(os.path.basename(folder), name)


def add_proposals(records: Sequence[dict], file: str, backend_args: Mapping[str, Any] | None = None) -> None:
    """Give each record its ``proposals``: ``bboxes`` (P, 4) xyxy in pixels of the image, ``scores`` (P,), best first.

    Args:
        records: Of a dataset, with ``img_path``.
        file: A pickle of a dict, see ``proposal_key``, of dicts or InstanceData of arrays, as DumpProposals of detkit
            and of MMDetection writes it. It is read without running code.
        backend_args: File backend of mmengine.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds something else, or lacks an image.
    """
    content = _read(file, backend_args)
    for record in records:
        key = proposal_key(record["img_path"])
        if key not in content:
            close = nearest(key, content)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise ValueError(
                f"{file}: has proposals for {len(content)} images, none for {key!r} (image {record['img_id']}){hint} "
                "Names are the folder's and the image's own, as DumpProposals writes them"
            )
        record["proposals"] = _arrays(content[key], f"{file}: {key}")


def _read(file: str, backend_args: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        data = fileio.get(file, backend_args=None if backend_args is None else dict(backend_args))
    except FileNotFoundError:
        raise FileNotFoundError(f"proposal_file {os.path.abspath(file)} does not exist") from None
    try:
        content = load_pickle(io.BytesIO(data))
    except Exception as error:  # a broken pickle may raise anything
        if isinstance(error, pickle.UnpicklingError) and "is not plain data" in str(error):
            raise ValueError(f"{file}: {error}; it was not loaded, since that would run code of the file") from None
        raise ValueError(f"{file}: not a pickle, or cut off: {type(error).__name__}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{file}: a dict of image name and proposals was expected, found a {type(content).__name__}; files of "
            "MMDetection 2 hold lists, write them anew with DumpProposals"
        )
    return content


def _arrays(proposals: Any, place: str) -> dict[str, np.ndarray]:
    if not isinstance(proposals, Mapping) or "bboxes" not in proposals:
        raise ValueError(f"{place}: 'bboxes' and 'scores' were expected, found {type(proposals).__name__}")
    boxes = np.asarray(proposals["bboxes"], dtype=np.float32)
    boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise ValueError(f"{place}: finite bboxes (P, 4) were expected, got shape {boxes.shape}")
    scores = np.asarray(proposals.get("scores", np.zeros(len(boxes))), dtype=np.float32)
    if scores.shape != (len(boxes),):
        raise ValueError(f"{place}: {len(boxes)} bboxes, but scores of shape {scores.shape}")
    return {"bboxes": boxes, "scores": scores}
