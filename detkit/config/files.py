"""One config file: its text, its placeholders, its names, and its evaluation.

The text form is mmengine's (https://mmengine.readthedocs.io/en/latest/advanced_tutorials/config.html):
Python, JSON or YAML with ``_base_``, ``{{ fileDirname }}``, ``{{$ENV:default}}`` and ``{{_base_.x}}``.
"""

from __future__ import annotations

import ast
import copy
import json
import os
import re
import traceback
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict

from detkit.signature import nearest, quoted

__all__ = ["SourceFile", "to_config_dict"]

_ENVIRONMENT = re.compile(r"\{\{['\"]?\s*\$(\w+)\s*:\s*(\S*?)\s*['\"]?\}\}")
_BASE_VALUE = re.compile(r"\{\{\s*_base_\.([\w.]+)\s*\}\}")
# In the data formats: a whole string, which stays, or a bare placeholder where a value stands, which gets quotes.
_STRING_OR_BASE_VALUE = re.compile(
    r"\"(?:[^\"\\]|\\.)*\"|(\{\{\s*_base_\.[\w.]+\s*\}\})(?=\s*(?:[,\]}]|$))", re.MULTILINE
)


class SourceFile:
    """One config file as it stands, before its bases are known.

    Attributes:
        path: Absolute path.
        bases: The paths of ``_base_``, as written.
        read: Names that the file reads, be it its own, or a base's as ``_base_.name``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_python = path.suffix == ".py"
        text = _fill_environment(_fill_file_names(path.read_text(encoding="utf-8-sig"), path), path)
        self.read = {match.split(".")[0] for match in _BASE_VALUE.findall(text)}
        if self.is_python:
            self.tree = self._parse(text)
            self.read |= _names_read(self.tree)
            self.bound_by_code = _names_bound_by_code(self.tree)
            bases = self._base_paths()
        else:
            self.data = self._parse_data(text)
            bases = self.data.pop("_base_", [])
        self.bases: list[str] = [str(base) for base in ([bases] if isinstance(bases, (str, Path)) else bases)]

    def evaluate(self, base: ConfigDict, pinned: Mapping[str, Any]) -> ConfigDict:
        """The file's own values.

        Args:
            base: The merged bases; edits that the file makes to it in place stay.
            pinned: Values of variables that are set from outside, in place of what the file assigns.

        Raises:
            ValueError: The code fails, or a pinned variable cannot be set from outside; with file and line.
        """
        if self.is_python:
            values = self._run(base, pinned)
        else:
            values = {key: copy.deepcopy(pinned.get(key, value)) for key, value in self.data.items()}
        return to_config_dict(_fill_base_values(values, base, self.path))

    def _run(self, base: ConfigDict, pinned: Mapping[str, Any]) -> dict[str, Any]:
        pin = _Pin(pinned, self.path)
        tree = ast.fix_missing_locations(pin.visit(_BasePlaceholder().visit(copy.deepcopy(self.tree))))
        namespace: dict[str, Any] = {
            "__file__": str(self.path),
            "_base_": base,
            "__base_value__": lambda path: copy.deepcopy(_base_value(path, base, self.path)),
            "__pinned__": lambda name: copy.deepcopy(pinned[name]),
        }
        try:
            exec(compile(tree, str(self.path), "exec"), namespace)
        except Exception as error:
            raise ValueError(self._explain(error, base)) from error
        hidden = {"_base_", *self.bound_by_code}
        values = {
            name: value
            for name, value in namespace.items()
            if name not in hidden and not name.startswith("__") and not isinstance(value, types.ModuleType)
        }
        for name in pin.replaced:
            if to_config_dict(values[name]) != to_config_dict(pinned[name]):
                raise ValueError(
                    f"{self.path}: {name!r} is changed in place after its assignment, so it cannot be set from an "
                    f"override or a child config; set the keys that use it instead"
                )
        return values

    def _parse(self, text: str) -> ast.Module:
        try:
            tree = ast.parse(text, str(self.path))
        except SyntaxError as error:
            raise ValueError(f"{self.path}:{error.lineno}: {error.msg}: {(error.text or '').strip()}") from error
        for node in ast.walk(tree):
            if isinstance(node, ast.With) and any("read_base" in ast.unparse(item) for item in node.items):
                raise ValueError(
                    f"{self.path}:{node.lineno}: 'with read_base()' is mmengine's lazy config form, which detkit does "
                    f"not read; name the bases in _base_ = [...] and types as strings or imported classes"
                )
        return tree

    def _parse_data(self, text: str) -> dict[str, Any]:
        text = _STRING_OR_BASE_VALUE.sub(lambda match: f'"{match[1]}"' if match[1] else match[0], text)
        try:
            if self.path.suffix == ".json":
                data = json.loads(text)
            else:
                import yaml

                data = yaml.safe_load(text)
        except ValueError as error:  # json
            raise ValueError(f"{self.path}: {error}") from error
        except yaml.YAMLError as error:
            raise ValueError(f"{self.path}: {error}") from error
        if not isinstance(data, dict):
            raise ValueError(f"{self.path}: a config is a mapping at its top, got {type(data).__name__}")
        return data

    def _base_paths(self) -> Any:
        """Value of ``_base_``, which is needed before the file can run."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and any(_is_name(target, "_base_") for target in node.targets):
                self.tree.body.remove(node)
                try:
                    return eval(compile(ast.Expression(node.value), str(self.path), "eval"), {})
                except Exception as error:
                    raise ValueError(
                        f"{self.path}:{node.lineno}: _base_ must be a path or a list of paths that needs no other "
                        f"name of the file: {error}"
                    ) from error
        return []

    def _explain(self, error: Exception, base: ConfigDict) -> str:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(self.path)), None)
        at = f"{self.path}:{line}" if line else str(self.path)
        hint = ""
        if isinstance(error, NameError) and error.name in base:
            hint = f"; a base defines it: write _base_.{error.name}"
        return f"{at}: {type(error).__name__}: {error.args[0] if error.args else error}{hint}"


