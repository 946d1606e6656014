"""Everything in a config that nothing would read is refused, before anything is built."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from detkit.config.places import Place
from detkit.config.printing import dump
from detkit.config.problems import Problem, refuse
from detkit.config.schema import RUN, RUN_KEYS, Fields, Part
from detkit.signature import unknown_argument

__all__ = ["check", "nearest_key", "problems_of"]


def check(cfg: Mapping[str, Any]) -> None:
    """Refuse a config of which a part would be ignored or cannot be built.

    Held against the run: its top-level keys; the names of its parts' types, in the registry that each place belongs
    to; the arguments of their constructors; the keys of plain dicts. A class tells the keys of a dict argument
    ``x`` in a class attribute ``x_keys``: names, or a dict of names and the names below them; None for any; another
    argument's name for what the class built of that tells.

    Args:
        cfg: As :func:`detkit.config.load` gives it. Other mappings are taken to have no variables.

    Raises:
        KeyError: An unknown key or type, or a type missing.
        TypeError: An argument that a constructor does not take, a value that is no dict where one is needed, or one
            that cannot be saved.
        ValueError: A variable that was changed after loading, or keys that exclude each other.
        ConfigProblems: Several of these: all of them, in one message.
    """
    refuse(problems_of(cfg))


def problems_of(cfg: Mapping[str, Any]) -> list[Problem]:
    """All that :func:`check` finds, in the order of the config."""
    top = Place({key: cfg[key] for key in cfg if key in RUN_KEYS}, "", RUN)
    found = [*_check_variables(cfg, top), *_check_below(top)]
    try:
        dump(cfg)
    except TypeError as error:
        found.append(Problem(str(error), error))
    return found


def _check_variables(cfg: Mapping[str, Any], top: Place) -> Iterator[Problem]:
    variables = getattr(cfg, "variables", {})
    origins = getattr(cfg, "origins", {})
    for key in cfg:
        if key in RUN_KEYS:
            continue
        if key not in variables:
            origin = f" in {origins[key]}" if key in origins else ""
            close = nearest_key(key, {*RUN_KEYS, *variables}, top.homes_of(key))
            message = f"unknown key {key!r}{origin}; did you mean {close!r}? Nothing in the config reads {key!r}"
            yield Problem(f"key {key}", KeyError(message))
        elif cfg[key] != variables[key]:
            message = (
                f"{key}: the variable was {variables[key]!r} when the config was loaded and is now {cfg[key]!r}; what "
                f"was computed from it does not follow. Give {key}=... as an override, or set the keys that use it"
            )
            yield Problem(f"variable {key}", ValueError(message))


def nearest_key(key: str, here: Collection[str], elsewhere: Iterable[str] = ()) -> str:
    """The key that was meant: its letters in another order, else its name elsewhere, else the one most like it."""
    reordered = sorted(name for name in here if sorted(name) == sorted(key))
    candidates = (
        *difflib.get_close_matches(key, reordered, n=1, cutoff=0.0),  # of bgr_to_rgb and rgb_to_bgr the right one
        *elsewhere,
        *difflib.get_close_matches(key, here, n=1, cutoff=0.0),
    )
    return candidates[0] if candidates else ""


def _check_below(place: Place) -> Iterator[Problem]:
    for path, value, rule in place.below():
        if isinstance(value, Mapping):
            yield from _check(Place(value, path, rule))
        elif isinstance(rule, Fields) and not rule.or_value and type(value) in (str, int, float):
            keys = ", ".join(sorted(rule.keys or ())) or "names of your own"
            error = TypeError(f"{path}: a dict was expected, with the keys {keys}; got {value!r}")
            yield Problem(f"value of {_named(path)}", error)
        elif isinstance(rule, Part) and rule.only and place.states(rule) and type(value) in (str, int, float):
            error = TypeError(f"{path}: a dict with a 'type' was expected, got {value!r}")
            yield Problem(f"value of {_named(path)}", error)


def _check(place: Place) -> Iterator[Problem]:
    if place.problem is not None:
        kind = place.missing
        yield Problem(kind if isinstance(kind, str) else f"type of {_named(place.path)}", place.problem)
    else:
        for key in place.value:
            if place.allowed is not None and key not in place.allowed:
                owner = getattr(place.cls, "__name__", _named(place.path))
                yield Problem(f"{owner}({key})", _unknown_key(place, key))
    if isinstance(place.rule, Fields):
        yield from _check_fields(place, place.rule)
    yield from _check_pretrained(place)
    yield from _check_below(place)


def _check_fields(place: Place, rule: Fields) -> Iterator[Problem]:
    if rule.needs is not None and place.value and rule.needs not in place.value:
        error = KeyError(f"{place.path}: the key {rule.needs!r} is missing in {dict(place.value)!r}")
        yield Problem(f"{_named(place.path)}({rule.needs})", error)
    for key, other in rule.instead.items():
        if key in place.value and place.value.get(other) is not None:
            message = f"{place.path}.{key}: {other} decides that; set {place.path}.{other}.{key}"
            yield Problem(f"{_named(place.path)}({key})", ValueError(message))


def _check_pretrained(place: Place) -> Iterator[Problem]:
    """A classifier's weights belong to the backbone; the whole detector would find none of its names in them."""
    init_cfg = place.value.get("init_cfg")
    if "backbone" in place.value and isinstance(init_cfg, Mapping):
        checkpoint = str(init_cfg.get("checkpoint", ""))
        if checkpoint.startswith(("torchvision://", "open-mmlab://")):
            message = (
                f"{place.path}.init_cfg: {checkpoint} holds a backbone's weights; "
                f"set {place.path}.backbone.init_cfg instead"
            )
            yield Problem(f"{_named(place.path)}(init_cfg)", ValueError(message))


def _named(path: str) -> str:
    """The last name of a path, without the places in lists."""
    return next((key for key in reversed(path.split(".")) if not key.isdigit()), path)


def _unknown_key(place: Place, key: str) -> Exception:
    allowed = place.allowed or set()
    close = nearest_key(str(key), allowed - {"_scope_"}, place.homes_of(key))
    if place.cls is not None:
        return unknown_argument(place.cls, str(key), place.path, close)
    known = ", ".join(sorted(allowed))
    return KeyError(f"{place.path}.{key}: unknown key; did you mean {close!r}? Known: {known}")
