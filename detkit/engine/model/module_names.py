"""Modules of a model by the names that a config gives them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from detkit.signature import nearest

__all__ = ["as_names", "find_modules"]


def as_names(given: str | Sequence[str]) -> list[str]:
    """One name or several, as a list."""
    return [given] if isinstance(given, str) else list(given)


def find_modules(model: nn.Module, names: str | Sequence[str], key: str) -> list[nn.Module]:
    """Modules of ``model`` by name; ``key`` is where the names stand in the config.

    Raises:
        ValueError: There is no such module; with the nearest name.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    for name in as_names(names):
        if name not in modules:
            close = nearest(str(name), modules)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{key}: {type(model).__name__} has no module {name!r}{hint}")
    return [modules[name] for name in as_names(names)]
