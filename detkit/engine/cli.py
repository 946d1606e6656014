"""What every command-line tool shares: one line for what a user can get wrong, a traceback for the rest."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["reason", "run_cli"]

# What detkit raises for wrong input, and what a wrong config makes others raise.
_USER_ERRORS = (KeyError, TypeError, ValueError, OSError, ImportError, FloatingPointError, RuntimeError)


def run_cli(function: Callable[..., Any], *args: Any, show_traceback: bool = False, **kwargs: Any) -> Any:
    """Call ``function`` for a command-line tool.

    An error that a user can mend becomes ``error: <one line>`` on stderr and exit status 1; Ctrl-C exits
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
        if show_traceback or os.environ.get("DETKIT_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exception(type(error), error, error.__traceback__)
        print(f"error: {reason(error)}", file=sys.stderr)
        if log_file:
            print(f"(traceback in {log_file})", file=sys.stderr)
        sys.exit(1)


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


def _write_to_log(error: Exception) -> str | None:
    """Put the traceback into the log file of the current run, and return its path."""
    module = sys.modules.get("mmengine.logging.logger")
    if module is None or not module.MMLogger._instance_dict:
        return None
    logger = module.MMLogger.get_current_instance()
    if logger.log_file is None:
        return None
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    logger.error("stopped by an error\n%s", text, extra={"console": False})
    return logger.log_file
