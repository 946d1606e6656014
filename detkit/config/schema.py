"""What may stand where in the config of a run.

A rule describes a value: :class:`Fields` a dict of known keys, :class:`Part` a dict that a registry builds. A list is
described by the rule of its items. Rules of nested arguments are found by the argument's name, as names mean the same
everywhere (``assigner``, ``loss_cls``, ``norm_cfg``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = ["FREE", "RUN", "RUN_KEYS", "Fields", "Free", "Part", "Rule", "rule_of_argument"]


@dataclass(frozen=True)
class Free:
    """Not ours to check."""


@dataclass(frozen=True)
class Fields:
    """A dict that is read key by key.

    Attributes:
        keys: The known keys and the rules of their values (None: the rule that goes by the name); None as a whole
            where every name is allowed.
        each: Rule of values whose key has none of its own.
        needs: A key without which the dict says nothing.
        instead: Keys that say nothing where another is set, and that other one.
        or_value: Whether a single value may stand for the dict.
    """

    keys: Mapping[str, Rule | None] | None
    each: Rule | None = None
    needs: str | None = None
    instead: Mapping[str, str] = field(default_factory=dict)
    or_value: bool = False


@dataclass(frozen=True)
class Part:
    """A dict that is built: ``type`` and constructor arguments.

    Attributes:
        registries: Where the type is looked up first, by name; none for a place nobody knows.
        only: Whether other registries are out of the question.
        typed: Whether a dict without a type is refused.
        extra: Keys that are read besides the constructor's arguments.
        children: Rules of arguments that differ from those of :func:`rule_of_argument`.
        default: The type where the dict has none, or a function of the dict that gives it.
        untyped: Rule of a dict without a type, where there is such a form.
    """

    registries: tuple[str, ...] = ()
    only: bool = False
    typed: bool = False
    extra: tuple[str, ...] = ()
    children: Mapping[str, Rule] = field(default_factory=dict)
    default: str | Callable[[Mapping[str, Any]], str | None] | None = None
    untyped: Rule | None = None


Rule: TypeAlias = "Free | Fields | Part"

FREE = Free()


def _fields(*names: str, instead: Mapping[str, str] | None = None, or_value: bool = False, **rules: Rule) -> Fields:
    return Fields({**dict.fromkeys(names), **rules}, instead=instead or {}, or_value=or_value)


def _built(*registries: str, **options: Any) -> Part:
    return Part(registries, **{"only": True, "typed": True, **options})


_METRICS = _built(
    "METRICS",
    "EVALUATOR",
    children={"metrics": _built("METRICS")},
    default=lambda cfg: "Evaluator" if "metrics" in cfg else None,
)
_HOOK = _built("HOOKS", extra=("priority",))
_FUNCTION = _built("FUNCTIONS")
_PIPELINE = _built("TRANSFORMS")
_VIS_BACKENDS = _built("VISBACKENDS")
_SCHEDULER = _built("PARAM_SCHEDULERS", extra=("convert_to_iter_based",))

_DATALOADER_ARGUMENTS = (
    "batch_size",
    "drop_last",
    "multiprocessing_context",
    "num_workers",
    "persistent_workers",
    "pin_memory",
    "pin_memory_device",
    "prefetch_factor",
    "timeout",
    "total_batch_size",
)
_DATALOADER = _fields(
    *_DATALOADER_ARGUMENTS,
    dataset=_built("DATASETS"),
    sampler=_built("DATA_SAMPLERS"),
    batch_sampler=_built("DATA_SAMPLERS"),
    collate_fn=_FUNCTION,
    worker_init_fn=_FUNCTION,
    instead={"drop_last": "batch_sampler"},
)

_PARAMWISE = _fields(
    "bias_lr_mult",
    "bias_decay_mult",
    "bias_rules_on_norms",
    "bypass_duplicate",
    "dcn_offset_lr_mult",
    "dwconv_decay_mult",
    "flat_decay_mult",
    "lr_factor_func",
    "norm_decay_mult",
    "overrides",
    "weight_decay_bias",
    "weight_decay_norm",
    custom_keys=Fields(None, each=_fields("lr_mult", "decay_mult", "lr", "weight_decay", "momentum", "betas", "eps")),
)
_CLIP_GRAD = _fields("type", "scope", "max_norm", "norm_type", "error_if_nonfinite", "foreach", "clip_value")
_OPTIM_WRAPPER = _built(
    "OPTIM_WRAPPERS",
    extra=("optimizer", "constructor", "paramwise_cfg"),
    children={"optimizer": _built("OPTIMIZERS"), "paramwise_cfg": _PARAMWISE, "clip_grad": _CLIP_GRAD},
    default="OptimWrapper",
)


def _train_loop(cfg: Mapping[str, Any]) -> str | None:
    if "by_epoch" not in cfg:
        return None
    return "EpochBasedTrainLoop" if cfg["by_epoch"] else "IterBasedTrainLoop"


# mmengine's Runner.from_cfg and what it reads from its config later, MMDetection's tools, and detkit.
RUN = _fields(
    "activation_checkpointing",
    "default_scope",
    "device",
    "efficient_conv_bn_eval",
    "experiment_name",
    "find_unused_parameters",
    "launcher",
    "load_from",
    "log_level",
    "resume",
    "runner_type",
    "sync_bn",
    "work_dir",
    expected_results=FREE,
    model=_built("MODELS"),
    data_preprocessor=_built("MODELS"),
    model_wrapper_cfg=_built("MODEL_WRAPPERS"),
    tta_model=_built("MODELS", children={"tta_cfg": _fields("nms", "max_per_img")}),
    tta_pipeline=_PIPELINE,
    train_dataloader=_DATALOADER,
    val_dataloader=_DATALOADER,
    test_dataloader=_DATALOADER,
    train_cfg=_built("LOOPS", untyped=_built("LOOPS", default=_train_loop, extra=("by_epoch",))),
    val_cfg=_built("LOOPS", default="ValLoop"),
    test_cfg=_built("LOOPS", default="TestLoop"),
    val_evaluator=_METRICS,
    test_evaluator=_METRICS,
    optim_wrapper=_OPTIM_WRAPPER,
    param_scheduler=_built("PARAM_SCHEDULERS", extra=("convert_to_iter_based",), untyped=Fields(None, _SCHEDULER)),
    auto_scale_lr=_fields("enable", "base_batch_size", "base_accumulative_counts", "scale_schedule"),
    default_hooks=_fields(
        timer=_HOOK,
        logger=_HOOK,
        param_scheduler=_HOOK,
        checkpoint=_HOOK,
        sampler_seed=_HOOK,
        visualization=_HOOK,
        runtime_info=_HOOK,
        preemption=_HOOK,
    ),
    custom_hooks=_HOOK,
    log_processor=_built("LOG_PROCESSORS", default="LogProcessor"),
    visualizer=_built("VISUALIZERS", children={"vis_backends": _VIS_BACKENDS}),
    env_cfg=_fields(
        "cudnn_benchmark",
        "float32_precision",
        "resource_limit",
        mp_cfg=_fields("mp_start_method", "opencv_num_threads"),
        dist_cfg=_fields(
            "backend",
            "init_backend",
            "timeout",
            "port",
            "init_method",
            "world_size",
            "rank",
            "store",
            "group_name",
            "pg_options",
            "device_id",
        ),
    ),
    randomness=_fields("seed", "diff_rank_seed", "deterministic"),
    compile=_fields("target", "disable", "fullgraph", "dynamic", "backend", "mode", "options"),
    custom_imports=_fields("imports", "allow_failed_imports"),
)
assert RUN.keys is not None
RUN_KEYS = frozenset(RUN.keys)

_NMS = _fields(
    "class_agnostic",
    "iou_threshold",
    "max_num",
    "method",
    "min_score",
    "offset",
    "score_threshold",
    "sigma",
    "split_thr",
    "type",
)
_INITIALIZERS = _built(
    "WEIGHT_INITIALIZERS",
    typed=False,
    extra=("override",),
    children={"override": _built("WEIGHT_INITIALIZERS", extra=("name",), untyped=_fields("name"))},
)

_ARGUMENTS: dict[str, Rule] = {
    "act_cfg": _built("MODELS"),
    "backend_args": Fields(None, needs="backend"),
    "conv_cfg": _built("MODELS"),
    "data_preprocessor": _built("MODELS"),
    "dataset": _built("DATASETS"),
    "datasets": _built("DATASETS"),
    "dcn": _built("MODELS", extra=("fallback_on_stride",)),
    "init_cfg": _INITIALIZERS,
    "nms": _NMS,
    "norm_cfg": _built("MODELS", extra=("requires_grad",)),
    "pipeline": _PIPELINE,
    "plugins": _fields("position", "stages", cfg=_built("MODELS", extra=("postfix",))),
    "transforms": _PIPELINE,
    "upsample_cfg": _built("MODELS", typed=False, extra=("scale_factor",)),
}
_PIPELINE_NAME = re.compile(r".*_pipeline")
_TASK_UTIL = re.compile(r"(.*_)?(assigner|sampler|coder|generator|iou_calculator|match_costs?)")
_MODEL = re.compile(r"loss(_.*)?|(.*_)?(backbone|neck|head|extractor)")


def rule_of_argument(name: str, owner: Rule) -> Rule:
    """Rule of a constructor argument by its name; an argument of another name is a part of its owner's kind."""
    if name in _ARGUMENTS:
        return _ARGUMENTS[name]
    if _PIPELINE_NAME.fullmatch(name):
        return _PIPELINE
    if _TASK_UTIL.fullmatch(name):
        return _built("TASK_UTILS", typed=False)
    if _MODEL.fullmatch(name):
        return _built("MODELS", typed=False)
    return Part(owner.registries) if isinstance(owner, Part) else Part()
