"""What the processes of the distributed tests do; started by name, so functions of a module."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from detkit.engine.distributed import (
    all_gather,
    broadcast,
    gather,
    get_local_group,
    get_local_rank,
    get_local_size,
    get_rank,
    get_world_size,
    reduce_dict,
    shared_random_seed,
    synchronize,
)
from detkit.engine.model.batch_norm import update_bn_stats


def collectives(processes_per_machine: int) -> list[dict[str, Any]]:
    """Every collective's result on every process."""
    rank = get_rank()
    # A machine is what its launcher says it is; here, two in one.
    os.environ["GROUP_RANK"] = str(rank // processes_per_machine)
    local = torch.tensor([float(rank)])
    distributed.all_reduce(local, group=get_local_group())
    world = torch.tensor([float(rank)])
    distributed.all_reduce(world)
    believed = get_local_rank(), get_local_size()
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        del os.environ[name]
    before = np.random.get_state()[1]
    seed = shared_random_seed()
    seen = {
        "numpy is untouched": bool((np.random.get_state()[1] == before).all()),
        "pid": os.getpid(),
        "rank": (rank, get_world_size()),
        "believed": believed,
        "counted": (get_local_rank(), get_local_size()),
        "all_gather": all_gather({"r": rank}),
        "gather": gather(rank),
        "gather to 1": gather(rank, dst=1),
        "broadcast": broadcast(f"from {rank}", src=2),
        "seed": seed,
        "mean": reduced(rank, average=True),
        "sum": reduced(rank, average=False),
        "local": local.item(),
        "world": world.item(),
        "statistics": batch_norm_statistics(rank),
    }
    synchronize()
    return all_gather(seen)


def reduced(rank: int, average: bool) -> dict[str, Any]:
    values = {"a": torch.tensor(rank + 1.0), "b": torch.full((2, 1), rank, dtype=torch.float16)}
    if rank:  # filled in another order
        values = dict(reversed(values.items()))
    return {name: value.tolist() for name, value in reduce_dict(values, average).items()}


def batch_norm_statistics(rank: int) -> tuple[float, float]:
    layer = nn.BatchNorm1d(1)
    values = [[1.0, 3.0], [2.0, 4.0], [6.0, 8.0], [5.0, 7.0, 9.0]][rank]
    update_bn_stats(layer, [torch.tensor(values)[:, None]], 1)
    return layer.running_mean.item(), layer.running_var.item()


def process_id() -> int:
    return os.getpid()


def fail_together_with(how: str, folder: str) -> None:
    """Process 1 fails in the middle of the work, while the other waits for it."""
    Path(folder, str(get_rank())).write_text(str(os.getpid()))
    synchronize()
    if get_rank() == 1:
        if how == "exception":
            raise ArithmeticError("the second process cannot go on")
        if how == "exit":
            os._exit(7)
        os.kill(os.getpid(), signal.SIGKILL)
    all_gather(get_rank())


def leave(code: int) -> None:
    """All exit on purpose, one later than the other."""
    time.sleep(1.0 * get_rank())
    sys.exit(code)


def unpicklable() -> Any:
    return lambda: None


def where_am_i() -> dict[str, str]:
    """What the launcher told this process, of all processes."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
    return all_gather({name: os.environ[name] for name in names} | {"backend": distributed.get_backend()})


def wait_connected(port: int) -> None:
    """Keep a connection open for as long as this process is there."""
    with socket.create_connection(("127.0.0.1", port)):
        time.sleep(60)
