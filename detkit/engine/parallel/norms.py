"""BatchNorm over the images of all processes, and back."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["convert_sync_batchnorm", "revert_sync_batchnorm"]


def convert_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Replace each BatchNorm by a ``torch.nn.SyncBatchNorm`` with the same parameters and buffers.

    Returns:
        ``model``, or its replacement where it is a BatchNorm itself.
    """
    return _replace(model, _synced, {})


def revert_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Replace each SyncBatchNorm by the BatchNorm it came from, by BatchNorm2d where it came from a config.

    mmengine's reverts to a class of its own, which is no BatchNorm2d: what looks for one passes it by.

    Returns:
        ``model``, or its replacement where it is a SyncBatchNorm itself.
    """
    return _replace(model, _plain, {})


def _replace(module: nn.Module, make: Callable[[nn.Module], nn.Module], done: dict[int, nn.Module]) -> nn.Module:
    """``module`` with ``make`` applied to every part; what was shared before is shared after."""
    if id(module) not in done:
        done[id(module)] = new = make(module)
        if new is module:
            for name, child in module._modules.items():
                if child is not None:
                    # Not by setattr: a property of the module's class may stand in between.
                    module._modules[name] = _replace(child, make, done)
    return done[id(module)]


def _synced(module: nn.Module) -> nn.Module:
    if not isinstance(module, _BatchNorm) or isinstance(module, nn.SyncBatchNorm):
        return module
    synced = _taken_over(nn.SyncBatchNorm, module)
    synced._reverts_to = type(module)  # type: ignore[assignment]
    return synced


def _plain(module: nn.Module) -> nn.Module:
    if not isinstance(module, nn.SyncBatchNorm):
        return module
    return _taken_over(getattr(module, "_reverts_to", nn.BatchNorm2d), module)


def _taken_over(kind: type[nn.Module], norm: _BatchNorm) -> nn.Module:
    """A norm of another class with the very parameters and buffers of ``norm``."""
    new = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta")
    for name in ("weight", "bias"):
        new._parameters[name] = norm._parameters[name]
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        new._buffers[name] = norm._buffers[name]
    new.training = norm.training
    for name, value in vars(norm).items():
        # Marks that others left, such as a hook's or the initialiser's.
        if name not in vars(new) and name != "_reverts_to":
            vars(new)[name] = value
    return new
