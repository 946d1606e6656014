"""Every registry of detkit, and the one strict ``build`` behind them.

A registry maps the ``type`` of a config dict to a class. All are children of mmengine's registries of
the same purpose (scope ``detkit``), so what mmengine, mmcv and torch register is found too. A class is
registered when a config may name it; nothing else is.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from mmengine import registry as mmengine_registry
from mmengine.registry import DefaultScope, Registry
from mmengine.utils import ManagerMixin

__all__ = [
    "DATASETS",
    "DATA_SAMPLERS",
    "EVALUATOR",
    "FUNCTIONS",
    "HOOKS",
    "LOG_PROCESSORS",
    "LOOPS",
    "METRICS",
    "MODELS",
    "MODEL_WRAPPERS",
    "OPTIMIZERS",
    "OPTIM_WRAPPERS",
    "OPTIM_WRAPPER_CONSTRUCTORS",
    "PARAM_SCHEDULERS",
    "REGISTRIES",
    "RUNNERS",
    "TASK_UTILS",
    "TRANSFORMS",
    "VISBACKENDS",
    "VISUALIZERS",
    "WEIGHT_INITIALIZERS",
    "accepted_arguments",
    "build",
    "building",
    "check_arguments",
    "check_keys",
    "find",
    "nearest",
    "unknown_argument",
    "unknown_type",
    "where",
]


class _Frame(NamedTuple):
    path: str
    cfg: Mapping[str, Any]


_frames: ContextVar[tuple[_Frame, ...]] = ContextVar("detkit_build_frames", default=())


def nearest(name: str, names: Collection[str], count: int = 1) -> list[str]:
    """The ``count`` names most like ``name``, best first, whatever their case."""
    by_lower: dict[str, str] = {}
    for candidate in sorted(names):
        by_lower.setdefault(candidate.lower(), candidate)
    close = difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.0)
    return [by_lower[key] for key in close]


def where() -> str:
    """Config path of the module being built now, such as ``model.bbox_head``; empty outside a build."""
    frames = _frames.get()
    return frames[-1].path if frames else ""


@contextmanager
def building(path: str, cfg: Mapping[str, Any]) -> Iterator[None]:
    """Name the place of ``cfg`` in the whole config, so that errors of what is built below it name theirs."""
    token = _frames.set((*_frames.get(), _Frame(path, cfg)))
    try:
        yield
    finally:
        _frames.reset(token)


def check_keys(given: Mapping[str, Any] | None, allowed: Collection[str], name: str) -> None:
    """Refuse keys that nothing reads in a plain dict argument such as ``train_cfg``.

    Args:
        given: The dict, or None for an empty one.
        allowed: The keys that are read.
        name: Name of the argument, appended to the path of the module being built.

    Raises:
        KeyError: With the path of the first unknown key and the nearest right one.
    """
    for key in given or ():
        if key not in allowed:
            place = ".".join(part for part in (where(), name, str(key)) if part)
            known = ", ".join(sorted(allowed)) or "no keys"
            raise KeyError(f"{place}: unknown key; did you mean {_quoted(nearest(str(key), allowed))}? Known: {known}")


def unknown_type(name: str, registry: Registry, path: str) -> KeyError:
    """The error for a ``type`` that ``registry`` lacks: where, the three nearest names, and who has it instead."""
    names: set[str] = set()
    level: Registry | None = registry
    while level is not None:
        names.update(level.module_dict)
        level = level.parent
    at = f"{path}.type" if path else "type"
    message = f"{at}: {name!r} is not in the registry {_label(registry)}"
    bare = name.rpartition(".")[2]
    owners = [label for label, other in REGISTRIES.items() if other is not registry and _holds(other, bare)]
    if owners:
        message += f"; it is registered in {' and '.join(owners)}"
    close = nearest(bare, names, count=3)
    if close:
        message += f"; did you mean {_quoted(close)}?"
    return KeyError(message + " A class of your own is found once its module is imported (custom_imports)")


def check_arguments(cls: Callable[..., Any], given: Collection[str], path: str, required: bool = True) -> None:
    """Hold argument names against the constructor before it runs.

    A constructor that takes ``**kwargs`` hands them to its base class, so the bases' arguments count
    too; if no base closes the list, anything is accepted.

    Args:
        cls: The class or function to be called.
        given: Names of the arguments it will get.
        path: Config path, for the message.
        required: Whether missing arguments are refused as well.

    Raises:
        TypeError: With the path, the argument, the nearest right one, and where the signature stands.
    """
    accepted, needed, is_open = _signature(cls)
    name = getattr(cls, "__name__", str(cls))
    for argument in given:
        if argument not in accepted and not is_open:
            hint = nearest(argument, accepted)
            suggestion = f"did you mean {_quoted(hint)}?" if hint else "it takes none"
            place = f"{path}.{argument}" if path else argument
            raise TypeError(f"{place}: {name} has no argument {argument!r}; {suggestion} ({_source(cls)})")
    missing = [argument for argument in needed if argument not in given] if required else []
    if missing:
        place = f"{path}: " if path else ""
        hints = [
            f"{argument!r} ({close[0]!r} was given)"
            if (close := [g for g in nearest(argument, set(given) - accepted) if is_open])
            else repr(argument)
            for argument in missing
        ]
        plural = "s" if len(missing) > 1 else ""
        raise TypeError(f"{place}{name} needs the argument{plural} {', '.join(hints)} ({_source(cls)})")


def build(
    cfg: Mapping[str, Any], registry: Registry, default_args: Mapping[str, Any] | None = None, **extra: Any
) -> Any:
    """Build the object that ``cfg`` describes.

    Args:
        cfg: ``type`` (a registered name or a class) and constructor arguments.
        registry: Where a name is looked up first.
        default_args: Arguments used where ``cfg`` does not set them.
        extra: Further defaults, as keyword arguments.

    Raises:
        TypeError: ``cfg`` is no dict, or an argument is unknown or missing.
        KeyError: ``type`` is missing or nobody registered it.
    """
    if not isinstance(cfg, Mapping):
        raise TypeError(f"{where() or _label(registry)}: a config dict with a 'type' was expected, got {cfg!r}")
    path = _path_of(cfg)
    arguments = {**(default_args or {}), **extra, **cfg}
    scope = arguments.pop("_scope_", None)
    if "type" not in arguments:
        raise KeyError(f"{path or _label(registry)}: the key 'type' is missing in {dict(cfg)!r}")
    kind = arguments.pop("type")
    with registry.switch_scope_and_registry(scope) as scoped:
        cls = scoped.get(kind) if isinstance(kind, str) else kind
        if cls is None:
            raise unknown_type(kind, registry, path)
        if not callable(cls):
            raise TypeError(f"{path}.type: a registered name or a class was expected, got {kind!r}")
        check_arguments(cls, arguments, path)
        with building(path, cfg):
            if inspect.isclass(cls) and issubclass(cls, ManagerMixin):
                return cls.get_instance(**arguments)
            return cls(**arguments)


def _build_model(cfg: Any, registry: Registry, default_args: Mapping[str, Any] | None = None, **extra: Any) -> Any:
    if isinstance(cfg, (list, tuple)):
        from mmengine.model import Sequential

        return Sequential(*(build(item, registry, default_args, **extra) for item in cfg))
    return build(cfg, registry, default_args, **extra)


def _path_of(cfg: Mapping[str, Any]) -> str:
    """Path of ``cfg`` below the module being built: found by identity, else by equality, else its type's name."""
    frames = _frames.get()
    if not frames:
        return ""
    parent = frames[-1]
    if parent.cfg is cfg:
        return parent.path
    tests: tuple[Callable[[Mapping[str, Any]], bool], ...] = (
        lambda part: part is cfg,
        lambda part: part == cfg,
        lambda part: bool(part) and all(key in cfg and cfg[key] == value for key, value in part.items()),
    )
    for test in tests:
        for relative, part in _parts(parent.cfg):
            if "type" in part and test(part):
                return f"{parent.path}.{relative}" if parent.path else relative
    kind = cfg.get("type")
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    return f"{parent.path}.<{name}>"


