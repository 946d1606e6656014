"""Fully sharded data parallelism: each process keeps a part of every parameter, gradient and moment.

Zhao et al., https://arxiv.org/abs/2304.11277, in torch's second form, ``torch.distributed.fsdp.fully_shard``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from detkit.engine.distributed import get_world_size
from detkit.registry import MODEL_WRAPPERS

__all__ = ["FSDP", "use_full_states"]

# Models walk through these without calling them, and only a call gathers what belongs to a module.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@MODEL_WRAPPERS.register_module()
class FSDP(nn.Module):
    """A model whose parameters are spread over the processes, for backbones that fit no device.

    Its state, and that of an optimizer given to :func:`use_full_states`, are those of the unsharded model, so that a
    checkpoint is the same whatever the number of processes. All processes must ask for a state together.

    Args:
        module: The model, on its device, with its initial weights.
        shard: Submodules whose parts are gathered and let go one after the other; parts must be used by calling
            them. What is elsewhere is gathered once for each pass through the model.
        min_num_params: Size from which a part of these is gathered by itself.
        reshard_after_forward: Let gathered parameters go after the forward pass, and gather them again for the
            backward pass: less memory, more traffic.
        param_dtype: ``'bfloat16'`` or ``'float16'`` to gather and compute in it; None keeps the parameters' own.

    Raises:
        ValueError: torch is older than 2.6, ``shard`` names no submodule, or another ``param_dtype``.
    """

    def __init__(
        self,
        module: nn.Module,
        shard: Sequence[str] = ("backbone",),
        min_num_params: int = 1_000_000,
        reshard_after_forward: bool = True,
        param_dtype: str | None = None,
    ) -> None:
        super().__init__()
        try:
            from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
        except ImportError as error:
            raise ValueError(
                f"model_wrapper_cfg: FSDP needs torch 2.6 or newer, this is {torch.__version__}"
            ) from error
        if param_dtype not in (None, "bfloat16", "float16"):
            raise ValueError(f"FSDP: param_dtype 'bfloat16', 'float16' or None was expected, got {param_dtype!r}")
        parts = dict(module.named_modules())
        unknown = [name for name in shard if name not in parts]
        if unknown:
            raise ValueError(
                f"FSDP: shard names {unknown[0]!r}, which is no part of {type(module).__name__}; it has "
                f"{', '.join(name for name, _ in module.named_children())}"
            )
        device = next(module.parameters()).device
        mesh = torch.distributed.device_mesh.init_device_mesh(device.type, (get_world_size(),))
        dtype = getattr(torch, param_dtype) if param_dtype else None
        options: dict[str, Any] = {
            "mesh": mesh,
            "reshard_after_forward": reshard_after_forward,
            "mp_policy": MixedPrecisionPolicy(param_dtype=dtype),
        }
        for name in shard:
            for part in _units(parts[name], min_num_params):
                fully_shard(part, **options)
        fully_shard(module, **options)
        self.module: Any = module
        module.register_state_dict_post_hook(_gather_state)
        module.register_load_state_dict_pre_hook(_scatter_state)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass."""
        return self.module(*args, **kwargs)

    _run_forward = BaseModel._run_forward

    def val_step(self, data: Any) -> list[Any]:
        """Predict."""
        return self.module.val_step(data)

    def test_step(self, data: Any) -> list[Any]:
        """Predict."""
        return self.module.test_step(data)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Keep gradients of this process's own until the next backward pass outside."""
        self.module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.module.set_requires_gradient_sync(True)


def use_full_states(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer of sharded parameters give, and take, the state of one of whole parameters."""
    optimizer.register_state_dict_post_hook(_gather_moments)
    optimizer.register_load_state_dict_pre_hook(_scatter_moments)


def _units(module: nn.Module, least: int) -> Iterator[nn.Module]:
    """The smallest parts of at least that many parameters, inner ones first, that are not in one another's count."""
    yield from _units_and_rest(module, least)[0]


def _units_and_rest(module: nn.Module, least: int) -> tuple[list[nn.Module], int]:
    units: list[nn.Module] = []
    rest = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    for child in module.children():
        inner, left = _units_and_rest(child, least)
        units += inner
        rest += left
    if rest >= least and not isinstance(module, _CONTAINERS):
        return [*units, module], 0
    return units, rest


def _whole(value: Any) -> Any:
    """A sharded tensor in one piece in main memory; anything else as it is."""
    return value.full_tensor().cpu() if hasattr(value, "full_tensor") else value


def _like(value: Any, parameter: Any) -> Any:
    """A whole tensor in shards as ``parameter`` is; anything else as it is."""
    if not hasattr(parameter, "full_tensor") or not isinstance(value, Tensor) or hasattr(value, "full_tensor"):
        return value
    if value.shape != parameter.shape:  # whoever loads it says so
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def _gather_state(module: nn.Module, state: dict[str, Any], prefix: str, _: Mapping[str, Any]) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        state[name] = _whole(state[name])


def _scatter_state(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, parameter in module.named_parameters():
        if prefix + name in state:
            state[prefix + name] = _like(state[prefix + name], parameter)


def _gather_moments(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    moments = {number: {key: _whole(one) for key, one in own.items()} for number, own in state["state"].items()}
    return {**state, "state": moments}


def _scatter_moments(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    moments = dict(state["state"])
    for number, parameter in zip(numbers, parameters, strict=False):  # load_state_dict compares the counts
        if number in moments:
            moments[number] = {key: _like(one, parameter) for key, one in moments[number].items()}
    return {**state, "state": moments}
