"""What ``test_train_plain.py`` runs in several processes."""

from __future__ import annotations

import importlib.util
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from detkit.engine import Runner, distributed

TOOL = Path(__file__).resolve().parents[2] / "tools" / "train_plain.py"


def load_tool() -> Any:
    spec = importlib.util.spec_from_file_location("tools_train_plain", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(values: dict[str, Any], folder: str) -> list[tuple[float, bool]]:
    """Train the toy with the loop and with the Runner.

    Returns:
        Of each process, the sum of weights and statistics, and whether they are the Runner's to the bit.
    """
    from engine import engine_toys  # noqa: F401  registers the toy

    torch.set_num_threads(1)
    # What a process prints may go wherever the one that started it printed first.
    with open(Path(folder, f"printed_{distributed.get_rank()}.txt"), "w") as file, redirect_stdout(file):
        model = load_tool().train(Config(values), Path(folder, "last.pth"))
    runner = Runner.from_cfg(Config({**values, "work_dir": f"{folder}/runner", "launcher": "pytorch"}))
    runner.train()
    state, other = model.state_dict(), runner.model.module.state_dict()
    same = all(torch.equal(value, other[name]) for name, value in state.items())
    return distributed.all_gather((sum(value.double().sum().item() for value in state.values()), same))
