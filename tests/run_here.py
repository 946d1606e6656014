"""A tool as its own process would run it, without the seconds that a process takes to import."""

from __future__ import annotations

import io
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess

import torch

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def run_here(name: str, *arguments: object) -> CompletedProcess[str]:
    """What ``python tools/<name>.py <arguments>`` prints, and how it ends, in this process."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    argv, path, threads = sys.argv, list(sys.path), torch.get_num_threads()
    sys.argv = [str(TOOLS / f"{name}.py"), *map(str, arguments)]
    sys.path.insert(0, str(TOOLS))
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.argv, sys.path[:] = argv, path
        torch.set_num_threads(threads)
    return CompletedProcess([name, *arguments], status, out.getvalue(), err.getvalue())
