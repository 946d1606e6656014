"""Joining the processes that a launcher started: torchrun, SLURM, MPI, or detkit's own ``launch``."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import MutableMapping
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from detkit.engine.distributed.groups import forget_groups, get_cpu_group, get_local_rank, is_distributed
from detkit.signature import nearest, quoted

__all__ = ["DEFAULT_TIMEOUT", "LAUNCHERS", "default_backend", "destroy", "infer_launcher", "init_distributed"]

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")
# Seconds that a collective waits for the other processes; one may evaluate while they wait.
DEFAULT_TIMEOUT = 1800.0
_BACKENDS = ("nccl", "gloo", "mpi", "ucc")
_PAUSE = 0.01  # seconds between two looks into a store
# Below the ports that Linux hands out by itself.
_FIRST_PORT, _PORTS = 20_000, 12_000


def infer_launcher() -> str:
    """``'pytorch'`` where torchrun or ``launch`` started this process, else ``'none'``.

    SLURM and MPI must be named: their variables are also there in a shell of an allocation, where one process runs.
    """
    return "pytorch" if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys() else "none"


def default_backend(device_type: str | None = None) -> str:
    """``'nccl'`` for models on CUDA, else ``'gloo'``; None takes CUDA where there is one."""
    on_cuda = torch.cuda.is_available() if device_type is None else device_type == "cuda"
    return "nccl" if on_cuda and distributed.is_nccl_available() else "gloo"


def init_distributed(
    launcher: str = "pytorch",
    backend: str | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    device_type: str | None = None,
    port: int | None = None,
) -> bool:
    """Join the other processes of the run.

    mmengine's ``init_dist`` sets a CUDA device whatever the backend, and so fails on a machine without one.

    Args:
        launcher: What started the processes: ``'pytorch'`` (torchrun, also after an elastic restart), ``'slurm'``
            (srun), ``'mpi'`` (Open MPI, MPICH, Intel MPI), or ``'none'``: nothing, this is the only process.
        backend: ``'nccl'`` or ``'gloo'``; None chooses by ``device_type``.
        timeout: Seconds that a collective waits for the other processes.
        device_type: ``'cuda'`` or ``'cpu'``, where the model will be; None takes CUDA where there is one.
        port: Of SLURM's first machine; None is ``MASTER_PORT``, else one that follows from the job's number.

    Returns:
        Whether this process has peers now; False for launcher ``'none'``.

    Raises:
        ValueError: An unknown launcher or backend, variables of the launcher that are missing, or more processes
            on this machine than CUDA devices.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(
            f"launcher: one of {', '.join(LAUNCHERS)} was expected, got {launcher!r}; "
            f"did you mean {quoted(nearest(launcher, LAUNCHERS))}?"
        )
    if is_distributed():
        return True
    if launcher == "none":
        return False
    backend = backend or default_backend(device_type)
    if backend not in _BACKENDS and ":" not in backend:
        raise ValueError(f"dist_cfg.backend: one of {', '.join(_BACKENDS)} was expected, got {backend!r}")
    if not timeout > 0:
        raise ValueError(f"dist_cfg.timeout: seconds above 0 were expected, got {timeout!r}")
    translate_environment(launcher, os.environ, port)
    set_device(backend, device_type)
    patience = timedelta(seconds=timeout)
    if "TORCHELASTIC_RESTART_COUNT" in os.environ:
        store, rank, world = next(rendezvous("env://", timeout=patience))
        store = unused_part(store, rank, world, timeout)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)
    else:
        distributed.init_process_group(backend, init_method="env://", timeout=patience)
    get_cpu_group()  # every process is here now; later, one of them may not be
    return True


def unused_part(store: Any, rank: int, world: int, timeout: float) -> Any:
    """A part of ``store`` that only the processes which call this now have seen.

    torchrun starts processes anew on the store of those that died, where torch then finds the old addresses.

    Args:
        store: Of all processes of all attempts.
        rank: Of this process.
        world: Count of processes.
        timeout: Seconds to wait for the others.

    Raises:
        TimeoutError: A process did not come.
    """
    own = uuid.uuid4().hex
    if rank:
        # Asked under a name that no earlier process had, so that the answer is for this one.
        store.set(f"detkit/asks/{rank}", own)
        part = store.get(f"detkit/part/{own}").decode()
        store.set(f"detkit/has/{part}/{rank}", "1")
        return distributed.PrefixStore(part, store)
    deadline = time.monotonic() + timeout
    missing = set(range(1, world))
    while missing:
        for other in sorted(missing):
            if store.check([f"detkit/has/{own}/{other}"]):
                missing.discard(other)
            elif store.check([f"detkit/asks/{other}"]):  # perhaps an earlier process: then nobody reads the answer
                store.set(f"detkit/part/{store.get(f'detkit/asks/{other}').decode()}", own)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {sorted(missing)} did not come within {timeout:g} s")
        time.sleep(_PAUSE)
    return distributed.PrefixStore(own, store)


