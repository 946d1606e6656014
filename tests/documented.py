"""What a page says in backticks is there: registered names, paths below ``detkit``, files."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

from detkit.registry import REGISTRIES, find

ROOT = Path(__file__).parents[1]


def named(name: str) -> Any:
    """What a registered name or a path that begins with ``detkit.`` stands for."""
    if name.startswith("detkit."):
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            try:
                value = importlib.import_module(".".join(parts[:length]))
            except ModuleNotFoundError:
                continue
            for part in parts[length:]:
                value = getattr(value, part)
            return value
    found = [cls for registry in REGISTRIES.values() if (cls := find(name, registry)) is not None]
    assert found, f"{name}: nobody registered it"
    return found[0]


def check(text: str) -> None:
    """A name, a call whose arguments must exist, or a file."""
    if text.startswith("tools/"):
        assert (ROOT / text).is_file(), text
        return
    tree = ast.parse(text, mode="eval").body
    call = tree if isinstance(tree, ast.Call) else None
    target = named(ast.unparse(call.func if call else tree))
    if call:
        unknown = {keyword.arg for keyword in call.keywords} - set(inspect.signature(target).parameters)
        assert not unknown, f"{text}: {unknown}"
