"""From ``model_wrapper_cfg``, ``find_unused_parameters`` and ``sync_bn`` of a config to a model in many processes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from detkit.engine.parallel.norms import convert_sync_batchnorm, revert_sync_batchnorm
from detkit.registry import MODEL_WRAPPERS, building

__all__ = ["wrap_model"]

_DEFAULT = "MMDistributedDataParallel"


def wrap_model(
    model: nn.Module,
    cfg: Mapping[str, Any] | None,
    find_unused_parameters: bool,
    sync_bn: str | None,
    logger: logging.Logger,
) -> nn.Module:
    """Wrap a model, on its device, for the processes of the run.

    Args:
        model: What to wrap.
        cfg: ``model_wrapper_cfg``: a type, by default ``'MMDistributedDataParallel'``, and its arguments.
        find_unused_parameters: Of the config's top level, as MMDetection has it; ``cfg`` may say otherwise.
        sync_bn: ``'torch'`` makes each BatchNorm see the batches of all processes; ``'mmcv'`` is the same here.
        logger: Of the run.

    Raises:
        ValueError: Another ``sync_bn``.
    """
    if sync_bn not in (None, False, "torch", "mmcv"):
        raise ValueError(f"sync_bn: 'torch' or None was expected, got {sync_bn!r}")
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    if on_cpu:
        # SyncBatchNorm refuses to run on a CPU.
        model = revert_sync_batchnorm(model)
    if sync_bn:
        count = sum(isinstance(module, _BatchNorm) for module in model.modules())
        if on_cpu:
            logger.warning("sync_bn: SyncBatchNorm needs GPUs; %d BatchNorm layers stay as they are", count)
        else:
            model = convert_sync_batchnorm(model)
            logger.info("sync_bn: %d BatchNorm layers see the batches of all processes", count)
    options = {"type": _DEFAULT, **(cfg or {})}
    if options["type"] == _DEFAULT:
        options.setdefault("find_unused_parameters", find_unused_parameters)
    with building("model_wrapper_cfg", options):
        return MODEL_WRAPPERS.build(options, default_args={"module": model})
