"""A config as Python text, and back without running it."""

from __future__ import annotations

import ast
import inspect
import keyword
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["dump", "parse"]

_WIDTH = 100
_INDENT = 4


def dump(cfg: Mapping[str, Any]) -> str:
    """Print a config as assignments of literals, one top-level key each.

    A class that stands as a ``type`` is printed as its importable path. The variables of a loaded config are left
    out: nothing would read them, as their values already stand wherever they are used.

    Raises:
        TypeError: A value has no literal form; with its config path.
    """
    variables = getattr(cfg, "variables", {})
    lines = [f"{key} = {_text(cfg[key], str(key), 0)}\n" for key in cfg if key not in variables]
    return "".join(lines)


def parse(text: str) -> dict[str, Any]:
    """Read what :func:`dump` printed: literals, ``dict(...)`` and ``float('inf')``, and nothing that runs.

    Raises:
        ValueError: The text holds anything else; with the line.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"config text, line {error.lineno}: {error.msg}") from error
    values = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
            raise ValueError(f"config text, line {node.lineno}: only 'name = value' is read here, got {_line(node)}")
        values[node.targets[0].id] = _value(node.value)
    return values


def _text(value: Any, path: str, indent: int) -> str:
    """Literal of ``value``; on several lines where it would be too wide for one."""
    if isinstance(value, Mapping):
        by_keyword = all(isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in value)
        opening, closing = ("dict(", ")") if by_keyword else ("{", "}")
        parts = [
            (f"{key}=" if by_keyword else f"{_text(key, path, 0)}: ")
            + _text(item, f"{path}.{key}" if path else str(key), indent + _INDENT)
            for key, item in value.items()
        ]
    elif type(value) in (list, tuple):
        opening, closing = "[]" if type(value) is list else "()"
        parts = [_text(item, f"{path}.{index}", indent + _INDENT) for index, item in enumerate(value)]
    elif inspect.isclass(value) or inspect.isfunction(value) or inspect.isbuiltin(value):
        return repr(_importable(value, path))
    elif isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    elif value is None or type(value) in (bool, int, float, str, bytes):
        return repr(value)
    else:
        raise TypeError(f"{path}: a config holds literals and classes, got {value!r} of type {type(value).__name__}")
    one_line = opening + ", ".join(parts) + ("," if type(value) is tuple and len(parts) == 1 else "") + closing
    if len(one_line) + indent <= _WIDTH and "\n" not in one_line:
        return one_line
    margin = " " * (indent + _INDENT)
    return opening + "\n" + "".join(f"{margin}{part},\n" for part in parts) + " " * indent + closing


def _importable(value: Any, path: str) -> str:
    name = f"{value.__module__}.{value.__qualname__}"
    if path.rpartition(".")[2] != "type":
        raise TypeError(f"{path}: {name} can only stand as the 'type' of a dict, where its name is printed")
    if "<" in name:
        raise TypeError(f"{path}: {name} cannot be imported by name; define it at the top of a module")
    return name


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "dict" and not node.args and all(argument.arg for argument in node.keywords):
            return {str(argument.arg): _value(argument.value) for argument in node.keywords}
        if node.func.id == "float" and len(node.args) == 1 and not node.keywords:
            number = ast.literal_eval(node.args[0])
            if number in ("inf", "-inf", "nan"):
                return float(number)
    elif isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(key): _value(item) for key, item in zip(node.keys, node.values, strict=True) if key}
    elif isinstance(node, (ast.List, ast.Tuple)):
        items = [_value(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    elif isinstance(node, (ast.Constant, ast.UnaryOp)):
        return ast.literal_eval(node)
    raise ValueError(f"config text, line {node.lineno}: only literals are read here, got {_line(node)}")


def _line(node: ast.AST) -> str:
    return repr(ast.unparse(node)[:80])
