"""What a run would ignore is refused: by hand, and by mutating every key of every shipped config."""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.utils.data import DataLoader

from detkit import engine
from detkit.config import check, load
from detkit.config.schema import _NMS, RUN, RUN_KEYS, Fields
from detkit.registry import MODELS

ROOT = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(path for path in ROOT.rglob("*.py") if "_base_" not in path.parts)
# Read in both places: what a dataset wraps is a dataset, and its pipeline a pipeline; others mean the same.
SAME_ABOVE = ("backend_args", "data_preprocessor", "dataset", "init_cfg", "pipeline", "test_mode", "train_cfg")
# Every key of a config is changed, which takes seconds: of each kind of model and pipeline one.
MUTATED = (
    "retinanet_r50_fpn_1x_coco",
    "retinanet_r18_fpn_shapes",
    "yolox_tiny_8xb8-300e_coco",
    "centernet_r18-dcnv2_8xb16-crop512-140e_coco",
    "reppoints-moment_r50_fpn-gn_head-gn_1x_coco",
    "fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco",
)


@pytest.fixture
def config() -> dict[str, Any]:
    """A shipped config as a plain dict, without variables."""
    cfg = load(ROOT / "retinanet/retinanet_r50_fpn_1x_coco.py", checked=False)
    return {key: value for key, value in cfg.to_dict().items() if key in RUN_KEYS}


def at(cfg: Any, path: str) -> Any:
    for key in path.split(".") if path else ():
        cfg = cfg[int(key)] if key.isdigit() else cfg[key]
    return cfg


