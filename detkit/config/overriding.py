"""Overrides: ``key.path=value`` on the command line, or a mapping of paths to values.

``a.b.c=value`` sets what exists: a key of the config, or one that its place would accept. ``+a.b.c=value`` adds what
does not exist, ``~a.b`` deletes. Whole numbers index lists.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from mmengine.config import ConfigDict

from detkit.config.checking import nearest_key
from detkit.config.files import to_config_dict
from detkit.config.places import accepted_keys
from detkit.signature import nearest

__all__ = ["Edit", "apply_edit", "parse_overrides", "parse_value"]

_NUMBER = re.compile(r"[+-]?(\d+|(\d+\.\d*|\.\d+)([eE][+-]?\d+)?|\d+[eE][+-]?\d+|inf)")
_WORDS = {"true": True, "false": False, "none": None}
_CLOSING = {"[": "]", "(": ")", "{": "}"}


class Edit(NamedTuple):
    """One override.

    Attributes:
        keys: The path, ``('model', 'backbone', 'depth')``.
        value: What to set; None for a deletion.
        sign: ``''`` to set, ``'+'`` to add, ``'~'`` to delete.
    """

    keys: tuple[str, ...]
    value: Any
    sign: str

    @property
    def path(self) -> str:
        return ".".join(self.keys)


def parse_overrides(overrides: Sequence[str] | Mapping[str, Any]) -> list[Edit]:
    """The edits that ``key.path=value`` items, or a mapping of paths to values, ask for.

    Raises:
        ValueError: An item has no ``=``, or its value cannot be read.
    """
    if isinstance(overrides, str):
        overrides = [overrides]
    if isinstance(overrides, Mapping):
        return [_edit(path, value) for path, value in overrides.items()]
    edits = []
    for item in overrides:
        path, separator, text = item.partition("=")
        if not separator and not item.startswith("~"):
            raise ValueError(f"override {item!r}: 'key.path=value' was expected, or '~key.path' to delete")
        edits.append(_edit(path.strip(), parse_value(text) if separator else None))
    return edits


def parse_value(text: str) -> Any:
    """Value of an override as text.

    Numbers, ``True``, ``False`` and ``None`` (in any case), ``[a, b]``, ``(a, b)``, ``{a: 1}`` and the bare list
    ``a,b``, nested at will; anything else is a string, with quotes or without. Quotes keep what is inside as it is.

    Raises:
        ValueError: A bracket or a quote is not closed.
    """
    text = text.strip()
    parts = list(_split(text, ",")) if text else []
    if len(parts) > 1:
        return [parse_value(part) for part in _without_trailing(parts)]
    if text[:1] in _CLOSING:
        return _collection(text)
    if text[:1] in ("'", '"'):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"override value {text!r}: the quote is not closed, or text follows it") from error
    if _NUMBER.fullmatch(text):
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    return _WORDS.get(text.lower(), text)


def apply_edit(cfg: MutableMapping[str, Any], edit: Edit) -> None:
    """Make ``edit`` in ``cfg``, in place.

    Raises:
        KeyError: The path does not exist (or, for ``+``, does already), with the nearest one that does.
        TypeError: The path leads through a value that has no parts.
    """
    if edit.sign == "" and isinstance(edit.value, Mapping) and "_delete_" not in edit.value:
        current = _get(cfg, edit.keys)
        if isinstance(current, Mapping):
            # A dict is merged into a dict, as between config files; each of its keys must exist.
            for key, value in sorted(edit.value.items(), key=lambda item: item[0] != "type"):
                apply_edit(cfg, Edit((*edit.keys, str(key)), value, ""))
            return
    if edit.sign == "" and edit.keys[1:] and edit.keys[-1] == "_delete_":
        if edit.value:
            _set(cfg, edit.keys[:-1], {}, edit)
        return
    value = edit.value
    if isinstance(value, Mapping):
        value = {key: item for key, item in value.items() if key != "_delete_"}
    _set(cfg, edit.keys, to_config_dict(value), edit)


def _edit(path: str, value: Any) -> Edit:
    sign = path[0] if path[:1] in ("+", "~") else ""
    keys = tuple(path[len(sign) :].split("."))
    if not all(keys):
        raise ValueError(f"override {path!r}: a path of names joined by single dots was expected")
    return Edit(keys, value, sign)


def _set(cfg: MutableMapping[str, Any], keys: tuple[str, ...], value: Any, edit: Edit) -> None:
    """Set, add or delete at ``keys``; tuples on the way are replaced, as they cannot be changed."""
    parent = _parent(cfg, keys, edit)
    if isinstance(parent, (list, tuple)):
        items = _edited(parent, keys, value, edit)
        if isinstance(parent, list):
            parent[:] = items
        else:
            _set(cfg, keys[:-1], tuple(items), Edit(keys[:-1], None, ""))
        return
    if not isinstance(parent, MutableMapping):
        raise TypeError(f"override {edit.path!r}: {'.'.join(keys[:-1])} is {parent!r}, which has no parts")
    key = keys[-1]
    if edit.sign == "+":
        if key in parent:
            raise _exists(edit)
    elif key not in parent and (edit.sign == "~" or not _is_accepted(cfg, keys)):
        raise _unknown(cfg, keys, edit)
    if edit.sign == "~":
        del parent[key]
    else:
        parent[key] = value


def _edited(items: Sequence[Any], keys: tuple[str, ...], value: Any, edit: Edit) -> list[Any]:
    result = list(items)
    index = _index(result, keys[-1], edit, ".".join(keys[:-1]))
    if edit.sign == "~":
        del result[index]
    elif index == len(result):
        result.append(value)
    elif edit.sign == "+":
        raise _exists(edit)
    else:
        result[index] = value
    return result


def _parent(cfg: MutableMapping[str, Any], keys: tuple[str, ...], edit: Edit) -> Any:
    """What holds the last key; dicts on the way that the place accepts but the config leaves out are made."""
    parent: Any = cfg
    for depth, key in enumerate(keys[:-1], start=1):
        if isinstance(parent, (list, tuple)):
            parent = parent[_index(parent, key, edit._replace(sign=""), ".".join(keys[: depth - 1]))]
            continue
        if not isinstance(parent, MutableMapping):
            raise TypeError(f"override {edit.path!r}: {'.'.join(keys[: depth - 1])} is {parent!r}, which has no parts")
        if parent.get(key) is None and edit.sign != "~":
            if key not in parent and edit.sign != "+" and not _is_accepted(cfg, keys[:depth]):
                raise _unknown(cfg, keys[:depth], edit)
            parent[key] = ConfigDict()
        elif key not in parent:
            raise _unknown(cfg, keys[:depth], edit)
        parent = parent[key]
    return parent


def _index(items: Sequence[Any], key: str, edit: Edit, place: str) -> int:
    try:
        index = int(key)
    except ValueError:
        raise KeyError(f"override {edit.path!r}: {place} is a list; a position was expected, got {key!r}") from None
    length = len(items)
    if not (-length <= index < length or (edit.sign == "+" and index == length)):
        raise KeyError(
            f"override {edit.path!r}: {place} has {length} items; did you mean {place}.{max(length - 1, 0)!s}? "
            f"(+{place}.{length}=... adds one)"
        )
    return index


def _is_accepted(cfg: Mapping[str, Any], keys: tuple[str, ...]) -> bool:
    """Whether the place knows the key without the config spelling it out. Looks classes up, hence imports torch."""
    return keys[-1] in accepted_keys(cfg, keys[:-1])


def _unknown(cfg: Mapping[str, Any], keys: tuple[str, ...], edit: Edit) -> KeyError:
    bad = ".".join(keys)
    here = accepted_keys(cfg, keys[:-1]) | set(_get(cfg, keys[:-1]) or ())
    elsewhere = nearest(bad, [path for path in _paths(cfg) if path.endswith(f".{keys[-1]}")])
    close = nearest_key(keys[-1], here, elsewhere)
    if close in here:
        close = ".".join((*keys[:-1], close))
    hint = f"; did you mean {close!r}?" if close else ""
    add = "" if edit.sign == "~" else f" To add a key, write +{edit.path}=..."
    return KeyError(f"override {edit.sign}{edit.path}: the config has no {bad!r}{hint}{add}")


def _exists(edit: Edit) -> KeyError:
    return KeyError(f"override '+{edit.path}': it exists already; write {edit.path}=... to set it")


def _get(cfg: Any, keys: tuple[str, ...]) -> Any:
    """The value at ``keys``, or None."""
    for key in keys:
        if isinstance(cfg, Mapping):
            cfg = cfg.get(key)
        elif isinstance(cfg, (list, tuple)) and key.lstrip("-").isdigit() and -len(cfg) <= int(key) < len(cfg):
            cfg = cfg[int(key)]
        else:
            return None
    return cfg


def _paths(value: Any, path: str = "") -> Iterator[str]:
    items = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    )
    for key, item in items:
        below = f"{path}.{key}" if path else str(key)
        yield below
        yield from _paths(item, below)


def _collection(text: str) -> Any:
    """``[...]``, ``(...)`` or ``{...}``."""
    closing = _CLOSING[text[0]]
    if text[-1] != closing:
        raise ValueError(f"override value {text!r}: {text[0]!r} opens, but the text does not end with {closing!r}")
    inner = text[1:-1].strip()
    parts = _without_trailing(list(_split(inner, ","))) if inner else []
    if text[0] != "{":
        items = [parse_value(part) for part in parts]
        return items if text[0] == "[" else tuple(items)
    pairs = [list(_split(part, ":")) for part in parts]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"override value {text!r}: '{{key: value, ...}}' was expected")
    return {parse_value(key): parse_value(value) for key, value in pairs}


def _without_trailing(parts: list[str]) -> list[str]:
    return parts[:-1] if not parts[-1].strip() else parts


def _split(text: str, separator: str) -> Iterator[str]:
    """Split at separators that stand outside brackets and quotes."""
    depth, quote, start = 0, "", 0
    for position, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and text[:position].rstrip()[-1:] in ("", *",:[({"):  # not the one in don't
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == separator and depth == 0:
            yield text[start:position]
            start = position + 1
    if quote or depth:
        raise ValueError(f"override value {text!r}: a bracket or a quote is not closed")
    yield text[start:]