def set_device(backend: str, device_type: str | None) -> None:
    """Take this process's CUDA device, before the first collective, which would take device 0 otherwise.

    Raises:
        ValueError: More processes on this machine than devices.
    """
    if device_type == "cpu" or not torch.cuda.is_available():
        if "nccl" in backend:
            raise ValueError("dist_cfg.backend: 'nccl' needs CUDA; 'gloo' runs on a CPU")
        return
    if "nccl" not in backend and device_type is None:
        return
    local_rank, count = get_local_rank(), torch.cuda.device_count()
    if local_rank >= count:
        raise ValueError(
            f"process {local_rank} of this machine finds {count} CUDA devices: start at most as many processes as "
            "there are devices, or run on the CPU (--device cpu)"
        )
    torch.cuda.set_device(local_rank)


def destroy() -> None:
    """Leave the other processes; does nothing without them."""
    if is_distributed():
        forget_groups()
        distributed.destroy_process_group()


def translate_environment(launcher: str, env: MutableMapping[str, str], port: int | None = None) -> None:
    """Say in torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR ...) what ``launcher`` says in its own.

    Args:
        launcher: ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        env: Read and completed; what the user set of MASTER_ADDR and MASTER_PORT stays.
        port: See :func:`init_distributed`.

    Raises:
        ValueError: Variables are missing: the process was not started by ``launcher``.
    """
    if launcher == "slurm":
        _translate_slurm(env, port)
    elif launcher == "mpi":
        _translate_mpi(env)
    missing = [key for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if key not in env]
    if missing:
        raise ValueError(
            f"launcher {launcher!r}: {', '.join(missing)} not set; start with 'torchrun --nproc-per-node N ...', or "
            "with --num-processes N on one machine"
        )
    # torchrun's predecessor set no LOCAL_RANK where it passed --local_rank; one machine is then meant.
    env.setdefault("LOCAL_RANK", env["RANK"])


def _translate_slurm(env: MutableMapping[str, str], port: int | None) -> None:
    missing = [key for key in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID") if key not in env]
    if missing:
        raise ValueError(f"launcher 'slurm': {', '.join(missing)} not set; start the processes with srun")
    env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"] = (
        env[f"SLURM_{name}"] for name in ("PROCID", "NTASKS", "LOCALID")
    )
    tasks = env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE"))
    if tasks is not None:
        env["LOCAL_WORLD_SIZE"] = str(_tasks_of_node(tasks, int(env.get("SLURM_NODEID", 0))))
    nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_NODELIST", env.get("SLURM_JOB_NODELIST", "")))
    if nodes:
        env.setdefault("MASTER_ADDR", _first_host(nodes))
    if port is not None:
        env["MASTER_PORT"] = str(port)
    # One port for all jobs, as mmengine's 29500, is taken when two jobs share a machine.
    env.setdefault("MASTER_PORT", str(_FIRST_PORT + int(env.get("SLURM_JOB_ID", 0)) % _PORTS))


def _first_host(nodes: str) -> str:
    """``gpu03`` of ``gpu[03-05,9],cpu1``: SLURM's list, without asking scontrol."""
    match = re.match(r"([^,\[]*)(?:\[([^\]]+)\])?([^,\[]*)", nodes)
    prefix, numbers, suffix = match.groups() if match else (nodes, None, "")
    return prefix + re.split("[-,]", numbers)[0] + suffix if numbers else prefix


def _tasks_of_node(tasks: str, node: int) -> int:
    """The count at ``node`` in SLURM's short form: ``2(x3),1`` are the counts 2, 2, 2, 1."""
    counts: list[int] = []
    for part in tasks.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise ValueError(f"launcher 'slurm': SLURM_TASKS_PER_NODE={tasks!r} was not understood")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[node]


def _translate_mpi(env: MutableMapping[str, str]) -> None:
    names = {
        "RANK": ("OMPI_COMM_WORLD_RANK", "PMI_RANK"),
        "WORLD_SIZE": ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
        "LOCAL_RANK": ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"),
        "LOCAL_WORLD_SIZE": ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"),
    }
    for own, theirs in names.items():
        found = next((env[name] for name in theirs if name in env), None)
        if found is None:
            raise ValueError(f"launcher 'mpi': neither {' nor '.join(theirs)} is set; start the processes with mpirun")
        env[own] = found
    if env["LOCAL_WORLD_SIZE"] == env["WORLD_SIZE"]:
        env.setdefault("MASTER_ADDR", "127.0.0.1")
    elif "MASTER_ADDR" not in env:
        raise ValueError("launcher 'mpi': MASTER_ADDR must name the first machine; export it to all (mpirun -x)")
    env.setdefault("MASTER_PORT", str(_FIRST_PORT + os.getuid() % _PORTS))
