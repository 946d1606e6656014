"""Files as other frameworks and attackers write them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Made by Python 2: {'fc6_w': numpy.array([1, 2], 'float32')}, with raw bytes where Python 3 writes text.
PYTHON2_PICKLE = (
    b"\x80\x02}q\x00U\x05fc6_wq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85q\x04"
    b"U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x02\x85q\x08cnumpy\ndtype\nq\tU\x02f4q\nK\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01<"
    b"q\rNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb\x89U\x08"
    + np.array([1, 2], "<f4").tobytes()
    + b"q\x0ftq\x10bs."
)


class Evil:
    """Unpickled without care, leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def write(kind: str, path: Path, content: Any) -> Path:
    """Write ``content`` as torch or pickle would, without a look at it."""
    if kind == "zip":
        torch.save(content, path)
    elif kind == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content, protocol=int(kind.removeprefix("pickle"))))
    return path
