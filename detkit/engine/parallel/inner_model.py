"""The model inside what several processes, or test-time augmentation, wrap around it."""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper

__all__ = ["inner_model"]


def inner_model(model: Any) -> Any:
    """``model`` without what several processes or test-time augmentation wrap around it."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model
