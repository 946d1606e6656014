"""In which order a model's convolutions keep their channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from detkit.engine.hooks.hook import Hook
from detkit.registry import HOOKS

__all__ = ["ChannelsLastHook", "wants_channels_last"]


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Keeps weights, and with them activations, with the channels last, which most convolution kernels prefer.

    Changes speed only; checkpoints are the same with and without it.
    """

    def before_run(self, runner: Any) -> None:
        """Convert the model once."""
        runner.model.to(memory_format=torch.channels_last)


def wants_channels_last(hooks: Sequence[Any] | None) -> bool:
    """Whether a :class:`ChannelsLastHook` is among hooks or their configs.

    What is wrapped for several processes must be in that order before: the wrapper's buckets keep the one they saw.
    """
    kinds = [hook.get("type") if isinstance(hook, dict) else type(hook) for hook in hooks or ()]
    return any(getattr(kind, "__name__", str(kind)).rpartition(".")[2] == ChannelsLastHook.__name__ for kind in kinds)
