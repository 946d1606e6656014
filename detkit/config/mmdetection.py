"""MMDetection 3's configs as detkit reads them: what it says by another name, and what it has no use for.

Names and arguments are the same, so little is left to do. All that is left out is told, with the reason.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from detkit.config.schema import RUN_KEYS

__all__ = ["Change", "replaced_module", "translate"]

# What MMDetection 3 itself does not read, left over from 2, and the key that says the same since.
_SINCE_3 = {
    "checkpoint_config": "default_hooks",
    "cudnn_benchmark": "env_cfg",
    "data": "train_dataloader",
    "dist_params": "env_cfg",
    "evaluation": "val_evaluator",
    "fp16": "optim_wrapper",
    "log_config": "default_hooks",
    "lr_config": "param_scheduler",
    "mp_start_method": "env_cfg",
    "opencv_num_threads": "env_cfg",
    "optimizer": "optim_wrapper",
    "optimizer_config": "optim_wrapper",
    "runner": "train_cfg",
    "total_epochs": "train_cfg",
    "workflow": "train_cfg",
}
_HOOKS = {"NumClassCheckHook": "every run holds the heads' num_classes against the classes of its data"}
_TYPES = {"MMSyncBN": ("SyncBN", "mmcv's own implementation computes the same as torch's")}
_ARGUMENTS = {
    name: {"deformable_groups": "deform_groups"}
    for name in ("DCN", "DCNv2", "DeformConv", "DeformConv2dPack", "ModulatedDeformConv2dPack")
}
# Whose `pretrained` is an argument of their own, rather than the old form of init_cfg.
_TAKES_PRETRAINED = ("DetectoRS_ResNet", "DetectoRS_ResNeXt", "TIMMBackbone")
_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
_PACKAGES = ("mmdet", "mmengine", "mmcv")
_SUBPACKAGES = (
    "apis",
    "datasets",
    "engine",
    "evaluation",
    "models",
    "registry",
    "structures",
    "utils",
    "visualization",
)


@dataclass(frozen=True)
class Change:
    """Where a config was changed on the way from MMDetection.

    Attributes:
        place: Config path in the original.
        what: What was done and why.
        left_out: Whether something is left out that the config asks for; else it is only said differently.
    """

    place: str
    what: str
    left_out: bool = True

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def translate(cfg: Mapping[str, Any], read: Collection[str]) -> tuple[dict[str, Any], list[Change]]:
    """A resolved config of MMDetection as one of detkit.

    Args:
        cfg: Merged, with ``default_scope='mmdet'``.
        read: Top-level names that are no keys of a run, and that some file reads. Where there are none it is a resolved
            text, of which numbers may be left out, too; elsewhere one that nothing reads equals others by chance.

    Returns:
        The config, and what was changed. What detkit does not know stays, for the check to find.
    """
    run = {key: value for key, value in cfg.items() if key in RUN_KEYS}
    result: dict[str, Any] = {}
    changes: list[Change] = []
    for key, value in cfg.items():
        if key == "default_scope":
            result[key] = "detkit"
            changes.append(Change(key, "'mmdet' is 'detkit', whose registries hold the same names", left_out=False))
        elif key not in RUN_KEYS and key not in read and _SINCE_3.get(key) in cfg:
            changes.append(Change(key, f"left out: MMDetection 3 does not read it, but {_SINCE_3[key]}"))
        elif _is_left_over(key, value, read) and _stands_in(value, run):
            changes.append(Change(key, "left out: a variable whose value stands where it is used", left_out=False))
        elif key == "custom_imports" and isinstance(value, Mapping):
            _custom_imports(value, result, changes)
        else:
            # What a variable holds stands in the run as well, and is told from there.
            result[key] = _translated(value, key, changes if key in RUN_KEYS else [])
    return result, changes


def replaced_module(name: str) -> bool:
    """Whether an import of this module of MMDetection is met by detkit's own classes: its packages, not what somebody
    put into them.
    """
    parts = name.split(".")
    return parts[0] == "mmdet" and (len(parts) == 1 or parts[1] in _SUBPACKAGES) and parts[-1] in _MODULES


# The packages of MMDetection 3 that register classes.
_MODULES = {
    *("mmdet", *_SUBPACKAGES),
    *("backbones", "data_preprocessors", "dense_heads", "detectors", "layers", "losses", "necks", "roi_heads"),
    *("seg_heads", "task_modules", "test_time_augs", "assigners", "coders", "prior_generators", "samplers"),
    *("transforms", "metrics", "evaluator", "hooks", "optimizers", "runner", "schedulers", "bbox", "mask"),
}


def _custom_imports(value: Mapping[str, Any], result: dict[str, Any], changes: list[Change]) -> None:
    names = value.get("imports") or ()
    names = [names] if isinstance(names, str) else list(names)
    kept = [name for name in names if not replaced_module(str(name))]
    for name in names:
        if name not in kept:
            changes.append(Change("custom_imports", f"{name!r} is left out: detkit has classes of these names"))
    if kept or not names:
        result["custom_imports"] = {**value, "imports": kept or value.get("imports")}


def _translated(value: Any, path: str, changes: list[Change]) -> Any:
    if isinstance(value, Mapping):
        return _translated_dict(dict(value), path, changes)
    if type(value) not in (list, tuple):
        return value
    items = []
    for index, item in enumerate(value):
        place = f"{path}.{index}"
        kind = _bare(item.get("type")) if path == "custom_hooks" and isinstance(item, Mapping) else None
        if kind in _HOOKS:
            changes.append(Change(place, f"{kind} is left out: {_HOOKS[kind]}"))
        else:
            items.append(_translated(item, place, changes))
    return type(value)(items)


def _translated_dict(value: dict[Any, Any], path: str, changes: list[Change]) -> dict[Any, Any]:
    if value.get("_scope_") in _PACKAGES:
        changes.append(Change(f"{path}._scope_", f"{value.pop('_scope_')!r} is the scope of all", left_out=False))
    kind = value.get("type")
    if isinstance(kind, str) and kind.partition(".")[0] in _PACKAGES and "." in kind:
        value["type"] = _bare(kind)
        changes.append(Change(f"{path}.type", f"{kind!r} is {value['type']!r}", left_out=False))
    kind = value.get("type")
    if isinstance(kind, str) and kind in _TYPES:
        value["type"], why = _TYPES[kind]
        changes.append(Change(f"{path}.type", f"{kind!r} is {value['type']!r}: {why}", left_out=False))
    for rule in (_file_client, _pretrained, _loop, _loader):
        for place, what in rule(value, path):
            changes.append(Change(f"{path}.{place}", what, left_out=what.startswith("left out")))
    renamed = _ARGUMENTS.get(str(value.get("type")), {})
    for old in [key for key in value if key in renamed]:
        changes.append(Change(f"{path}.{old}", f"the argument is {renamed[old]!r}", left_out=False))
    return {renamed.get(key, key): _translated(item, f"{path}.{key}", changes) for key, item in value.items()}


def _file_client(value: dict[Any, Any], _path: str) -> Iterator[tuple[str, str]]:
    if "file_client_args" not in value or "type" not in value:
        return
    options = value.pop("file_client_args")
    if not options or options.get("backend") == "disk":
        yield "file_client_args", "left out: files are read from disk without it"
    else:
        value["backend_args"] = options
        yield "file_client_args", "the argument is 'backend_args'"


def _pretrained(value: dict[Any, Any], path: str) -> Iterator[tuple[str, str]]:
    if "pretrained" not in value or not path.endswith("backbone") or value.get("type") in _TAKES_PRETRAINED:
        return
    if value["pretrained"] is None:
        del value["pretrained"]
        yield "pretrained", "left out: None says nothing"
    elif isinstance(value["pretrained"], str) and not value.get("init_cfg"):
        value["init_cfg"] = {"type": "Pretrained", "checkpoint": value.pop("pretrained")}
        yield "pretrained", "the argument is init_cfg=dict(type='Pretrained', checkpoint=...)"


def _loop(value: dict[Any, Any], path: str) -> Iterator[tuple[str, str]]:
    kinds = {"EpochBasedTrainLoop": True, "IterBasedTrainLoop": False}
    if path == "train_cfg" and "by_epoch" in value and kinds.get(str(value.get("type"))) is value["by_epoch"]:
        del value["by_epoch"]
        yield "by_epoch", f"left out: {value['type']} says it"


def _loader(value: dict[Any, Any], path: str) -> Iterator[tuple[str, str]]:
    if path in _LOADERS and value.get("batch_sampler") and value.get("drop_last") is False:
        del value["drop_last"]
        yield "drop_last", "left out: False, and batch_sampler decides that"


def _bare(kind: Any) -> Any:
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind


def _is_left_over(key: str, value: Any, read: Collection[str]) -> bool:
    """Whether a name may be a variable that nothing reads any more."""
    return key not in RUN_KEYS and key not in read and not _like_a_key(key) and not (read and isinstance(value, Real))


def _like_a_key(name: str) -> bool:
    """Whether a name may be a misspelt key of a run, which must not be taken for a variable."""
    return bool(difflib.get_close_matches(name, RUN_KEYS, n=1, cutoff=0.85)) and not name.endswith("_pipeline")


def _stands_in(value: Any, document: Any) -> bool:
    """Whether a value of no content, or one that occurs in ``document``: as a whole, a list of sizes one by one, or a
    text inside a text.
    """
    if value is None or (isinstance(value, (Mapping, list, tuple, str)) and not value) or value == document:
        return True
    below = document.values() if isinstance(document, Mapping) else document
    if isinstance(document, (Mapping, list, tuple)) and any(_stands_in(value, item) for item in below):
        return True
    if isinstance(value, list) and all(isinstance(item, (list, tuple)) for item in value):
        return all(_stands_in(item, document) for item in value)
    return isinstance(value, str) and isinstance(document, str) and value in document