def refusal(cfg: dict[str, Any]) -> str:
    with pytest.raises((KeyError, TypeError, ValueError)) as error:
        check(cfg)
    return str(error.value.args[0])


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        ("", "optm_wrapper", {}, "unknown key 'optm_wrapper'; did you mean 'optim_wrapper'?"),
        ("", "batch_size", 2, "unknown key 'batch_size'; did you mean 'train_dataloader.batch_size'?"),
        ("", "data_root", "x", "unknown key 'data_root'"),
        (
            "model",
            "num_classes",
            3,
            "model.num_classes: RetinaNet has no argument 'num_classes'; did you mean 'model.b",
        ),
        (
            "model.backbone",
            "froze_stages",
            1,
            "model.backbone.froze_stages: ResNet has no argument 'froze_stages'; did",
        ),
        ("model.bbox_head.loss_cls", "gama", 1, "model.bbox_head.loss_cls.gama: FocalLoss has no argument 'gama'; did"),
        ("model.train_cfg", "asigner", {}, "model.train_cfg.asigner: unknown key; did you mean 'assigner'?"),
        ("model.train_cfg.assigner", "pos_thr", 1, "model.train_cfg.assigner.pos_thr: MaxIoUAssigner has no argument"),
        ("model.test_cfg", "score", 1, "model.test_cfg.score: unknown key; did you mean 'score_thr'?"),
        ("model.test_cfg.nms", "iou_thr", 1, "model.test_cfg.nms.iou_thr: unknown key; did you mean 'iou_threshold'?"),
        ("model.neck", "upsample_cfg", {"moed": 1}, "model.neck.upsample_cfg.moed: unknown key; did you mean 'mode'?"),
        (
            "train_dataloader",
            "shuffle",
            True,
            "train_dataloader.shuffle: unknown key; did you mean 'train_dataloader.s",
        ),
        ("train_dataloader", "drop_last", True, "train_dataloader.drop_last: batch_sampler decides that; set train_da"),
        ("train_dataloader.dataset", "filter_cfg", {"min": 1}, "train_dataloader.dataset.filter_cfg.min: unknown key"),
        (
            "train_dataloader.dataset",
            "backend_args",
            {"backnd": 1},
            "train_dataloader.dataset.backend_args: the key 'b",
        ),
        ("train_dataloader.dataset.pipeline.2", "scal", 1, "train_dataloader.dataset.pipeline.2.scal: Resize has no a"),
        ("default_hooks", "loger", {}, "default_hooks.loger: unknown key; did you mean 'logger'?"),
        ("default_hooks.checkpoint", "intervall", 1, "default_hooks.checkpoint.intervall: CheckpointHook has no arg"),
        ("env_cfg", "mp_start_method", 1, "env_cfg.mp_start_method: unknown key; did you mean 'env_cfg.mp_cfg.mp_st"),
        (
            "optim_wrapper",
            "lr",
            1,
            "optim_wrapper.lr: OptimWrapper has no argument 'lr'; did you mean 'optim_wrapper.opti",
        ),
        ("optim_wrapper", "paramwise_cfg", {"nrom_decay_mult": 0}, "optim_wrapper.paramwise_cfg.nrom_decay_mult: unkn"),
        ("optim_wrapper", "paramwise_cfg", {"custom_keys": {"lr_mult": 0}}, "optim_wrapper.paramwise_cfg.custom_keys."),
        ("optim_wrapper", "clip_grad", {"maxnorm": 1}, "optim_wrapper.clip_grad.maxnorm: unknown key; did you mean 'm"),
        ("optim_wrapper", "constructor", "Nope", "optim_wrapper.constructor.type: 'Nope' is not in the registry OPTIM"),
        ("auto_scale_lr", "batch_size", 1, "auto_scale_lr.batch_size: unknown key; did you mean 'base_batch_size'?"),
        ("param_scheduler.0", "beginn", 1, "param_scheduler.0.beginn: LinearLR has no argument 'beginn'; did you mean"),
        ("log_processor", "window", 1, "log_processor.window: LogProcessor has no argument 'window'; did you mean 'w"),
        ("train_cfg", "max_epoch", 1, "train_cfg.max_epoch: EpochBasedTrainLoop has no argument 'max_epoch'; did you"),
        ("val_evaluator", "metrics_", 1, "val_evaluator.metrics_: CocoMetric has no argument 'metrics_'; did you mean"),
        ("visualizer", "vis_backend", [], "visualizer.vis_backend: DetLocalVisualizer has no argument 'vis_backend'"),
        ("", "randomness", {"sed": 1}, "randomness.sed: unknown key; did you mean 'seed'?"),
        (
            "",
            "randomness",
            3,
            "randomness: a dict was expected, with the keys deterministic, diff_rank_seed, seed; got 3",
        ),
        ("", "custom_hooks", [{"type": "EMAHok"}], "custom_hooks.0.type: 'EMAHok' is not in the registry HOOKS; did y"),
        ("", "model", "RetinaNet", "model: a dict with a 'type' was expected, got 'RetinaNet'"),
        (
            "model.bbox_head",
            "loss_bbox",
            {"tpye": "L1Loss"},
            "model.bbox_head.loss_bbox.type: the key is missing; 'tpy",
        ),
        ("model.backbone", "type", "Resnet", "model.backbone.type: 'Resnet' is not in the registry MODELS; did you me"),
        ("model.backbone", "type", "CocoDataset", "model.backbone.type: 'CocoDataset' is not in the registry MODELS; "),
        ("model.backbone", "type", 3, "model.backbone.type: a registered name or a class was expected, got 3"),
        ("model.backbone", "norm_cfg", {"type": "BNN"}, "model.backbone.norm_cfg.type: 'BNN' is not in the registry M"),
        (
            "model",
            "init_cfg",
            {"type": "Pretrained", "checkpoint": "torchvision://resnet50"},
            "model.init_cfg: torchvis",
        ),
        (
            "model.backbone",
            "init_cfg",
            {"type": "Normal", "stdd": 1},
            "model.backbone.init_cfg.stdd: NormalInit has no",
        ),
        ("train_dataloader.dataset", "indices", object(), "train_dataloader.dataset.indices: a config holds literals"),
    ],
)
def test_refusals(config, place, key, value, message):
    check(config)
    at(config, place)[key] = value
    assert refusal(config).startswith(message)


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("", "val_evaluator", [{"type": "CocoMetric", "ann_file": "a"}, {"type": "CocoMetric", "ann_file": "b"}]),
        ("", "val_evaluator", {"metrics": [{"type": "CocoMetric", "ann_file": "a"}]}),
        ("", "train_cfg", {"by_epoch": False, "max_iters": 100, "val_interval": 10}),
        ("", "val_cfg", {"fp16": True}),
        ("", "default_hooks", {"timer": None, "logger": {"type": "LoggerHook", "priority": "LOW"}}),
        ("", "custom_hooks", [{"type": "EMAHook", "momentum": 1e-4, "priority": 49}]),
        ("", "param_scheduler", {"type": "CosineAnnealingLR", "T_max": 3, "convert_to_iter_based": True}),
        ("", "compile", True),
        ("", "expected_results", {"bbox_mAP": {"anything": 0.5}}),
        ("", "env_cfg", {"dist_cfg": {"backend": "gloo", "timeout": 3}}),
        ("optim_wrapper", "paramwise_cfg", {"norm_decay_mult": 0, "custom_keys": {"backbone": {"lr_mult": 0.1}}}),
        ("optim_wrapper", "clip_grad", {"max_norm": 35, "norm_type": 2}),
        ("model.neck", "norm_cfg", {"type": "GN", "num_groups": 32, "requires_grad": True}),
        ("model.neck", "norm_cfg", {"type": nn.BatchNorm2d, "momentum": 0.01}),
        ("model.backbone", "init_cfg", [{"type": "Kaiming", "layer": "Conv2d", "override": {"name": "conv1"}}]),
        ("model", "init_cfg", {"type": "Pretrained", "checkpoint": "work_dirs/run/last.pth"}),
        ("train_dataloader", "batch_sampler", None),
        ("train_dataloader", "collate_fn", {"type": "pseudo_collate"}),
        ("train_dataloader.dataset", "metainfo", {"classes": ("a",), "palette": [(0, 0, 0)]}),
        ("train_dataloader.dataset.pipeline", 2, {"type": "RandomResize", "scale": (9, 9), "keep_ratio": True}),
        (
            "train_dataloader.dataset.pipeline",
            2,
            {
                "type": "RandomChoice",
                "transforms": [[{"type": "RandomFlip", "prob": 1.0}], [{"type": "Pad", "pad_val": 0}]],
            },
        ),
    ],
)
def test_what_a_run_reads_passes(config, place, key, value):
    at(config, place)[key] = value
    check(config)


