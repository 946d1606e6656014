"""A dict of the config, and what may stand in it: the rules of the schema, filled in from the classes it names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from detkit import registry
from detkit.config.schema import FREE, RUN, Fields, Free, Part, Rule, rule_of_argument
from detkit.signature import accepted_arguments, nearest, quoted

__all__ = ["Place", "accepted_keys"]

_MARKS = {"type", "_scope_"}


class Place:
    """A dict at its config path.

    Attributes:
        allowed: Names of the keys it may hold; None where any may.
        cls: What is built of it, if anything is.
        problem: Why its type cannot be built; found here, told by the check.
        missing: The type that is the problem, as written; None where it is that there is none.
        typo: A key that is 'type' with its letters in another order.
    """

    def __init__(self, value: Mapping[str, Any], path: str, rule: Rule) -> None:
        self.typo = next((key for key in value if key != "type" and sorted(str(key)) == sorted("type")), None)
        if isinstance(rule, Part) and "type" not in value and rule.untyped is not None and self.typo is None:
            rule = rule.untyped
        self.value, self.path, self.rule = value, path, rule
        self.allowed: set[str] | None = None
        self.cls: Callable[..., Any] | None = None
        self.problem: Exception | None = None
        self.missing: Any = None
        if isinstance(rule, Fields):
            self.allowed = None if rule.keys is None else set(rule.keys)
        elif isinstance(rule, Part):
            self._look_up(rule)

    def rule_of(self, key: str) -> Rule:
        """Rule of the value at ``key``."""
        if isinstance(self.rule, Free):
            return FREE
        if isinstance(self.rule, Fields):
            return (self.rule.keys or {}).get(key) or self.rule.each or rule_of_argument(key, self.rule)
        if key == "paramwise_cfg" and "constructor" in self.value:
            return _declared(_class(self.value["constructor"], ("OPTIM_WRAPPER_CONSTRUCTORS",)), key) or FREE
        if key in self.rule.children:
            return self.rule.children[key]
        declared = _declared(self.cls, key, self.value)
        if declared is None and key in ("train_cfg", "test_cfg") and isinstance(self.value.get("bbox_head"), Mapping):
            # A one-stage detector hands its bags on to its head, which reads them.
            declared = _declared(_class(self.value["bbox_head"].get("type"), ("MODELS",)), key)
        return declared or rule_of_argument(key, self.rule)

    def states(self, rule: Rule) -> bool:
        """Whether ``rule`` is stated for this place, rather than guessed from an argument's name."""
        return isinstance(self.rule, Fields) and any(
            rule is stated for stated in (*(self.rule.keys or {}).values(), self.rule.each)
        )

    def below(self) -> Iterator[tuple[str, Any, Rule]]:
        """Path, value and rule of each value, lists taken apart."""
        for key, value in self.value.items():
            yield from _items(value, f"{self.path}.{key}" if self.path else str(key), self.rule_of(key))

    def homes_of(self, key: str) -> Iterator[str]:
        """Paths one level down at which ``key`` would be right."""
        for path, value, rule in self.below():
            if isinstance(value, Mapping) and key in (Place(value, path, rule).allowed or ()):
                yield f"{path}.{key}"

    def _look_up(self, rule: Part) -> None:
        kind = self.value.get("type", rule.default(self.value) if callable(rule.default) else rule.default)
        at = f"{self.path}.type" if self.path else "type"
        if kind is None:
            if rule.typed or self.typo:
                given = f"; {self.typo!r} is given" if self.typo else ""
                self.problem = KeyError(f"{at}: the key is missing{given}, as what to build of {dict(self.value)!r}")
                self.allowed = {*_MARKS, *rule.extra}
            return
        if not isinstance(kind, str) and not callable(kind):
            self.problem = TypeError(f"{at}: a registered name or a class was expected, got {kind!r}")
            return
        self.cls = _class(kind, rule.registries, rule.only)
        if self.cls is None:
            self.problem, self.missing = _unknown(kind, rule, self.path), kind
            return
        constructor = self.value.get("constructor") if "constructor" in rule.extra else None
        if constructor is not None:
            # What an optimiser wrapper's constructor reads is its own affair.
            if _class(constructor, ("OPTIM_WRAPPER_CONSTRUCTORS",)) is None:
                known = registry.OPTIM_WRAPPER_CONSTRUCTORS
                self.problem = registry.unknown_type(constructor, known, f"{self.path}.constructor")
                self.missing = constructor
            return
        accepted, _, is_open = accepted_arguments(self.cls)
        forwarded = self._forwarded(self.cls) if is_open else set()
        if not is_open or forwarded:
            self.allowed = {*accepted, *forwarded, *rule.extra, *_MARKS}

    def _forwarded(self, cls: Callable[..., Any]) -> set[str]:
        """Arguments that a wrapper hands on: ``resize_kwargs`` are for the class that ``resize_type`` names."""
        parameters = inspect.signature(cls).parameters
        for parameter in parameters.values():
            name = parameter.name.removesuffix("_kwargs") + "_type"
            if parameter.kind is parameter.VAR_KEYWORD and name in parameters:
                inner = _class(self.value.get(name, parameters[name].default), self._registries())
                return accepted_arguments(inner).accepted if inner else set()
        return set()

    def _registries(self) -> tuple[str, ...]:
        return self.rule.registries if isinstance(self.rule, Part) else ()


