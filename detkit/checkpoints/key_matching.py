"""Which name in a file belongs to which name in a model."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

__all__ = ["common_prefix", "match_suffixes", "revise_keys", "strip_wrapper"]


def common_prefix(names: Collection[str]) -> str:
    """The longest start that all of ``names`` share."""
    first, last = min(names), max(names)  # whatever these two share, all between them do
    length = next(
        (index for index, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), len(first)
    )
    return first[:length]


def strip_wrapper(state: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the ``module.`` that wrappers such as DDP put before names, if all names have it.

    mmengine's runner drops it from each name by itself, and with its unescaped pattern also ``modules``.
    """
    if state and all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def revise_keys(state: Mapping[str, Any], rules: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Rename by regular expressions.

    Args:
        state: Values by name.
        rules: Pairs of a pattern and its replacement, applied one after the other as by ``re.sub``.

    Raises:
        ValueError: A rule is no such pair, or two names become one.
    """
    compiled = [_compiled(rule) for rule in rules]
    revised: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for old, value in state.items():
        name = old
        for pattern, replacement in compiled:
            name = pattern.sub(replacement, name)
        if name in revised:
            raise ValueError(f"revise_keys: {origin[name]!r} and {old!r} both become {name!r}")
        revised[name], origin[name] = value, old
    return revised


def _compiled(rule: Any) -> tuple[re.Pattern[str], str]:
    if isinstance(rule, str) or len(rule) != 2:
        raise ValueError(f"revise_keys: a pair (pattern, replacement) was expected, got {rule!r}")
    try:
        return re.compile(rule[0]), rule[1]
    except re.error as error:
        raise ValueError(f"revise_keys: {rule[0]!r} is no regular expression: {error}") from error


def match_suffixes(names: Collection[str], given: Collection[str]) -> dict[str, str]:
    """The longest name in ``given`` with which each of ``names`` ends, at a dot.

    As Detectron2's heuristic, which compares each pair of names; this looks up each ending once, in time that grows
    with the length of the names.

    Args:
        names: The model's.
        given: The file's.

    Returns:
        Name of the model -> name in the file, for those that have one; a name of the file may occur several times.
    """
    known = set(given)
    matched = {}
    for name in names:
        ending = name
        while ending not in known and "." in ending:
            ending = ending.partition(".")[2]
        if ending in known:
            matched[name] = ending
    return matched
