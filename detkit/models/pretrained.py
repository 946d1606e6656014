"""Where initial weights come from: torchvision, a URL or a file, never running what they contain."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.runner.checkpoint import CheckpointLoader

__all__ = ["load_file", "load_torchvision", "load_url"]


# mmengine 0.10.7 unpickles these with weights_only=False (URLs) or fails on its own files (paths).
@CheckpointLoader.register_scheme(prefixes="", force=True)
def load_file(filename: str, map_location: Any = "cpu") -> Mapping[str, Any]:
    """Weights of a file.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or holds more than tensors and plain types.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"init_cfg.checkpoint: there is no file {path}")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path}: no weights could be read ({path.stat().st_size} bytes). It is damaged, or holds objects that "
            "would run code; only tensors and plain types are opened"
        ) from error


@CheckpointLoader.register_scheme(prefixes=("http://", "https://"), force=True)
def load_url(filename: str, map_location: Any = "cpu", progress: bool = True) -> Mapping[str, Any]:
    """Weights behind a URL, kept in torch.hub's cache."""
    return torch.hub.load_state_dict_from_url(
        filename, map_location=map_location, progress=progress, weights_only=True, check_hash=False
    )


@CheckpointLoader.register_scheme(prefixes=("torchvision://", "modelzoo://"), force=True)
def load_torchvision(filename: str, map_location: Any = "cpu") -> Mapping[str, Any]:
    """ImageNet weights of a torchvision model: ``torchvision://resnet50`` takes the first version published,
    which MMDetection trains from; ``torchvision://resnet50.IMAGENET1K_V2`` names another.

    Raises:
        ValueError: torchvision has no such model or weights.
    """
    from torchvision.models import get_model_weights

    name, _, version = filename.partition("://")[2].partition(".")
    try:
        weights = get_model_weights(name)[version or "IMAGENET1K_V1"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"init_cfg.checkpoint: torchvision has no weights {filename!r}") from error
    return load_url(weights.url, map_location)