def _parts(cfg: Any, prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every dict inside ``cfg`` with its dotted path."""
    items = cfg.items() if isinstance(cfg, Mapping) else enumerate(cfg) if isinstance(cfg, (list, tuple)) else ()
    for key, value in items:
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield path, value
        yield from _parts(value, f"{path}.")


def _signature(cls: Callable[..., Any]) -> tuple[set[str], list[str], bool]:
    """Accepted argument names, those without a default, and whether any other name is accepted."""
    if not inspect.isclass(cls):
        return _parameters(cls)
    accepted: set[str] = set()
    needed: list[str] = []
    for level in cls.__mro__:
        if "__init__" not in vars(level) or level is object:
            continue
        names, required, is_open = _parameters(level.__init__, skip_self=True)
        needed += [name for name in required if name not in accepted]
        accepted |= names
        if not is_open:
            return accepted, needed, False
    has_constructor = cls.__init__ is not object.__init__
    return accepted, needed, has_constructor


def _parameters(function: Callable[..., Any], skip_self: bool = False) -> tuple[set[str], list[str], bool]:
    try:
        parameters = list(inspect.signature(function).parameters.values())[1 if skip_self else 0 :]
    except ValueError:  # built-in types publish no signature
        return set(), [], True
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    is_open = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return {p.name for p in named}, [p.name for p in named if p.default is p.empty], is_open


def _source(cls: Callable[..., Any]) -> str:
    """File and line of the signature."""
    function = cls.__init__ if inspect.isclass(cls) else cls
    code = getattr(inspect.unwrap(function), "__code__", None)
    name = getattr(cls, "__name__", str(cls))
    return f"{name} at {code.co_filename}:{code.co_firstlineno}" if code else name


def _label(registry: Registry) -> str:
    for label, known in REGISTRIES.items():
        if known is registry:
            return label
    return f"{registry.scope}::{registry.name}"


def _holds(registry: Registry, name: str) -> bool:
    registry.import_from_location()
    return name in registry.module_dict


def _quoted(names: Collection[str]) -> str:
    return " or ".join(repr(name) for name in names) or "nothing"


def _child(name: str, location: str | tuple[str, ...], build_func: Callable[..., Any] = build) -> Registry:
    parent = getattr(mmengine_registry, name)
    locations = [location] if isinstance(location, str) else list(location)
    return Registry(parent.name, build_func=build_func, parent=parent, scope="detkit", locations=locations)


# Detectors, backbones, necks, heads, losses, data preprocessors, layers.
MODELS = _child("MODELS", ("detkit.models", "detkit.losses"), _build_model)
# Assigners, samplers, coders, prior generators, IoU calculators, match costs.
TASK_UTILS = _child("TASK_UTILS", "detkit.task_modules")
# Annotation formats and wrappers around them.
DATASETS = _child("DATASETS", "detkit.datasets")
# Index samplers and batch samplers.
DATA_SAMPLERS = _child("DATA_SAMPLERS", "detkit.datasets")
# Steps of a data pipeline.
TRANSFORMS = _child("TRANSFORMS", "detkit.transforms")
# Metrics, and evaluators that hold several.
METRICS = _child("METRICS", "detkit.evaluation")
EVALUATOR = _child("EVALUATOR", "detkit.evaluation")
# The parts of a run.
HOOKS = _child("HOOKS", "detkit.engine")
LOOPS = _child("LOOPS", "detkit.engine")
OPTIMIZERS = _child("OPTIMIZERS", "detkit.engine", mmengine_registry.OPTIMIZERS.build_func)
OPTIM_WRAPPERS = _child("OPTIM_WRAPPERS", "detkit.engine")
OPTIM_WRAPPER_CONSTRUCTORS = _child("OPTIM_WRAPPER_CONSTRUCTORS", "detkit.engine")
PARAM_SCHEDULERS = _child("PARAM_SCHEDULERS", "detkit.engine", mmengine_registry.PARAM_SCHEDULERS.build_func)
MODEL_WRAPPERS = _child("MODEL_WRAPPERS", "detkit.engine")
WEIGHT_INITIALIZERS = _child("WEIGHT_INITIALIZERS", "detkit.models", mmengine_registry.WEIGHT_INITIALIZERS.build_func)
RUNNERS = _child("RUNNERS", "detkit.engine", mmengine_registry.RUNNERS.build_func)
LOG_PROCESSORS = _child("LOG_PROCESSORS", "detkit.engine")
# Pictures and where they go.
VISUALIZERS = _child("VISUALIZERS", "detkit.visualization")
VISBACKENDS = _child("VISBACKENDS", "detkit.visualization")

REGISTRIES: dict[str, Registry] = {
    name: value for name, value in list(globals().items()) if isinstance(value, Registry)
}