def test_arguments_that_are_handed_on(config):
    step = {"type": "RandomResize", "scale": (9, 9), "kepe_ratio": True}
    config["train_dataloader"]["dataset"]["pipeline"][2] = step
    assert refusal(config).startswith("train_dataloader.dataset.pipeline.2.kepe_ratio: RandomResize has no argument")


def test_keys_that_a_class_declares(config):
    class Neck(nn.Module):
        mixing_keys = ("alpha", "beta")
        tree_keys = {"leaf": None, "branch": ("twig",)}

        def __init__(self, mixing: dict | float, tree: dict) -> None:
            super().__init__()

    for mixing, tree in (({"alpha": 1}, {"leaf": {"any": 1}, "branch": {"twig": 1}}), (0.5, {})):
        config["model"]["neck"] = {"type": Neck, "mixing": mixing, "tree": tree}
        with pytest.raises(TypeError, match=r"model\.neck\.type: .*<locals>.* cannot be imported by name"):
            check(config)  # nothing but the text is wrong with it
    config["model"]["neck"] = {"type": Neck, "mixing": {"aplha": 1}}
    assert "model.neck.mixing.aplha: unknown key; did you mean 'alpha'?" in refusal(config)
    config["model"]["neck"] = {"type": Neck, "tree": {"branch": {"twgi": 1}}}
    assert "model.neck.tree.branch.twgi: unknown key; did you mean 'twig'?" in refusal(config)


def test_type_of_any_registry_where_the_name_tells_nothing(config):
    class Neck(nn.Module):
        def __init__(self, mine: dict) -> None:
            super().__init__()

    config["model"]["neck"] = {"type": Neck, "mine": {"type": "MaxIoUAssigner", "pos_thr": 0.5}}
    assert "model.neck.mine.pos_thr: MaxIoUAssigner has no argument 'pos_thr'" in refusal(config)
    config["model"]["neck"] = {"type": Neck, "mine": {"type": "MaxIuAssigner"}}
    assert "model.neck.mine.type: 'MaxIuAssigner' is not in the registry MODELS" in refusal(config)


