"""Who this process is among its peers, and the groups it shares with them."""

from __future__ import annotations

import os
import socket
from typing import Any

from mmengine.dist import get_rank, get_world_size, is_distributed, is_main_process
from torch import distributed

__all__ = [
    "forget_groups",
    "get_cpu_group",
    "get_local_group",
    "get_local_rank",
    "get_local_size",
    "get_rank",
    "get_world_size",
    "is_distributed",
    "is_main_process",
]

# The groups made so far, with the world they belong to: a world that was destroyed takes its groups along.
_groups: dict[str, tuple[Any, Any]] = {}


def get_cpu_group() -> Any:
    """The group of all processes for data in main memory; None where there is one process.

    Made at the first call, which all processes must make together.
    """
    if not is_distributed():
        return None
    if "gloo" in distributed.get_backend():
        return distributed.group.WORLD
    return _made("cpu", lambda: distributed.new_group(backend="gloo"))


def get_local_group() -> Any:
    """The group of the processes of this machine; None where there is one process.

    Made at the first call, which all processes must make together. mmengine's ``init_local_group`` lets each
    process make its own machine's group only, while torch wants every process to make every group: sums over
    them are wrong, or the call never returns.
    """
    return _made("local", _make_local_group) if is_distributed() else None


def get_local_rank() -> int:
    """Number of this process on its machine, from 0; a launcher's ``LOCAL_RANK`` is believed."""
    if "LOCAL_RANK" in os.environ:
        return int(os.environ["LOCAL_RANK"])
    return distributed.get_rank(get_local_group()) if is_distributed() else 0


def get_local_size() -> int:
    """Count of processes on this machine; a launcher's ``LOCAL_WORLD_SIZE`` is believed."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    return distributed.get_world_size(get_local_group()) if is_distributed() else 1


def forget_groups() -> None:
    """Let go of the groups of a world that is destroyed."""
    _groups.clear()


def _made(name: str, make: Any) -> Any:
    world, group = _groups.get(name, (None, None))
    if world is not distributed.group.WORLD:
        group = make()
        _groups[name] = (distributed.group.WORLD, group)
    return group


def _make_local_group() -> Any:
    machines: list[Any] = [None] * get_world_size()
    distributed.all_gather_object(machines, _machine(), group=get_cpu_group())
    own = None
    for machine in sorted(set(machines)):
        ranks = [rank for rank, name in enumerate(machines) if name == machine]
        group = distributed.new_group(ranks)
        if get_rank() in ranks:
            own = group
    return own


def _machine() -> str:
    """What tells machines apart: the launcher's number of it, else its name."""
    for name in ("GROUP_RANK", "SLURM_NODEID"):
        if name in os.environ:
            return os.environ[name]
    return socket.gethostname()
