"""What the processes of the broadcast test do; started by name, so functions of a module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from detkit.checkpoints import broadcast, from_rank0, load_checkpoint_file, load_weights, newest_intact, open_checkpoint
from detkit.engine.distributed import all_gather, get_rank


def outcome(read: Any) -> str:
    try:
        return str(read())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def read_where_only_one_sees_it(folder: str) -> list[dict[str, Any]]:
    """Each process has a folder of its own; only the first process's has files."""
    rank = get_rank()
    own = Path(folder, str(rank))
    torch.manual_seed(rank)
    model = nn.Linear(3, 2)
    broadcast._MESSAGE_BYTES = 20  # several messages, and tensors larger than one
    report = load_weights(model, open_checkpoint(own / "epoch_1.pth", broadcast_from_rank0=True), strict=True)
    content, path = from_rank0(lambda: newest_intact(own, lambda *_: None, print))
    saved = torch.load(Path(folder, "0", "epoch_1.pth"), weights_only=True)
    seen = {
        "complete": report.complete,
        "weight": model.weight.tolist(),
        "path": path,
        "same": all(torch.equal(saved["state"][key], content["state"][key]) for key in saved["state"]),
        "dtypes": [str(value.dtype) for value in content["state"].values()],
        "rest": (content["meta"], content["none"], content["pair"]),
        "missing": outcome(lambda: load_checkpoint_file(own / "none.pth", broadcast_from_rank0=True)),
        "broken": outcome(lambda: load_checkpoint_file(own / "broken.pth", broadcast_from_rank0=True)),
        "failed": outcome(lambda: from_rank0(lambda: 1 // 0)),
    }
    return all_gather(seen)