def test_a_users_class_by_decorator(config):
    @MODELS.register_module()
    class TestedNeck(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()

    try:
        config["model"]["neck"] = {"type": "TestedNeck", "width": 3}
        check(config)
        config["model"]["neck"] = {"type": "TestedNeck", "widht": 3}
        assert refusal(config).startswith("model.neck.widht: TestedNeck has no argument 'widht'; did you mean 'width'?")
    finally:
        del MODELS._module_dict["TestedNeck"]


def test_variables(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("root = 'runs/'\nwork_dir = root + 'x'\nforgotten = 1\n")
    with pytest.raises(
        KeyError, match=r"unknown key 'forgotten' in .*a\.py; .*Nothing in the config reads 'forgotten'"
    ):
        load(path)
    path.write_text("root = 'runs/'\nsteps = [dict(n=1)]\nwork_dir = root + str(steps[0]['n'])\n")
    cfg = load(path)
    cfg.root = "elsewhere/"
    changed = "the variable was 'runs/' when the config was loaded and is now 'elsewhere/'"
    with pytest.raises(ValueError, match=f"root: {changed}"):
        check(cfg)
    cfg = load(path)
    cfg.steps[0].n = 2
    with pytest.raises(ValueError, match="steps: the variable was"):
        check(cfg)


def test_dataloader_keys_are_the_engines():
    loader = RUN.keys["train_dataloader"]
    assert isinstance(loader, Fields)
    assert set(loader.keys) == set(engine.data.dataloader.DATALOADER_KEYS)
    own = {"dataset", "sampler", "batch_sampler", "collate_fn", "worker_init_fn", "total_batch_size"}
    assert set(loader.keys) - own <= set(inspect.signature(DataLoader).parameters)


def test_nms_keys_are_those_of_ops():
    assert set(_NMS.keys) == set(importlib.import_module("detkit.ops.nms").NMS_KEYS)


def keys_of(value: Any, parents: tuple = ()) -> Iterator[tuple[tuple, str]]:
    """Every key of every dict, with the dicts and lists above it, outermost first."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in list(items):
        if isinstance(value, dict):
            yield (*parents, value), key
        yield from keys_of(item, (*parents, value))


def transposed(key: str, rng: random.Random) -> str:
    spots = [i for i in range(len(key) - 1) if key[i] != key[i + 1]]
    i = rng.choice(spots)
    return key[:i] + key[i + 1] + key[i] + key[i + 2 :]


@pytest.mark.parametrize("name", MUTATED)
def test_every_mutation_of_a_shipped_config_is_detected(name):
    (path,) = (path for path in SHIPPED if path.stem == name)
    rng = random.Random(0)
    whole = load(path)  # no false alarm
    cfg = whole._cfg_dict.to_dict()
    for name in whole.variables:
        del cfg[name]
    check(cfg)
    mutations, missed, hinted = 0, [], 0
    for parents, key in keys_of(cfg):
        holder = parents[-1]
        above = [parent for parent in parents[:-1] if isinstance(parent, dict)]
        if cfg.get("expected_results") in parents[1:]:
            continue
        value, order = holder[key], list(holder.items())
        typo = transposed(key, rng)
        changes = [(holder, typo)]
        if above and key not in SAME_ABOVE:
            changes.append((above[-1], key))
        for target, name in changes:
            before = list(target.items())
            del holder[key]
            target[name] = value
            mutations += 1
            try:
                check(cfg)
                missed.append((name, key))
            except (KeyError, TypeError, ValueError) as error:
                hinted += key in str(error).replace(typo, "")
            for changed, items in ((target, before), (holder, order)):
                changed.clear()
                changed.update(items)
    check(cfg)
    assert mutations > 100
    assert missed == []
    assert hinted >= 0.95 * mutations


@pytest.mark.parametrize("name", MUTATED)
def test_every_misspelt_override_of_a_shipped_config_is_detected(name):
    (path,) = (path for path in SHIPPED if path.stem == name)
    rng = random.Random(1)
    cfg = load(path, checked=False)
    paths = [".".join(map(str, found)) for found in dotted(cfg._cfg_dict.to_dict())]
    for good in rng.sample(paths, 25):
        head, _, key = good.rpartition(".")
        bad = f"{head}.{transposed(key, rng)}" if head else transposed(key, rng)
        with pytest.raises(KeyError) as error:
            load(path, {bad: 1}, checked=False)
        assert f"did you mean '{good}'?" in error.value.args[0]


def dotted(value: Any, path: tuple = ()) -> Iterator[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in items:
        if isinstance(value, dict) and "expected_results" not in path:
            yield (*path, key)
        yield from dotted(item, (*path, key))