def to_config_dict(value: Any) -> Any:
    """A copy in which every dict is a ConfigDict and no two places share one."""
    if isinstance(value, Mapping):
        result = ConfigDict()
        for key, item in value.items():
            result[key] = to_config_dict(item)
        return result
    if type(value) in (list, tuple):
        return type(value)(to_config_dict(item) for item in value)
    return value


class _BasePlaceholder(ast.NodeTransformer):
    """Bare ``{{_base_.x}}``, which Python reads as a set of a set, becomes the base's value."""

    def visit_Set(self, node: ast.Set) -> ast.AST:
        inner = node.elts[0]
        if len(node.elts) == 1 and isinstance(inner, ast.Set) and len(inner.elts) == 1:
            text = ast.unparse(inner.elts[0])
            if text.startswith("_base_."):
                call = ast.Call(ast.Name("__base_value__", ast.Load()), [ast.Constant(text[len("_base_.") :])], [])
                return ast.copy_location(call, node)
        return self.generic_visit(node)


class _Pin(ast.NodeTransformer):
    """Puts values from outside in the place of what a file assigns to its variables."""

    def __init__(self, pinned: Mapping[str, Any], path: Path) -> None:
        self.pinned = pinned
        self.path = path
        self.replaced: set[str] = set()

    def visit_Assign(self, node: ast.Assign) -> Any:
        names = {target.id for target in node.targets if isinstance(target, ast.Name)} & self.pinned.keys()
        rest = [target for target in node.targets if not (isinstance(target, ast.Name) and target.id in names)]
        self._refuse(name for target in rest for name in _stored(target))
        pins = [ast.copy_location(self._pin(name), node) for name in sorted(names)]
        return [*pins, ast.copy_location(ast.Assign(rest, node.value), node)] if rest else pins

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if isinstance(node.target, ast.Name) and node.target.id in self.pinned:
            return ast.copy_location(self._pin(node.target.id), node)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        """``x += …`` is a part of what x is; the value from outside is the whole of it."""
        if isinstance(node.target, ast.Name) and node.target.id in self.pinned:
            return ast.copy_location(ast.Pass(), node)
        return node

    def visit_For(self, node: ast.For) -> ast.AST:
        self._refuse(_stored(node.target))
        return self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> ast.AST:
        self._refuse(_stored(node.target))
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node  # its assignments are its own

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return node

    def _pin(self, name: str) -> ast.Assign:
        self.replaced.add(name)
        value = ast.Call(ast.Name("__pinned__", ast.Load()), [ast.Constant(name)], [])
        return ast.Assign([ast.Name(name, ast.Store())], value)

    def _refuse(self, names: Any) -> None:
        for name in names:
            if name in self.pinned:
                raise ValueError(
                    f"{self.path}: {name!r} cannot be set from an override or a child config, because the file sets "
                    f"it other than by 'name = value'; set the keys that use it instead"
                )


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _stored(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}


def _names_read(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and _is_name(node.value, "_base_"):
            names.add(node.attr)
    return names


def _names_bound_by_code(tree: ast.Module) -> set[str]:
    """Names that are no values of the config: imports, functions, classes, loop variables."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.For):
            names |= _stored(node.target)
    return names


def _fill_file_names(text: str, path: Path) -> str:
    for name, value in {
        "fileDirname": path.parent.as_posix(),
        "fileBasename": path.name,
        "fileBasenameNoExtension": path.stem,
        "fileExtname": path.suffix,
    }.items():
        text = re.sub(r"\{\{\s*" + name + r"\s*\}\}", lambda _, value=value: value, text)  # type: ignore[misc]
    return text


def _fill_environment(text: str, path: Path) -> str:
    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = os.environ.get(name) or default
        if not found:
            raise KeyError(f"{path}: the environment variable {name!r} is not set and {match[0]} gives no default")
        return found

    return _ENVIRONMENT.sub(value, text)


def _fill_base_values(value: Any, base: ConfigDict, path: Path) -> Any:
    """Quoted ``{{_base_.x}}``: the base's value, or inside a longer string its text."""
    if isinstance(value, Mapping):
        return {key: _fill_base_values(item, base, path) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_fill_base_values(item, base, path) for item in value)
    if not isinstance(value, str) or "{{" not in value:
        return value
    whole = _BASE_VALUE.fullmatch(value)
    if whole:
        return copy.deepcopy(_base_value(whole[1], base, path))
    return _BASE_VALUE.sub(lambda match: str(_base_value(match[1], base, path)), value)


def _base_value(dotted: str, base: ConfigDict, path: Path) -> Any:
    value: Any = base
    for key in dotted.split("."):
        if not isinstance(value, Mapping) or key not in value:
            known = quoted(nearest(key, list(value))) if isinstance(value, Mapping) else "nothing"
            raise KeyError(f"{path}: the bases have no {key!r} for {{{{_base_.{dotted}}}}}; did you mean {known}?")
        value = value[key]
    return value
