"""A tool as its own process would run it, without the seconds that a process takes to import."""

from __future__ import annotations

import io
import runpy
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess

import torch

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def run_here(name: str, *arguments: object) -> CompletedProcess[str]:
    """What ``python tools/<name>.py <arguments>`` prints, but for warnings, and how it ends, in this process."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    argv, path, threads = sys.argv, list(sys.path), torch.get_num_threads()
    sys.argv = [str(TOOLS / f"{name}.py"), *map(str, arguments)]
    sys.path.insert(0, str(TOOLS))
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        err.write(f"{end.code}\n" if isinstance(end.code, str) else "")
    except Exception:
        status = 1
        err.write(traceback.format_exc())
    finally:
        sys.argv, sys.path[:] = argv, path
        torch.set_num_threads(threads)
    return CompletedProcess([name, *arguments], status, out.getvalue(), err.getvalue())