def accepted_keys(cfg: Mapping[str, Any], keys: Collection[str]) -> set[str]:
    """The keys that the dict at the path ``keys`` of a whole config may hold, as far as they are known."""
    value: Any = cfg
    rule: Rule = RUN
    path = ""
    for key in keys:
        if isinstance(value, Mapping):
            rule = Place(value, path, rule).rule_of(key)
            value = value.get(key)
        elif isinstance(value, (list, tuple)):
            value = value[int(key)]
        path = f"{path}.{key}" if path else key
    if not isinstance(value, Mapping):
        return set()
    return set(Place(value, path, rule).allowed or (("type",) if isinstance(rule, Part) else ()))


def _items(value: Any, path: str, rule: Rule) -> Iterator[tuple[str, Any, Rule]]:
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _items(item, f"{path}.{index}", rule)
    else:
        yield path, value, rule


def _class(kind: Any, registries: tuple[str, ...], only: bool = True) -> Callable[..., Any] | None:
    """What a ``type`` names: in its place's registries, else, where others may serve, in any that has it."""
    if not isinstance(kind, str):
        return kind if callable(kind) else None
    others = () if only else tuple(name for name in registry.REGISTRIES if name not in registries)
    for name in (*registries, *others):
        found = registry.find(kind, registry.REGISTRIES[name])
        if found is not None:
            return found
    return None


def _unknown(kind: str, rule: Part, path: str) -> KeyError:
    if rule.registries:
        return registry.unknown_type(kind, registry.REGISTRIES[rule.registries[0]], path)
    known = {name for each in registry.REGISTRIES.values() for name in each.module_dict}
    return KeyError(f"{path}.type: no registry has {kind!r}; did you mean {quoted(nearest(kind, known, count=3))}?")


def _declared(cls: Callable[..., Any] | None, argument: str, beside: Mapping[str, Any] | None = None) -> Rule | None:
    """What a class tells of a dict argument ``x`` in its attribute ``x_keys``.

    Where that is the name of another argument, the class that is built of it (``beside`` has its config) tells.
    """
    missing = object()
    keys = getattr(cls, f"{argument}_keys", missing)
    return None if keys is missing else _rule_of_names(keys, argument, beside or {})


def _rule_of_names(keys: Any, argument: str, beside: Mapping[str, Any]) -> Rule:
    if keys is None:
        return FREE
    if isinstance(keys, str):
        part = beside.get(keys)
        cls = _class(part.get("type"), ("MODELS",)) if isinstance(part, Mapping) else None
        return _declared(cls, argument) or FREE
    if isinstance(keys, Mapping):
        below = {name: _rule_of_names(names, argument, beside) for name, names in keys.items()}
        return Fields(below, or_value=True)
    return Fields(dict.fromkeys(keys), or_value=True)
