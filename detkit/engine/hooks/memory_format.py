"""In which order a model's convolutions keep their channels."""

from __future__ import annotations

from typing import Any

import torch

from detkit.engine.hooks.hook import Hook
from detkit.registry import HOOKS

__all__ = ["ChannelsLastHook"]


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Keeps weights, and with them activations, with the channels last, which most convolution kernels prefer.

    Changes speed only; checkpoints are the same with and without it.
    """

    def before_run(self, runner: Any) -> None:
        """Convert the model once."""
        runner.model.to(memory_format=torch.channels_last)
