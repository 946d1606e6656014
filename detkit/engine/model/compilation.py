"""``compile``: torch.compile by config, of the parts of a model that are worth it."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn

from detkit.engine.model.module_names import as_names
from detkit.registry import check_keys
from detkit.signature import nearest

__all__ = ["COMPILE_KEYS", "check_compiler", "compile_model"]

COMPILE_KEYS = ("target", "backend", "dynamic", "fullgraph", "mode", "options", "disable")
DEFAULT_BACKEND = "inductor"


def compile_model(model: nn.Module, cfg: bool | Mapping[str, Any] | None, device: torch.device) -> list[str]:
    """Compile parts of ``model`` in place: names of weights, and so checkpoints, stay as they are.

    mmengine compiles ``train_step``, which breaks into graphs at every ``backward``. What depends on data samples
    (sizes of images, numbers of objects) would be compiled anew for each; so the default is what goes from tensors to
    tensors.

    Args:
        model: Not wrapped for several processes.
        cfg: True, or a dict of torch.compile's arguments and ``target``: a name or names of what is compiled, each of
            a module (``'backbone'``), whose calls are, or of a method (``'bbox_head.loss'``). Without it all children
            are, but for the data preprocessor; of a model without children, its ``forward``. None, False and
            ``disable=True`` compile nothing.
        device: Where the model runs.

    Returns:
        Names of what was compiled; compilation itself happens at the first calls.

    Raises:
        KeyError: An unknown key.
        TypeError: ``cfg`` is something else.
        ValueError: An unknown backend or target, or no compiler for it.
    """
    if cfg is None or cfg is False:
        return []
    if cfg is not True and not isinstance(cfg, Mapping):
        raise TypeError(f"compile: True, False or a dict of torch.compile's arguments was expected, got {cfg!r}")
    options = {} if cfg is True else dict(cfg)
    check_keys(options, COMPILE_KEYS, "compile")
    if options.pop("disable", False):
        return []
    target = options.pop("target", None)
    check_compiler(options.get("backend", DEFAULT_BACKEND), device)
    names = _default_targets(model) or ["forward"] if target is None else as_names(target)
    # All are found before the first is compiled.
    for (owner, name), part in [_find(model, name) for name in names]:
        if isinstance(part, nn.Module):
            part.compile(**options)
        else:
            # Bound to its owner as methods are: a copy of the model then calls its own.
            function = getattr(type(owner), name)
            setattr(owner, name, MethodType(torch.compile(function, **options), owner))
    return names


def check_compiler(backend: Any, device: torch.device) -> None:
    """Refuse a backend that is not there, or that would not find its compiler at the first step.

    Raises:
        ValueError: With what is missing and what goes without it.
    """
    if not isinstance(backend, str):
        return
    import torch._dynamo  # costs a second, and is needed for compiling alone

    known = torch._dynamo.list_backends(None)
    if backend not in known:
        raise ValueError(f"compile.backend: unknown backend {backend!r}; did you mean {nearest(backend, known)[0]!r}?")
    if backend != DEFAULT_BACKEND:
        return
    missing = _missing_for_cuda() if device.type == "cuda" else _missing_for_cpu()
    if missing:
        raise ValueError(
            f"compile: the backend 'inductor' needs {missing}; install it, or leave compile out "
            "(compile=dict(backend='aot_eager') goes without, but speeds nothing up)"
        )


def _missing_for_cpu() -> str | None:
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if sys.platform == "win32":
        compiler = os.environ.get("CXX") or "cl"
    if shutil.which(compiler.split()[0]) is None:
        return f"a C++ compiler, and {compiler!r} is not on PATH (the environment variable CXX may name another)"
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        return f"the headers of Python, and {header} does not exist (they are in python3-dev or python3-devel)"
    return None


def _missing_for_cuda() -> str | None:
    from torch.utils._triton import has_triton

    return None if has_triton() else "Triton, and a GPU of compute capability 7.0 or higher"


def _default_targets(model: nn.Module) -> list[str]:
    unwritten = nn.Module.forward
    return [
        name
        for name, child in model.named_children()
        if name != "data_preprocessor"
        and type(child).forward is not unwritten
        and any(True for _ in child.parameters())
    ]


def _find(model: nn.Module, name: str) -> tuple[tuple[Any, str], Any]:
    """The owner of a module or method, its name there, and itself."""
    *path, last = name.split(".")
    owner: Any = model
    for part in path:
        owner = getattr(owner, part, None)
    found = getattr(owner, last, None)
    if isinstance(found, nn.Module) or (isinstance(owner, nn.Module) and callable(found) and last):
        return (owner, last), found
    names = [one for one, _ in model.named_modules() if one]
    names += [f"{one}.loss" for one, module in model.named_modules() if one and callable(getattr(module, "loss", None))]
    names += [one for one in ("forward", "loss") if callable(getattr(model, one, None))]
    raise ValueError(
        f"compile.target: {type(model).__name__} has no module or method {name!r}; did you mean "
        f"{nearest(name, names)[0]!r}?"
    )
