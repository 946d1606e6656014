"""Every registry of detkit, and the one strict ``build`` behind them.

A registry maps the ``type`` of a config dict to a class. All are children of mmengine's registries of
the same purpose (scope ``detkit``), so what mmengine, mmcv and torch register is found too. A class is
registered when a config may name it; nothing else is.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

from mmengine import registry as mmengine_registry
from mmengine.registry import DefaultScope, Registry
from mmengine.utils import ManagerMixin

from detkit.signature import accepted_arguments, check_arguments, nearest, quoted, unknown_argument

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

# MMDetection's scope names the same classes here.
SCOPES = ("detkit", "mmdet")

# A dotted ``type`` that nobody registered is built only if it derives from one of these: a config may come
# with a downloaded checkpoint, and 'subprocess.Popen' is importable too.
_BUILDABLE = {
    "detkit.engine.schedulers.multipliers.Multiplier",
    "mmcv.transforms.base.BaseTransform",
    "mmengine.evaluator.metric.BaseMetric",
    "mmengine.hooks.hook.Hook",
    "mmengine.optim.scheduler.param_scheduler._ParamScheduler",
    "mmengine.runner.base_loop.BaseLoop",
    "mmengine.visualization.vis_backend.BaseVisBackend",
    "mmengine.visualization.visualizer.Visualizer",
    "torch.nn.modules.module.Module",
    "torch.optim.optimizer.Optimizer",
    "torch.utils.data.dataset.Dataset",
    "torch.utils.data.sampler.Sampler",
}


class _Frame(NamedTuple):
    path: str
    cfg: Mapping[str, Any]


_frames: ContextVar[tuple[_Frame, ...]] = ContextVar("detkit_build_frames", default=())


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


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Put the place in the config before a constructor's complaint that does not name it; its type stays."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if path and len(error.args) == 1 and path not in str(error):
            error.args = (f"{path}: {error}",)
        raise


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
            raise KeyError(f"{place}: unknown key; did you mean {quoted(nearest(str(key), allowed))}? Known: {known}")


def find(name: str, registry: Registry) -> Callable[..., Any] | None:
    """What ``registry`` or its parents hold under ``name``, or None.

    ``name`` may carry a scope (``mmengine.SGD``; ``mmdet.ResNet`` is ours), or be the importable path of a
    registered class or of a module, dataset, hook, metric, transform …
    """
    scope, _, bare = name.rpartition(".")
    level: Registry | None = registry
    while level is not None:
        level.import_from_location()
        if name in level.module_dict:
            return level.module_dict[name]
        if bare in level.module_dict and (scope == level.scope or (level.scope == "detkit" and scope in SCOPES)):
            return level.module_dict[bare]
        level = level.parent
    if not scope:
        return None
    return _of_sibling(scope, bare, registry) or _import_class(name)


def unknown_type(name: str, registry: Registry, path: str) -> KeyError:
    """The error for a ``type`` that ``registry`` lacks: where, the three nearest names, and who has it instead."""
    names: set[str] = set()
    level: Registry | None = registry
    while level is not None:
        names.update(level.module_dict)
        level = level.parent
    at = f"{path}.type" if path else "type"
    message = f"{at}: {name!r} is not in the registry {_label(registry)}"
    scope, _, bare = name.rpartition(".")
    package = scope.partition(".")[0]
    if package and package not in (*SCOPES, *sys.modules) and importlib.util.find_spec(package) is None:
        return KeyError(f"{message}: the package {package!r} is not installed here")
    owners = [label for label, other in REGISTRIES.items() if other is not registry and _holds(other, bare)]
    if owners:
        message += f"; it is registered in {' and '.join(owners)}"
    close = nearest(bare, names, count=3)
    if close:
        message += f"; did you mean {quoted(close)}?"
    else:
        message += "."
    return KeyError(message + " A class of your own is found once its module is imported (custom_imports)")


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
    return _build(cfg, registry, {**(default_args or {}), **extra}, _construct)


def _build(
    cfg: Any, registry: Registry, defaults: Mapping[str, Any], construct: Callable[[Any, dict[str, Any], str], Any]
) -> Any:
    if not isinstance(cfg, Mapping):
        raise TypeError(f"{where() or _label(registry)}: a config dict with a 'type' was expected, got {cfg!r}")
    path = _path_of(cfg)
    arguments = {**defaults, **cfg}
    scope = arguments.pop("_scope_", None)
    if "type" not in arguments:
        close = [key for key in cfg if sorted(key) == sorted("type")]
        hint = f"; {close[0]!r} is given" if close else ""
        raise KeyError(f"{path or _label(registry)}: the key 'type' is missing{hint} in {dict(cfg)!r}")
    kind = arguments.pop("type")
    with _scoped(registry, scope) as scoped:
        cls = find(kind, scoped) if isinstance(kind, str) else kind
        if cls is None:
            raise unknown_type(kind, scoped, path)
        if not callable(cls):
            raise TypeError(f"{path}.type: a registered name or a class was expected, got {kind!r}".lstrip("."))
        with building(path, cfg), _naming(path):
            return construct(cls, arguments, path)


def _construct(cls: Any, arguments: dict[str, Any], path: str) -> Any:
    check_arguments(cls, arguments, path)
    is_global = inspect.isclass(cls) and issubclass(cls, ManagerMixin)
    return cls.get_instance(**arguments) if is_global else cls(**arguments)


def _build_model(cfg: Any, registry: Registry, default_args: Mapping[str, Any] | None = None, **extra: Any) -> Any:
    if isinstance(cfg, (list, tuple)):
        from mmengine.model import Sequential

        return Sequential(*(build(item, registry, default_args, **extra) for item in cfg))
    return build(cfg, registry, default_args, **extra)


def _build_scheduler(cfg: Any, registry: Registry, default_args: Mapping[str, Any] | None = None) -> Any:
    """A parameter scheduler; with ``convert_to_iter_based`` its epochs are counted in iterations."""

    def construct(cls: Any, arguments: dict[str, Any], path: str) -> Any:
        epoch_length = arguments.pop("epoch_length", None)
        convert = arguments.pop("convert_to_iter_based", False)
        # mmengine's LRSchedulerMixin and its like name the parameter themselves.
        named = {"param_name"} & accepted_arguments(cls).accepted
        check_arguments(cls, {*arguments, *named}, path)
        if not convert:
            return cls(**arguments)
        if epoch_length is None or not arguments.get("by_epoch", True):
            raise ValueError(
                f"{path}: convert_to_iter_based needs by_epoch=True and a known epoch length, "
                f"got by_epoch={arguments.get('by_epoch', True)} and epoch_length={epoch_length}"
            )
        return cls.build_iter_from_epoch(epoch_length=epoch_length, **arguments)

    return _build(cfg, registry, default_args or {}, construct)


@contextmanager
def _scoped(registry: Registry, scope: str | None) -> Iterator[Registry]:
    """The registry in which names are looked up: that of ``scope``, or of a project that builds on detkit."""
    foreign = scope is not None and scope not in SCOPES
    with registry.switch_scope_and_registry(scope) if foreign else nullcontext(registry) as scoped:
        current = DefaultScope.get_current_instance()
        if not foreign and current is not None:
            child = registry._search_child(current.scope_name)
            yield registry if child is None else child
        else:
            yield scoped


def _of_sibling(scope: str, bare: str, registry: Registry) -> Callable[..., Any] | None:
    """A class that another project registered under its scope, such as ``mmpretrain.ConvNeXt``."""
    root = registry._get_root_registry()
    if root._search_child(scope) is None:
        try:
            importlib.import_module(f"{scope}.registry")
        except ModuleNotFoundError:  # the dots were a module path
            return None
    sibling = root._search_child(scope)
    return None if sibling is None else find(bare, sibling)


def _import_class(path: str) -> Callable[..., Any] | None:
    """The class at an importable path, where a config may build it."""
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return None
    registered = any(cls is known for registry in REGISTRIES.values() for known in _known(registry))
    derived = inspect.isclass(cls) and any(f"{b.__module__}.{b.__qualname__}" in _BUILDABLE for b in cls.__mro__)
    return cls if registered or derived else None


def _known(registry: Registry) -> list[Any]:
    parent = registry.parent
    return [*registry.module_dict.values(), *(parent.module_dict.values() if parent else ())]


def _path_of(cfg: Mapping[str, Any]) -> str:
    """Path of ``cfg`` below the module being built.

    A constructor may pass on a part of its config as it stands, as a copy, or as a copy with additions; what is
    neither is still known by its type, if only one part has that.
    """
    frames = _frames.get()
    if not frames:
        return ""
    parent = frames[-1]
    if parent.cfg is cfg:
        return parent.path
    kind = cfg.get("type")
    parts = [(path, part) for path, part in _parts(parent.cfg) if part.get("type") == kind]
    tests: tuple[Callable[[Mapping[str, Any]], bool], ...] = (
        lambda part: part is cfg,
        lambda part: part == cfg,
        lambda part: all(key in cfg and cfg[key] == value for key, value in part.items()),
        lambda part: len(parts) == 1,
    )
    for test in tests:
        for relative, part in parts:
            if test(part):
                return f"{parent.path}.{relative}" if parent.path else relative
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    return f"{parent.path}.<{name}>".lstrip(".")


def _parts(cfg: Any, prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every dict with a ``type`` inside ``cfg``, with its dotted path."""
    items = cfg.items() if isinstance(cfg, Mapping) else enumerate(cfg) if isinstance(cfg, (list, tuple)) else ()
    for key, value in items:
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and "type" in value:
            yield path, value
        yield from _parts(value, f"{path}.")


