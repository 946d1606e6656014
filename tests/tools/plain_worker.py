"""What ``test_train_plain.py`` runs in several processes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from detkit.engine import distributed

TOOL = Path(__file__).resolve().parents[2] / "tools" / "train_plain.py"


def load_tool() -> Any:
    spec = importlib.util.spec_from_file_location("tools_train_plain", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(values: dict[str, Any], file: str) -> list[float]:
    """Train the toy; returns the sum of weights and statistics of each process."""
    from engine import engine_toys  # noqa: F401  registers the toy

    torch.set_num_threads(1)
    model = load_tool().train(Config(values), Path(file))
    return distributed.all_gather(sum(value.double().sum().item() for value in model.state_dict().values()))
