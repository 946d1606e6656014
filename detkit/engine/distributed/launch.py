"""Starting the processes of a run from one call, for notebooks, tests and ``tools/train.py --num-processes``."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import distributed

import __main__
from detkit.engine.distributed.init import DEFAULT_TIMEOUT, default_backend
from detkit.engine.distributed.worker import World, read_report, work

__all__ = ["ProcessError", "find_free_port", "launch"]

_FAILED = "failed"
# Seconds that the other processes have after the first failed, to say why they fail too; after the first exited on
# purpose, to do the same; and between the request to end and the end.
_REPORT_S, _EXIT_S, _GRACE_S = 0.5, 40.0, 5.0
_POLL_S = 1.0


class ProcessError(RuntimeError):
    """A process that :func:`launch` started failed; its traceback is this error's cause."""


class _Traceback(Exception):
    """Prints as the traceback that came from another process."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def find_free_port() -> int:
    """A TCP port of this machine that is free now; nobody keeps it free."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("", 0))
        return sock.getsockname()[1]


def launch(
    fn: Callable[..., Any],
    num_processes: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: Sequence[Any] = (),
    timeout: float = DEFAULT_TIMEOUT,
    backend: str | None = None,
    device_type: str | None = None,
    start_method: str | None = None,
) -> Any:
    """Call ``fn(*args)`` in ``num_processes`` processes of this machine that can talk to each other.

    RANK, LOCAL_RANK, WORLD_SIZE and so on are set as torchrun sets them, and ``torch.distributed`` is ready. With one
    process in all, ``fn`` is called right here. When a process fails or dies, the others are ended.

    Args:
        fn: A function of a module; in a notebook also one of the notebook, as long as CUDA was not used in it.
        num_processes: On this machine; the same on all.
        num_machines: Call ``launch`` on each of them.
        machine_rank: Number of this machine, from 0.
        dist_url: ``tcp://HOST:PORT`` of machine 0. On one machine None and ``'auto'`` take a free port; on several,
            None takes MASTER_ADDR and MASTER_PORT.
        args: Of ``fn``; must be picklable.
        timeout: Seconds that a collective waits for the other processes.
        backend: ``'gloo'`` or ``'nccl'``; None chooses by ``device_type``.
        device_type: ``'cpu'`` or ``'cuda'``, what the processes compute on; None takes CUDA where there is one.
        start_method: ``'spawn'``, ``'fork'`` or ``'forkserver'`` of multiprocessing; the last starts soonest, for
            processes on the CPU. None is spawn, and fork for a function of a notebook.

    Returns:
        What ``fn`` returned in the first process of this machine.

    Raises:
        ValueError: Counts below 1, more processes than CUDA devices, or no address for several machines.
        ProcessError: A process failed.
        SystemExit: All processes exited with this code.
    """
    for name, count in (("num_processes", num_processes), ("num_machines", num_machines)):
        if count < 1:
            raise ValueError(f"launch: {name} must be at least 1, got {count}")
    if not 0 <= machine_rank < num_machines:
        raise ValueError(f"launch: machine_rank must be in [0, {num_machines}), got {machine_rank}")
    if num_processes * num_machines == 1:
        return fn(*args)
    backend = backend or default_backend(device_type)
    if backend == "nccl" and num_processes > torch.cuda.device_count():
        raise ValueError(
            f"launch: {num_processes} processes were asked for, but there are {torch.cuda.device_count()} CUDA devices"
        )
    host, port = _address(dist_url, num_machines)
    store = distributed.TCPStore(
        host, port, is_master=machine_rank == 0, wait_for_workers=False, timeout=timedelta(seconds=timeout)
    )
    # Threads of all processes together as many as cores; torchrun sets one, whatever the machine.
    threads = None if "OMP_NUM_THREADS" in os.environ else max(1, (os.cpu_count() or 1) // num_processes)
    with tempfile.TemporaryDirectory(prefix="detkit_launch_") as folder:
        world = World(
            num_processes,
            num_machines,
            machine_rank,
            (host, store.port),
            backend,
            device_type,
            timeout,
            folder,
            threads,
            dict(os.environ),
            str(Path.cwd()),
        )
        processes = _start(world, _context(fn, start_method), fn, tuple(args))
        try:
            with _forwarded_signals(processes):
                failed = _watch(world, processes, store)
        finally:
            _end(processes)
        return _outcome(world, failed)


def _address(dist_url: str | None, num_machines: int) -> tuple[str, int]:
    if num_machines == 1 and dist_url in (None, "auto"):
        return "127.0.0.1", 0
    if dist_url is None and {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    scheme, _, rest = (dist_url or "").partition("://")
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ValueError(
            f"launch: dist_url 'tcp://HOST:PORT' of machine 0 was expected for {num_machines} machines, got "
            f"{dist_url!r}; 'auto' finds a port on one machine only"
        )
    return host, int(port)


def _context(fn: Callable[..., Any], start_method: str | None) -> Any:
    """How processes are made."""
    if start_method is None:
        # A fresh process could not import a notebook's function.
        of_notebook = fn.__module__ == "__main__" and not Path(getattr(__main__, "__file__", "")).is_file()
        start_method = "fork" if of_notebook else "spawn"
    if start_method == "fork" and torch.cuda.is_initialized():
        raise ValueError(
            f"launch: copies of this process cannot use CUDA, as it was used here before; restart the notebook, or "
            f"move {fn.__qualname__} to a module"
        )
    context = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        context.set_forkserver_preload(["detkit.engine", fn.__module__])  # imported once for all processes
    return context


def _start(world: World, context: Any, fn: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
    processes: list[Any] = []
    with _own_threads(world.threads):
        try:
            for local_rank in range(world.num_processes):
                processes.append(context.Process(target=work, args=(world, local_rank, fn, args), daemon=False))
                processes[-1].start()
        except BaseException:
            _end(processes[:-1])
            raise
    return processes


@contextlib.contextmanager
def _own_threads(threads: int | None) -> Iterator[None]:
    """Set OMP_NUM_THREADS for what starts now: it is read when a library is loaded, before a process could set it."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        if threads is not None:
            del os.environ["OMP_NUM_THREADS"]


def _watch(world: World, processes: Sequence[Any], store: Any) -> dict[int, int] | None:
    """Exit codes of the processes that failed by themselves, by local rank; None: those of another machine failed."""
    while True:
        running = [process.sentinel for process in processes if process.is_alive()]
        failed = _failed(processes)
        if failed:
            with contextlib.suppress(RuntimeError):  # machine 0 may be gone
                store.set(_FAILED, "1")
            reports = [read_report(world, rank) for rank in failed]
            # Who leaves on purpose, as after a signal, may leave others behind that still write a file.
            on_purpose = all(report is not None and report.on_purpose for report in reports)
            _wait_for_all(processes, _EXIT_S if on_purpose else _REPORT_S)
            return _failed(processes)
        if not running:
            return {}
        wait(running, timeout=_POLL_S)
        try:
            elsewhere = store.check([_FAILED])
        except RuntimeError:
            # Machine 0 is done, or gone; in the first case these processes are done too.
            _wait_for_all(processes, _GRACE_S)
            elsewhere = any(process.is_alive() for process in processes)
        if elsewhere and not _failed(processes):
            return None


def _failed(processes: Sequence[Any]) -> dict[int, int]:
    return {rank: process.exitcode for rank, process in enumerate(processes) if process.exitcode}


def _wait_for_all(processes: Sequence[Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))


def _end(processes: Sequence[Any]) -> None:
    """End what still runs: politely first, as a process may be writing a file."""
    for process in processes:
        process.terminate()
    _wait_for_all(processes, _GRACE_S)
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


@contextlib.contextmanager
def _forwarded_signals(processes: Sequence[Any]) -> Iterator[None]:
    """Hand SIGTERM and SIGUSR1 on to the processes, which may save and exit."""

    def forward(number: int, _: Any) -> None:
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    try:
        before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGUSR1)}
    except ValueError:  # not in the main thread
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(world: World, failed: dict[int, int] | None) -> Any:
    """The result of a run, or the error that tells why it failed."""
    if failed is None:
        raise ProcessError(f"processes of another machine failed; those of machine {world.machine_rank} were ended")
    reports = {rank: read_report(world, rank) for rank in range(world.num_processes)}
    if not failed:
        return pickle.loads(reports[0].result) if reports[0] and reports[0].result else None
    size, first = world.num_machines * world.num_processes, world.machine_rank * world.num_processes
    for rank, code in failed.items():
        # Who died without a word did so first: the others fail when they miss it.
        if reports[rank] is None:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise ProcessError(f"process {first + rank} of {size} {how} without an error of Python")
    told = {rank: report for rank, report in reports.items() if rank in failed and report is not None}
    if len(told) == world.num_processes and all(report.on_purpose for report in told.values()):
        codes = set(failed.values())
        if len(codes) == 1:
            raise SystemExit(codes.pop())
    rank = min(told, key=lambda rank: told[rank].moment)
    raise ProcessError(f"process {first + rank} of {size}: {told[rank].error}") from _Traceback(told[rank].traceback)
