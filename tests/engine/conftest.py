from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine.engine_toys import toy_config
from mmengine.config import Config

from detkit.engine import Runner


@pytest.fixture
def make_runner(tmp_path) -> Callable[..., Runner]:
    """Builds a runner of the toy run, in ``tmp_path / name``; ``custom_hooks`` may also be hooks that are built."""

    def make(name: str = "run", **changes: Any) -> Runner:
        torch.set_num_threads(1)
        hooks = changes.pop("custom_hooks", [])
        changes["custom_hooks"] = [hook for hook in hooks if isinstance(hook, dict)]
        runner = Runner.from_cfg(Config(toy_config(tmp_path / name, **changes)))
        for hook in hooks:
            if not isinstance(hook, dict):
                runner.register_hook(hook)
        return runner

    return make
