"""What a process that ``launch`` started does, and how it tells its parent."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed

from detkit.engine.distributed.groups import get_cpu_group, is_distributed
from detkit.engine.distributed.init import destroy, set_device

__all__ = ["Report", "World", "read_report", "work"]


# Seconds to save and exit in, after the parent was killed.
_LAST_S = 40.0


class World(NamedTuple):
    """What a started process must know; ``address`` is that of the store which the first machine's parent keeps."""

    num_processes: int
    num_machines: int
    machine_rank: int
    address: tuple[str, int]
    backend: str
    device_type: str | None
    timeout: float
    folder: str
    threads: int | None
    environment: dict[str, str]
    cwd: str


class Report(NamedTuple):
    """What a process left behind: its pickled result, or its error and whether that was an exit on purpose."""

    moment: float
    error: str
    traceback: str
    on_purpose: bool
    result: bytes


def work(world: World, local_rank: int, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """All that a started process does."""
    error, text, code, result = "", "", 0, b""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        value = _join_and_call(world, local_rank, fn, args)
        result = pickle.dumps(value if local_rank == 0 else None)
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        error, text = f"SystemExit: {exit_.code}", traceback.format_exc()
    except BaseException as failure:
        code = 1
        error, text = "".join(traceback.format_exception_only(failure)).strip(), traceback.format_exc()
    report = Report(time.time(), error, text, error.startswith("SystemExit"), result)
    path = Path(world.folder, str(local_rank))
    path.with_suffix(".part").write_bytes(pickle.dumps(tuple(report)))
    path.with_suffix(".part").replace(path)
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        # Not through the interpreter's end: it would wait for threads that wait for the other processes.
        os._exit(code)


def _end_with_parent() -> None:
    """End once the parent is gone: killed, as for want of memory, it could not see to it, and the run would go on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # which may save and exit
        time.sleep(_LAST_S)
        os._exit(1)


def _join_and_call(world: World, local_rank: int, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    host, port = world.address
    rank, size = world.machine_rank * world.num_processes + local_rank, world.num_machines * world.num_processes
    # A fork server has those of the time when it was started.
    os.chdir(world.cwd)
    os.environ.update(world.environment)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(local_rank),
        LOCAL_WORLD_SIZE=str(world.num_processes),
        GROUP_RANK=str(world.machine_rank),
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
    )
    if world.threads is not None:
        torch.set_num_threads(world.threads)
    set_device(world.backend, world.device_type)
    patience = timedelta(seconds=world.timeout)
    store = distributed.TCPStore(host, port, is_master=False, timeout=patience)
    distributed.init_process_group(world.backend, store=store, rank=rank, world_size=size, timeout=patience)
    get_cpu_group()
    try:
        result = fn(*args)
        if is_distributed():  # who leaves early takes connections from the others
            distributed.barrier(group=get_cpu_group())
    finally:
        # With an error on the way, peers may wait for this process in a collective that leaving would wait for too;
        # the process ends at once, and its connections with it.
        if sys.exc_info()[0] is None:
            destroy()
    return result


def read_report(world: World, local_rank: int) -> Report | None:
    """What the process left behind; None if it died, or still runs."""
    path = Path(world.folder, str(local_rank))
    return Report(*pickle.loads(path.read_bytes())) if path.exists() else None
