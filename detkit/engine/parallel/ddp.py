"""Data parallelism: each process has the whole model and a part of the batch; gradients are means over processes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import MMDistributedDataParallel as MMEngineDistributedDataParallel
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from detkit.registry import MODEL_WRAPPERS, nearest
from detkit.signature import quoted

__all__ = ["COMM_HOOKS", "MMDistributedDataParallel"]

COMM_HOOKS = {
    "fp16_compress": default_hooks.fp16_compress_hook,
    "bf16_compress": default_hooks.bf16_compress_hook,
}
# torch renamed the argument, and warns of the old name.
_BUFFERS = "forward_sync_buffers"
if _BUFFERS not in inspect.signature(DistributedDataParallel.__init__).parameters:
    _BUFFERS = "broadcast_buffers"


@MODEL_WRAPPERS.register_module()
class MMDistributedDataParallel(MMEngineDistributedDataParallel):
    """torch's DistributedDataParallel, also on the CPU, and with names in its complaint about unused parameters.

    Args:
        module: The model, on its device.
        device_ids: Of the model; None is the device of its parameters, and nothing on the CPU. mmengine gives
            a GPU's number in any case, which torch refuses on the CPU.
        find_unused_parameters: Look at each iteration for parameters that no loss depends on; costs time.
        static_graph: The same parameters are used at each iteration; those that are not used may stay so.
        broadcast_buffers: Send the first process's buffers to all at each forward pass. Without, running
            statistics are averaged before a validation and a save.
        bucket_cap_mb: MiB of gradients that are reduced together.
        gradient_as_bucket_view: Keep gradients in the buckets themselves; saves their memory.
        comm_hook: ``'fp16_compress'`` or ``'bf16_compress'``: gradients travel at half the size.
        process_group: None is all processes.
        detect_anomalous_params: Log parameters without a gradient at each iteration; for debugging.

    Raises:
        ValueError: A communication hook that does not exist, or, at the second iteration, parameters that got no
            gradient at the first.
    """

    def __init__(
        self,
        module: nn.Module,
        device_ids: Sequence[int] | None = None,
        find_unused_parameters: bool = False,
        static_graph: bool = False,
        broadcast_buffers: bool = False,
        bucket_cap_mb: float | None = None,
        gradient_as_bucket_view: bool = False,
        comm_hook: str | None = None,
        process_group: Any = None,
        detect_anomalous_params: bool = False,
    ) -> None:
        if comm_hook is not None and comm_hook not in COMM_HOOKS:
            close = nearest(comm_hook, COMM_HOOKS)
            raise ValueError(
                f"model_wrapper_cfg.comm_hook: {' or '.join(COMM_HOOKS)} was expected, got {comm_hook!r}; did you "
                f"mean {quoted(close)}?"
            )
        devices = {parameter.device for parameter in module.parameters()}
        if device_ids is None and len(devices) == 1 and (device := devices.pop()).type == "cuda":
            device_ids = [torch.cuda.current_device() if device.index is None else device.index]
        options: dict[str, Any] = {_BUFFERS: broadcast_buffers}
        if bucket_cap_mb is not None:
            options["bucket_cap_mb"] = bucket_cap_mb
        level = distributed.get_debug_level()
        # What complains of parameters without gradient says their names only where it was made at this level.
        distributed.set_debug_level(max(level, distributed.DebugLevel.INFO, key=lambda one: one.value))
        try:
            super().__init__(
                module,
                detect_anomalous_params,
                device_ids=device_ids,
                find_unused_parameters=find_unused_parameters,
                static_graph=static_graph,
                gradient_as_bucket_view=gradient_as_bucket_view,
                process_group=process_group,
                **options,
            )
        finally:
            distributed.set_debug_level(level)
        if comm_hook is not None:
            self.register_comm_hook(None, COMM_HOOKS[comm_hook])

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The model's forward pass."""
        try:
            return super().forward(*inputs, **kwargs)
        except RuntimeError as error:
            found = re.search(r"did not receive grad for rank (\d+): *([^\n]+)", str(error))
            if found is None:
                raise
            raise ValueError(
                f"on process {found[1]} no loss depended on these parameters at the last iteration: {found[2]}. Leave "
                "them out or freeze them (requires_grad=False); if they are used at some iterations only, set "
                "find_unused_parameters=True in the config"
            ) from error
