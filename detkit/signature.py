"""What a class can be asked for: the arguments of its constructor, with the nearest right name where another is
given, and its methods for a batch or for a single image.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

__all__ = [
    "Arguments",
    "accepted_arguments",
    "check_arguments",
    "nearest",
    "quoted",
    "source",
    "takes_batches",
    "unknown_argument",
]


class Arguments(NamedTuple):
    """Argument names of a constructor.

    Attributes:
        accepted: Names it takes.
        needed: Those without a default, in order.
        is_open: Whether any other name is taken too (``**kwargs`` that no base class closes).
    """

    accepted: set[str]
    needed: list[str]
    is_open: bool


def nearest(name: str, names: Collection[str], count: int = 1) -> list[str]:
    """The ``count`` names most like ``name``, best first, whatever their case."""
    by_lower: dict[str, str] = {}
    for candidate in sorted(names):
        by_lower.setdefault(candidate.lower(), candidate)
    close = difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.0)
    return [by_lower[key] for key in close]


def quoted(names: Collection[str]) -> str:
    """The names as they stand in a question: ``'a' or 'b'``."""
    return " or ".join(repr(name) for name in names) or "nothing"


def accepted_arguments(cls: Callable[..., Any]) -> Arguments:
    """Argument names of a class or function.

    A constructor that takes ``**kwargs`` hands them to its base class, so the bases' arguments count too.
    """
    if not inspect.isclass(cls):
        return _parameters(cls)
    accepted: set[str] = set()
    needed: list[str] = []
    is_open = False
    for level in cls.__mro__:
        if "__init__" not in vars(level) or level is object:
            continue
        names, required, is_open = _parameters(vars(level)["__init__"], skip_self=True)
        needed += [name for name in required if name not in accepted]
        accepted |= names
        if not is_open:
            break
    return Arguments(accepted, needed, is_open)


def check_arguments(cls: Callable[..., Any], given: Collection[str], path: str, required: bool = True) -> None:
    """Hold argument names against the constructor before it runs.

    Args:
        cls: The class or function to be called.
        given: Names of the arguments it will get.
        path: Config path, for the message.
        required: Whether missing arguments are refused as well.

    Raises:
        TypeError: With the path, the argument, the nearest right one, and where the signature stands.
    """
    accepted, needed, is_open = accepted_arguments(cls)
    for argument in given:
        if argument not in accepted and not is_open:
            raise unknown_argument(cls, argument, path)
    missing = [argument for argument in needed if argument not in given] if required else []
    if missing:
        # With **kwargs a misspelt name is taken for an extra one and shows only as the right one missing.
        extra = set(given) - accepted
        hints = [
            f"{argument!r} ({nearest(argument, extra)[0]!r} was given)" if is_open and extra else repr(argument)
            for argument in missing
        ]
        place = f"{path}: " if path else ""
        plural = "s" if len(missing) > 1 else ""
        raise TypeError(f"{place}{_name(cls)} needs the argument{plural} {', '.join(hints)} ({source(cls)})")


def unknown_argument(cls: Callable[..., Any], argument: str, path: str, hint: str = "") -> TypeError:
    """The error for an argument that ``cls`` does not take; ``hint`` is a better place than the nearest name."""
    close = [hint] if hint else nearest(argument, accepted_arguments(cls).accepted)
    suggestion = f"did you mean {quoted(close)}?" if close else "it takes none"
    place = f"{path}.{argument}" if path else argument
    return TypeError(f"{place}: {_name(cls)} has no argument {argument!r}; {suggestion} ({source(cls)})")


def source(cls: Callable[..., Any]) -> str:
    """Name, file and line of the signature."""
    function = cls.__init__ if inspect.isclass(cls) else cls
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{_name(cls)} at {code.co_filename}:{code.co_firstlineno}" if code else _name(cls)


def takes_batches(module: Any, per_image: str, *batched: str) -> bool:
    """Whether to call a module's batched form.

    Whoever overrides only the per-image method of a built-in means it to be called, though the batched one is
    inherited: the method that is defined nearer to the module's own class counts, the batched one of two in one class.

    Args:
        module: Any task module.
        per_image: Name of its method for one image.
        batched: Names of its methods for a batch, that which is called first, then what that is made of.
    """
    for names in (getattr(module, "__dict__", {}), *(cls.__dict__ for cls in type(module).__mro__)):
        if any(name in names for name in batched):
            return True
        if per_image in names:
            return False
    # Neither is in a class: a wrapper that hands attributes on has what it wraps has.
    return hasattr(module, batched[0])


def _name(cls: Callable[..., Any]) -> str:
    return getattr(cls, "__name__", str(cls))


def _parameters(function: Callable[..., Any], skip_self: bool = False) -> Arguments:
    try:
        parameters = list(inspect.signature(function).parameters.values())[1 if skip_self else 0 :]
    except ValueError:  # built-in types publish no signature
        return Arguments(set(), [], True)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    is_open = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return Arguments({p.name for p in named}, [p.name for p in named if p.default is p.empty], is_open)
