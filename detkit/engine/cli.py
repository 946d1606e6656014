"""What every command-line tool shares: one line for what a user can get wrong, a traceback for the rest."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["reason", "run_cli", "run_processes", "set_launcher"]

# What detkit raises for wrong input, and what a wrong config makes others raise.
_USER_ERRORS = (KeyError, TypeError, ValueError, OSError, ImportError, FloatingPointError, RuntimeError)


def run_cli(function: Callable[..., Any], *args: Any, show_traceback: bool = False, **kwargs: Any) -> Any:
    """Call ``function`` for a command-line tool.

    An error that a user can mend becomes ``error: <one line>`` on stderr (a line for each thing that stands
    against a config) and exit status 1; Ctrl-C exits
    with 130; anything else is ours and propagates. The traceback is always in the run's log file, where one
    was opened.

    Args:
        function: What the tool does.
        args: Handed to ``function``.
        show_traceback: Print the whole traceback; so does the environment variable ``DETKIT_TRACEBACK=1``.
        kwargs: Handed to ``function``.

    Returns:
        What ``function`` returns.
    """
    try:
        return function(*args, **kwargs)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        log_file = _write_to_log(error)
        if not isinstance(error, _USER_ERRORS):
            raise
        rank = int(os.environ.get("RANK", "0"))
        if show_traceback or os.environ.get("DETKIT_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exception(type(error), error, error.__traceback__)
        print(f"error{f' of process {rank}' if rank else ''}: {_told(error)}", file=sys.stderr)
        if log_file:
            print(f"(traceback in {log_file})", file=sys.stderr)
        sys.exit(1)


def run_processes(function: Callable[[Any], Any], args: Any, configure: Callable[[Any], Any]) -> Any:
    """Call ``function(args)``, in as many processes as the arguments ask for.

    Args:
        function: What the tool does; of a module, so that a process can import it.
        args: Of a parser that ``detkit.arguments.default_argument_parser`` made.
        configure: Makes the config of the run from ``args``; called before processes are started, which finds what
            is wrong with it, and the device.

    Raises:
        ProcessError: A process failed.
        ValueError: Processes are to be started here, and by a launcher.
    """
    if (args.num_processes, args.num_machines, args.machine_rank) == (1, 1, 0):
        return function(args)
    if args.launcher not in (None, "none"):
        raise ValueError(
            f"--launcher {args.launcher} says that the processes are started already, --num-processes and "
            "--num-machines start them here; leave one out"
        )
    from detkit.engine.distributed import launch

    device = configure(args).get("device")
    return launch(
        _call,
        args.num_processes,
        args.num_machines,
        args.machine_rank,
        args.dist_url,
        args=(function, args),
        device_type=device and device.partition(":")[0],
    )


def _call(function: Callable[[Any], Any], args: Any) -> Any:
    """``function(args)`` in a process of several, with the traceback of an error in its log."""
    try:
        return function(args)
    except Exception as error:
        log_file = _write_to_log(error)
        if log_file:
            print(f"(traceback of process {os.environ['RANK']} in {log_file})", file=sys.stderr)
        raise


def set_launcher(cfg: Any, args: Any) -> None:
    """Say in the config what started the processes, and go on with a run that torchrun started anew.

    Args:
        cfg: With ``work_dir`` and ``resume``.
        args: Of a parser that ``detkit.arguments.default_argument_parser`` made.
    """
    from detkit.checkpoints import resume_candidates
    from detkit.engine.distributed import infer_launcher

    launcher = args.launcher or infer_launcher()
    cfg.launcher = launcher if launcher != "none" or args.launcher else cfg.get("launcher", "none")
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    # From the start of its first checkpoint on; until then it begins as it was asked to.
    if restarts and (not isinstance(cfg.resume, str) or resume_candidates(cfg.work_dir)):
        cfg.resume = True


def reason(error: BaseException) -> str:
    """The message of ``error`` in one line; of an error that came out of a DataLoader worker, the worker's own."""
    # str() of a KeyError is the repr of its message.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, KeyError) and not isinstance(error.args[0] if error.args else "", str):
        text = repr(error.args[0])
    match = re.match(r"Caught (\w+) in DataLoader worker process", text.strip("'\""))
    if match:
        # The worker's whole traceback is in the message; its last line that names the error starts the reason.
        text = re.split(rf"\n(?:\w+\.)*{match[1]}: ", text)[-1]
    return " ".join(text.split()) or type(error).__name__


def _told(error: Exception) -> str:
    """One line; of a config against which several things stand, one below it for each."""
    from detkit.config.problems import ConfigProblems

    return str(error) if isinstance(error, ConfigProblems) else reason(error)


def _write_to_log(error: Exception) -> str | None:
    """Put the traceback into the log file of the current run, and return its path; a dry run's is gone by then."""
    module = sys.modules.get("mmengine.logging.logger")
    if module is None or not module.MMLogger._instance_dict:
        return None
    logger = module.MMLogger.get_current_instance()
    if logger.log_file is None or not os.path.isfile(logger.log_file):
        return None
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    logger.error("stopped by an error\n%s", text, extra={"console": False})
    return logger.log_file
