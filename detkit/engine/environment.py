"""Where a run happens: its device, its folder, and the versions under it."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import detkit
from detkit.signature import nearest, quoted

__all__ = [
    "ENV_KEYS",
    "cudnn_benchmark",
    "describe_environment",
    "require_writable",
    "select_device",
    "set_float32_precision",
]

ENV_KEYS = ("cudnn_benchmark", "dist_cfg", "float32_precision", "mp_cfg", "resource_limit")
FLOAT32_PRECISIONS = ("highest", "high", "medium")


def select_device(name: str | None) -> torch.device:
    """The device to run on.

    Args:
        name: ``'cpu'``, ``'cuda'``, ``'cuda:1'`` …; None takes CUDA where there is one.

    Raises:
        ValueError: An unknown name, or CUDA where torch sees no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = str(name).partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"device: 'cpu', 'cuda' or 'cuda:<index>' was expected, got {name!r}")
    if kind == "cuda":
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if seen <= int(index or 0):
            raise ValueError(f"device {name!r} was asked for, but {_cuda_seen(seen)}; --device cpu runs without it")
    return torch.device(name)


def _cuda_seen(count: int) -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA (install a CUDA build from pytorch.org)"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = f", CUDA_VISIBLE_DEVICES={visible!r}" if visible is not None else ""
    return (
        f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees {count or 'no'} CUDA device"
        f"{'s' if count > 1 else ''}{hidden} (does nvidia-smi work?)"
    )


def set_float32_precision(precision: str | None) -> None:
    """Choose how exact products of float32 numbers are on a GPU, in matrix products and convolutions alike.

    Args:
        precision: ``'highest'`` is float32; ``'high'`` is TF32, with 10 bits of mantissa; ``'medium'`` also bfloat16,
            with 7 bits, where that is faster. None leaves torch as it is: float32 for matrix products, TF32 for
            convolutions.

    Raises:
        ValueError: Another value.
    """
    if precision is None:
        return
    if precision not in FLOAT32_PRECISIONS:
        close = nearest(str(precision), FLOAT32_PRECISIONS)[0]
        raise ValueError(
            f"env_cfg.float32_precision: {quoted(FLOAT32_PRECISIONS)} was expected, got {precision!r}; "
            f"did you mean {close!r}?"
        )
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"


@contextmanager
def cudnn_benchmark(enabled: bool) -> Iterator[None]:
    """Let cuDNN try all algorithms at each new shape, or not; afterwards it is as before."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = enabled
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def require_writable(folder: str | os.PathLike[str]) -> Path:
    """Create ``folder`` and write to it once, so that a run does not fail at its first checkpoint.

    Returns:
        The absolute path.

    Raises:
        OSError: The folder cannot be created or written, with the reason of the system.
    """
    path = Path(folder).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"1")
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"work directory {path} cannot be written: {reason}; choose another with --work-dir") from error
    return path


def describe_environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware, as the log's first lines show them; costs no subprocess."""
    parts = {
        "detkit": detkit.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "device": str(device),
    }
    if device.type == "cuda":
        parts["gpu"] = torch.cuda.get_device_name(device)
        parts["cuda"] = str(torch.version.cuda)
        parts["cudnn"] = str(torch.backends.cudnn.version())
    else:
        parts["threads"] = str(torch.get_num_threads())
    return parts
