"""From a config file to the config of a run: bases, variables, overrides, imports, checks.

A *variable* is a top-level name that is no key of a run, such as ``data_root``. What is computed from a variable
follows it, whether a child config or an override sets it: the files that use it are evaluated with its new value.
Only configs that say ``default_scope='mmdet'`` keep MMDetection's rule, by which a child's value comes too late for
what a base has already computed; a warning then names what kept the old value.
"""

from __future__ import annotations

import copy
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config as MMEngineConfig
from mmengine.config import ConfigDict

from detkit.config.checking import problems_of
from detkit.config.document import Config
from detkit.config.files import SourceFile, to_config_dict
from detkit.config.locating import locate
from detkit.config.mmdetection import Change, translate
from detkit.config.overriding import apply_edit, parse_overrides
from detkit.config.printing import parse
from detkit.config.problems import Problem, refuse
from detkit.config.schema import RUN_KEYS

__all__ = ["examine", "load", "loads"]

logger = logging.getLogger(__name__)


def load(path: str | Path, overrides: Sequence[str] | Mapping[str, Any] | None = None, checked: bool = True) -> Config:
    """Load a config file.

    Args:
        path: A ``.py``, ``.json`` or ``.yaml`` file, or ``detkit::retinanet/…`` for a config that detkit ships.
        overrides: ``key.path=value`` items (see :func:`detkit.config.overriding.parse_overrides`), or a mapping of
            paths to values.
        checked: Whether to refuse what no part of the run would read (:func:`detkit.config.check`). That looks
            classes up, so it imports torch; without, loading takes milliseconds.

    Raises:
        FileNotFoundError: The file or one of its bases is missing.
        ImportError: ``custom_imports`` names a module that cannot be imported.
        KeyError: An unknown key, type or path.
        TypeError: An argument that the constructor of its ``type`` does not take.
        ValueError: The file cannot be read or evaluated.
        ConfigProblems: Several of these stand against the config: all of them, in one message.
    """
    cfg, problems = examine(path, overrides, checked)
    refuse(problems)
    return cfg


def examine(
    path: str | Path, overrides: Sequence[str] | Mapping[str, Any] | None = None, checked: bool = True
) -> tuple[Config, list[Problem]]:
    """As :func:`load`, but what stands against the config is returned: imports, overrides, and what the check finds.

    Raises:
        FileNotFoundError: The file or one of its bases is missing.
        KeyError: An override names an unknown variable, or two bases set the same key.
        TypeError: A dict is merged into something else.
        ValueError: The file cannot be read or evaluated.
    """
    file = locate(path)
    edits = parse_overrides(overrides or ())
    computed_once = _Evaluation(follow=False)
    result = computed_once.run(file)
    follow = result.values.get("default_scope") != "mmdet"
    if computed_once.moved:
        if follow:
            result = _Evaluation().run(file)
        else:
            _warn_of_computed(file, computed_once.moved, result)
    pins: dict[str, Any] = {}
    # Whole variables first, so that a part of one that is computed from another is set last.
    for edit in sorted(edits, key=lambda edit: len(edit.keys)):
        name = edit.keys[0]
        if name in result.variables:
            values = ConfigDict({name: to_config_dict(result.values[name])})
            apply_edit(values, edit)
            pins[name] = values[name]
            result = _Evaluation(follow).run(file, pins)
    cfg = _finish(result, file)
    rest = [edit for edit in edits if edit.keys[0] not in pins]
    for edit in rest:
        if edit.keys[0] == "custom_imports":
            apply_edit(cfg._cfg_dict, edit)
    problems = import_custom(cfg, file.parent)
    # What is imported may be what accepts a key.
    for edit in rest:
        if edit.keys[0] != "custom_imports":
            try:
                apply_edit(cfg._cfg_dict, edit)
            except (KeyError, TypeError, ValueError) as error:
                problems.append(Problem(f"override {'.'.join(map(str, edit.keys))}", error))
    return cfg, problems + (problems_of(cfg) if checked else [])


def loads(text: str) -> Config:
    """The config that :func:`detkit.config.dump` printed. Nothing in the text is run; only literals are read.

    Raises:
        ImportError: ``custom_imports`` names a module that cannot be imported.
        ValueError: The text holds more than assignments of literals; with the line.
    """
    values = parse(text)
    changes: list[Change] = []
    if values.get("default_scope") == "mmdet":
        values, changes = translate(values, ())
    cfg = Config(to_config_dict(values), cfg_text=text, changes=changes)
    refuse(import_custom(cfg))
    return cfg


def import_custom(cfg: Mapping[str, Any], folder: Path | None = None) -> list[Problem]:
    """Import the modules that ``custom_imports`` names; the config's folder and the current one are searched last.

    Returns:
        A problem for each module that cannot be imported, unless ``allow_failed_imports`` is set.

    Raises:
        TypeError: ``custom_imports`` is not of that form.
    """
    wanted = cfg.get("custom_imports")
    if not wanted:
        return []
    if not isinstance(wanted, Mapping) or "imports" not in wanted:
        raise TypeError(f"custom_imports: dict(imports=['module', ...]) was expected, got {wanted!r}")
    names = [wanted["imports"]] if isinstance(wanted["imports"], str) else list(wanted["imports"])
    for place in (str(folder or os.getcwd()), os.getcwd()):
        if place not in sys.path:
            sys.path.append(place)  # behind the installed packages, which a folder must not hide
    problems = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            message = f"custom_imports: cannot import {name!r}: {error}; searched {folder or ''} and the Python path"
            if getattr(error, "name", None) == "mmdet" and name.partition(".")[0] != "mmdet":
                message += (
                    "; to use the module here, import from detkit what it imports from mmdet "
                    "(from detkit.registry import MODELS)"
                )
            failed = ImportError(message)
            failed.__cause__ = error
            if not wanted.get("allow_failed_imports", False):
                problems.append(Problem(f"module {name}", failed))
            else:
                logger.warning(message)
    return problems


