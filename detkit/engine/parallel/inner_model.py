"""The model inside what several processes wrap around it."""

from __future__ import annotations

from typing import Any

from mmengine.model import is_model_wrapper

__all__ = ["inner_model"]


def inner_model(model: Any) -> Any:
    """``model`` without its wrapper for several processes; a model that has none as it is."""
    return model.module if is_model_wrapper(model) else model