def _label(registry: Registry) -> str:
    for label, known in REGISTRIES.items():
        if known is registry:
            return label
    return f"{registry.scope}::{registry.name}"


def _holds(registry: Registry, name: str) -> bool:
    registry.import_from_location()
    return any(name in level.module_dict for level in (registry, registry.parent) if level is not None)


def _child(name: str, location: str | tuple[str, ...], build_func: Callable[..., Any] = build) -> Registry:
    """Our registry below mmengine's of that name; mmengine's own builds become as strict under our scope.

    mmengine's runner builds through its root registries. Theirs stay as they are for everybody else.
    """
    parent = getattr(mmengine_registry, name)
    locations = [location] if isinstance(location, str) else list(location)
    child = Registry(parent.name, build_func=build_func, parent=parent, scope="detkit", locations=locations)
    loose = parent.build_func

    def build_as_scoped(cfg: Any, *args: Any, registry: Registry, **kwargs: Any) -> Any:
        if registry is parent and _is_ours(cfg):
            return build_func(cfg, *args, registry=child, **kwargs)
        return loose(cfg, *args, registry=registry, **kwargs)

    parent.build_func = build_as_scoped
    return child


def _is_ours(cfg: Any) -> bool:
    """Whether a build from a root registry belongs to detkit: by the scope in force, or from within our builds."""
    scope = cfg.get("_scope_") if isinstance(cfg, Mapping) else None
    current = DefaultScope.get_current_instance()
    if scope is None and current is not None and current.scope_name != "mmengine":
        scope = current.scope_name
    return scope in SCOPES if scope is not None else bool(_frames.get())


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
OPTIMIZERS = _child("OPTIMIZERS", "detkit.engine")
OPTIM_WRAPPERS = _child("OPTIM_WRAPPERS", "detkit.engine")
OPTIM_WRAPPER_CONSTRUCTORS = _child("OPTIM_WRAPPER_CONSTRUCTORS", "detkit.engine")
PARAM_SCHEDULERS = _child("PARAM_SCHEDULERS", "detkit.engine", _build_scheduler)
MODEL_WRAPPERS = _child("MODEL_WRAPPERS", "detkit.engine")
WEIGHT_INITIALIZERS = _child("WEIGHT_INITIALIZERS", "detkit.models")
RUNNERS = _child("RUNNERS", "detkit.engine", mmengine_registry.RUNNERS.build_func)
LOG_PROCESSORS = _child("LOG_PROCESSORS", "detkit.engine")
# Collate functions and functions that prepare a worker.
FUNCTIONS = _child("FUNCTIONS", "detkit.datasets")
# Pictures and where they go.
VISUALIZERS = _child("VISUALIZERS", "detkit.visualization")
VISBACKENDS = _child("VISBACKENDS", "detkit.visualization")

REGISTRIES: dict[str, Registry] = {
    name: value for name, value in list(globals().items()) if isinstance(value, Registry)
}