@dataclass
class _Result:
    """What a file and its bases give.

    Attributes:
        values: The merged values.
        origins: For each top-level key, the last file that sets it.
        read: Names that some file reads.
    """

    values: ConfigDict = field(default_factory=ConfigDict)
    origins: dict[str, Path] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    @property
    def variables(self) -> set[str]:
        """Names that are no keys of a run, and that something reads."""
        return (self.values.keys() & self.read) - RUN_KEYS


class _Evaluation:
    """Evaluates a chain of files, each one parsed once.

    Attributes:
        follow: Whether bases are evaluated again with the variables that a child sets.
        moved: Those variables.
    """

    def __init__(self, follow: bool = True) -> None:
        self.follow = follow
        self.moved: set[str] = set()
        self._files: dict[Path, SourceFile] = {}

    def run(self, path: Path, pins: Mapping[str, Any] | None = None, inside: tuple[Path, ...] = ()) -> _Result:
        """Values of ``path`` and its bases, with the variables in ``pins`` set from outside."""
        if path in inside:
            raise ValueError(f"{path} is its own base: {' -> '.join(str(file) for file in (*inside, path))}")
        pins = pins or {}
        source = self._files.get(path) or self._files.setdefault(path, SourceFile(path))
        bases = self._bases(source, pins, inside)
        # The file may edit them in place, and is then run again.
        before = copy.deepcopy({name: bases.values[name] for name in bases.variables})
        own = source.evaluate(bases.values, pins)
        moved = {name for name in before if name in own and name not in pins and own[name] != before[name]}
        self.moved |= moved
        if moved and self.follow:
            merged = _merge(own, before, path)
            bases = self._bases(source, {**pins, **{name: merged[name] for name in moved}}, inside)
            # In the file itself _base_.x stays the base's own value: classes = _base_.classes + ('x',) adds once.
            for name in moved:
                bases.values[name] = before[name]
            own = source.evaluate(bases.values, pins)
        if "_deprecation_" in own:
            logger.warning("%s is deprecated: %s", path, own.pop("_deprecation_"))
        return _Result(
            _merge(own, bases.values, path),
            {**bases.origins, **dict.fromkeys(own, path)},
            bases.read | source.read,
        )

    def _bases(self, source: SourceFile, pins: Mapping[str, Any], inside: tuple[Path, ...]) -> _Result:
        result = _Result()
        for written in source.bases:
            base = self.run(locate(written, source.path), pins, (*inside, source.path))
            for key in base.values.keys() & result.values.keys():
                raise KeyError(
                    f"{source.path}: two of its bases set {key!r}: {result.origins[key]} and {base.origins[key]}; "
                    f"keep it in one of them"
                )
            result.values.update(base.values)
            result.origins.update(base.origins)
            result.read |= base.read
        return result


def _merge(own: Mapping[str, Any], base: Mapping[str, Any], path: Path) -> ConfigDict:
    try:
        return MMEngineConfig._merge_a_into_b(own, ConfigDict(base))
    except TypeError as error:
        raise TypeError(f"{path}: {error}") from error


def _finish(result: _Result, file: Path) -> Config:
    values = _without_delete_marks(result.values)
    changes: list[Change] = []
    if values.get("default_scope") == "mmdet":
        values, changes = translate(values, result.variables)
        left_out = [str(change) for change in changes if change.left_out]
        if left_out:
            logger.warning("%s, of MMDetection's scope, is read without\n  %s", file, "\n  ".join(left_out))
    # Without any scope mmengine would look in its own registries only.
    values.setdefault("default_scope", "detkit")
    variables = result.variables & values.keys()
    return Config(
        to_config_dict(values), filename=str(file), variables=variables, origins=result.origins, changes=changes
    )


def _without_delete_marks(value: Any) -> Any:
    """A ``_delete_`` with nothing to delete says nothing."""
    if isinstance(value, Mapping):
        return {key: _without_delete_marks(item) for key, item in value.items() if key != "_delete_"}
    if type(value) in (list, tuple):
        return type(value)(_without_delete_marks(item) for item in value)
    return value


def _warn_of_computed(file: Path, moved: set[str], result: _Result) -> None:
    """Name what does not follow the variables that a child sets, in a config that is read as MMDetection reads it."""
    names = ", ".join(sorted(moved))
    try:
        followed = _Evaluation().run(file)
    except ValueError as error:
        logger.warning("%s sets %s, and what a base computed from it before stays as it was (%s)", file, names, error)
        return
    paths = sorted(set(_differences(result.values, followed.values)))
    if paths:
        logger.warning(
            "%s sets %s, but with default_scope='mmdet' these keep what a base computed before: %s",
            file,
            names,
            ", ".join(paths),
        )


def _differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Paths at which two configs differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in {**a, **b}:
            yield from _differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from _differences(left, right, f"{path}.{index}")
    elif a != b:
        yield path
