"""What a step that went wrong needs to be done again elsewhere: one file of plain types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor

import detkit
from detkit.checkpoints import load_checkpoint_file
from detkit.engine.data.seeding import iteration_seed
from detkit.structures import DetDataSample
from detkit.structures.masks import BitmapMasks, PolygonMasks

__all__ = ["batch_from_plain", "batch_to_plain", "bundle_of", "load_bundle", "precision_of"]

_FORMAT = 1
_KIND = "__class__"
_ELEMENTS = {cls.__name__: cls for cls in (DetDataSample, InstanceData, PixelData)}
_HUB_KEYS = ("epoch", "iter", "max_epochs", "max_iters")


def bundle_of(
    runner: Any, iteration: int, weights: Mapping[str, Tensor], losses: Mapping[str, float], batch: Any, done: int
) -> dict[str, Any]:
    """Everything that :func:`detkit.engine.run.replay.replay` needs to repeat the losses of one training step.

    Args:
        runner: The run.
        iteration: The step, as the count of iterations done with it.
        weights: State of the model before it.
        losses: What the step reported.
        batch: Its data as the loader gives it, or None where it could not be loaded again.
        done: Iterations after which the model had ``weights``: ``iteration - 1``, or more if they are of later.

    Returns:
        ``cfg`` (the config's text), ``iteration``, ``weights``, ``weights_after``, ``batch``, ``losses``, ``seed`` (of
        every generator, at the start of the step), ``run_seed``, ``precision``, ``progress``, ``rank``, ``world_size``,
        versions.
    """
    hub = runner.message_hub
    return {
        "bundle": _FORMAT,
        "cfg": runner.config_text,
        "iteration": iteration,
        "weights": dict(weights),
        "weights_after": done,
        "batch": batch_to_plain(batch),
        "losses": dict(losses),
        "seed": iteration_seed(runner.seed, iteration, runner.rank),
        "run_seed": runner.seed,
        "precision": precision_of(runner),
        "progress": {key: hub.get_info(key) for key in _HUB_KEYS if key in hub.runtime_info} | {"iter": iteration - 1},
        "rank": runner.rank,
        "world_size": runner.world_size,
        "detkit_version": detkit.__version__,
        "torch_version": str(torch.__version__),
    }


def load_bundle(path: str | Path) -> dict[str, Any]:
    """Read a bundle; its batch is made of data samples again.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no bundle.
    """
    bundle = load_checkpoint_file(path)
    if bundle.get("bundle") != _FORMAT:
        raise ValueError(f"{path}: is no bundle of a training step; CheckInvalidLossHook writes them")
    return {**bundle, "batch": batch_from_plain(bundle["batch"])}


def precision_of(runner: Any) -> dict[str, Any]:
    """What decides in which precision, and by which kernels, a step is computed."""
    wrapper = runner.optim_wrapper
    scale = getattr(wrapper, "loss_scale", None)
    four_dims = [parameter for parameter in runner.model.parameters() if parameter.ndim == 4]
    return {
        "device": runner.device.type,
        "autocast": str(wrapper.dtype).removeprefix("torch.") if hasattr(wrapper, "dtype") else None,
        "loss_scale": None if scale is None else float(scale),
        "channels_last": bool(four_dims)
        and all(parameter.is_contiguous(memory_format=torch.channels_last) for parameter in four_dims),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "num_threads": torch.get_num_threads(),
    }


def batch_to_plain(value: Any) -> Any:
    """Data samples and masks as dicts of plain types; what is neither becomes its text, so that a file comes about."""
    if value is None or isinstance(value, (bool, int, float, str, np.number, np.bool_)):
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        return {_KIND: "ndarray", "values": torch.from_numpy(np.array(value)) if value.dtype.kind in "biuf" else None}
    if isinstance(value, BaseDataElement):
        fields = {name: batch_to_plain(item) for name, item in value.items()}
        facts = {name: batch_to_plain(item) for name, item in value.metainfo_items()}
        return {_KIND: _element_name(value), "metainfo": facts, "fields": fields}
    if isinstance(value, BitmapMasks):
        masks = torch.from_numpy(np.array(value.masks))
        return {_KIND: "BitmapMasks", "masks": masks, "height": value.height, "width": value.width}
    if isinstance(value, PolygonMasks):
        polygons = [[torch.from_numpy(np.array(part)) for part in parts] for parts in value.masks]
        return {_KIND: "PolygonMasks", "masks": polygons, "height": value.height, "width": value.width}
    if isinstance(value, Mapping):
        return {str(name): batch_to_plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [batch_to_plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return repr(value)


def batch_from_plain(value: Any) -> Any:
    """The inverse of :func:`batch_to_plain`."""
    if isinstance(value, (list, tuple)):
        items = [batch_from_plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if not isinstance(value, Mapping):
        return value
    kind = value.get(_KIND)
    if kind is None:
        return {name: batch_from_plain(item) for name, item in value.items()}
    if kind == "ndarray":
        return None if value["values"] is None else value["values"].numpy()
    if kind == "BitmapMasks":
        return BitmapMasks(value["masks"].numpy(), value["height"], value["width"])
    if kind == "PolygonMasks":
        polygons = [[part.numpy() for part in parts] for parts in value["masks"]]
        return PolygonMasks(polygons, value["height"], value["width"])
    element = _ELEMENTS[kind](metainfo={name: batch_from_plain(item) for name, item in value["metainfo"].items()})
    for name, item in value["fields"].items():
        setattr(element, name, batch_from_plain(item))
    return element


def _element_name(value: BaseDataElement) -> str:
    """The nearest class that is known when the file is read."""
    return next((cls.__name__ for cls in type(value).__mro__ if cls.__name__ in _ELEMENTS), "DetDataSample")
