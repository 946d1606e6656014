"""Configs in MMDetection's own style load as they are; what is left out is told, what is unknown stays an error."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from detkit.config import ConfigProblems, dump, examine, load, loads
from detkit.registry import MODELS

RUNTIME = """
default_scope = 'mmdet'
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'))
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
"""

DATA = """
dataset_type = 'CocoDataset'
data_root = 'data/mine/'
backend_args = None
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='mmdet.Resize', scale=(320, 320), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs')]
train_dataloader = dict(
    batch_size=2, num_workers=2, persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type=dataset_type, data_root=data_root, ann_file='train.json', data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32), pipeline=train_pipeline, backend_args=backend_args))
"""

MODEL = """
_base_ = ['data.py', 'runtime.py']
model = dict(
    type='mmdet.SingleStageDetector',
    _scope_='mmdet',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[1., 2., 3.], std=[1., 1., 1.], bgr_to_rgb=True,
                           pad_size_divisor=32),
    backbone=dict(
        type='ResNet', depth=18, norm_cfg=dict(type='MMSyncBN', requires_grad=True),
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=16, num_outs=5),
    bbox_head=dict(
        type='RetinaHead', num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1,
        anchor_generator=dict(type='mmdet.AnchorGenerator', octave_base_scale=4, scales_per_octave=3, ratios=[1.0],
                              strides=[8, 16, 32, 64, 128])),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
        sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5),
                  max_per_img=100))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=1)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001),
    paramwise_cfg=dict(norm_decay_mult=0., custom_keys={'backbone': dict(lr_mult=0.1)}),
    clip_grad=dict(max_norm=35, norm_type=2))
param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500)]
auto_scale_lr = dict(enable=False, base_batch_size=16)
model_wrapper_cfg = dict(type='MMDistributedDataParallel', find_unused_parameters=True)
randomness = dict(seed=1)
tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
custom_hooks = [dict(type='NumClassCheckHook'), dict(type='EMAHook', momentum=0.001)]
custom_imports = dict(imports=['mmdet.models', 'mmdet.datasets.transforms'], allow_failed_imports=False)
load_from = 'https://download.openmmlab.com/x.pth'
"""

READ_BY_CLIENT = """
train_dataloader = dict(dataset=dict(
    pipeline=[dict(type='LoadImageFromFile', file_client_args=dict(backend='BACKEND'))]))
"""


@pytest.fixture
def write(tmp_path):
    """Writes a config of the three files, with further lines at its end; returns its path."""

    def write(more: str = "", name: str = "mine.py", **files: str) -> Path:
        for file, text in {"data": DATA, "runtime": RUNTIME, **files}.items():
            (tmp_path / f"{file}.py").write_text(text)
        (tmp_path / name).write_text(MODEL + more)
        return tmp_path / name

    return write


def test_a_config_of_mmdetection_loads_and_builds(write, caplog):
    with caplog.at_level(logging.WARNING):
        cfg = load(write())
    assert cfg.default_scope == "detkit"
    assert cfg.model.type == "SingleStageDetector"
    assert "_scope_" not in cfg.model
    assert cfg.train_dataloader.dataset.pipeline[2].type == "Resize"
    assert [hook.type for hook in cfg.custom_hooks] == ["EMAHook"]
    assert "custom_imports" not in cfg
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    assert model.bbox_head.retina_cls.out_channels == 9  # 3 scales and 3 classes
    (record,) = caplog.records
    assert record.getMessage().splitlines()[1:] == [
        "  custom_hooks.0: NumClassCheckHook is left out: every run holds the heads' num_classes against the classes "
        "of its data",
        "  custom_imports: 'mmdet.models' is left out: detkit has classes of these names",
        "  custom_imports: 'mmdet.datasets.transforms' is left out: detkit has classes of these names",
    ]
    assert {change.place for change in cfg.changes if not change.left_out} == {
        "default_scope",
        "model._scope_",
        "model.type",
        "model.bbox_head.anchor_generator.type",
        "model.backbone.norm_cfg.type",
        "train_dataloader.dataset.pipeline.2.type",
    }


def test_the_text_that_mmdetection_saves_loads_too(write):
    """Resolved, in one file: nothing reads the variables any more, and a checkpoint holds it as a text."""
    path = write(
        "scales = [(320, 320), (0.5, 1.0)]\ntta_pipeline = [dict(type='RandomResize', scale=s) for s in scales]\n"
    )
    flat = path.with_name("flat.py")
    Config.fromfile(str(path), import_custom_modules=False).dump(str(flat))
    assert "data_root = 'data/mine/'" in flat.read_text()
    expected = dump(load(path))
    assert {**load(flat)} == {**loads(expected)}
    assert {**loads(flat.read_text())} == {**loads(expected)}
    # a value that somebody changes there would be ignored
    text = flat.read_text()
    flat.write_text(text.replace("\ndata_root = 'data/mine/'", "\ndata_root = 'data/other/'"))
    with pytest.raises(KeyError, match=r"unknown key 'data_root' in .*flat\.py.*Nothing in the config reads"):
        load(flat)
    flat.write_text(text + "train_pipeline = [dict(type='PackDetInputs')]\n")  # a step of the data set's
    with pytest.raises(KeyError, match="unknown key 'train_pipeline'"):
        load(flat)


@pytest.mark.parametrize(
    ("more", "place", "expected", "change"),
    [
        (
            "train_dataloader = dict(drop_last=False)",
            "train_dataloader.drop_last",
            None,
            "train_dataloader.drop_last: left out: False, and batch_sampler decides that",
        ),
        (
            "train_cfg = dict(by_epoch=True, type='EpochBasedTrainLoop', max_epochs=3)",
            "train_cfg.by_epoch",
            None,
            "train_cfg.by_epoch: left out: Epo",
        ),
        (
            "cudnn_benchmark = True",
            "cudnn_benchmark",
            None,
            "cudnn_benchmark: left out: MMDetection 3 does not read it, but",
        ),
        (
            READ_BY_CLIENT.replace("BACKEND", "disk"),
            "train_dataloader.dataset.pipeline.0.file_client_args",
            None,
            "train_dataloader.dataset.pipeline.0.file_client_args: left out",
        ),
        (
            READ_BY_CLIENT.replace("BACKEND", "petrel"),
            "train_dataloader.dataset.pipeline.0.backend_args.backend",
            "petrel",
            "train_dataloader.dataset.pipeline.0.file_client_args: the argument is 'backend_args'",
        ),
        (
            "model['backbone'].pop('init_cfg')\nmodel['backbone']['pretrained'] = 'torchvision://resnet18'",
            "model.backbone.init_cfg.checkpoint",
            "torchvision://resnet18",
            "model.backbone.pretrained: the argument is init_cfg",
        ),
        (
            "model['backbone']['pretrained'] = None",
            "model.backbone.pretrained",
            None,
            "model.backbone.pretrained: left out: None",
        ),
        (
            "model['backbone'].update(stage_with_dcn=(True,) * 4, dcn=dict(type='DCNv2', deformable_groups=1))",
            "model.backbone.dcn.deform_groups",
            1,
            "model.backbone.dcn.deformable_groups: the argument is 'deform_groups'",
        ),
        (
            "optim_wrapper['type'] = 'mmengine.optim.OptimWrapper'",
            "optim_wrapper.type",
            "OptimWrapper",
            "optim_wrapper.type: 'mmengine.optim.OptimWrapper' is",
        ),
    ],
)
def test_what_is_said_otherwise_here(write, more, place, expected, change):
    cfg = load(write(more))
    value = cfg
    for key in place.split("."):
        value = value[int(key)] if key.isdigit() else (value or {}).get(key)
    assert value == expected
    assert any(str(each).startswith(change) for each in cfg.changes), cfg.changes


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ("img_norm_cfg = dict(mean=[9])", KeyError, "unknown key 'img_norm_cfg'"),
        ("samples_per_gpu = 2", KeyError, "unknown key 'samples_per_gpu'"),  # a value that others have, too
        ("train_dataloader = dict(drop_last=True)", ValueError, "train_dataloader.drop_last: batch_sampler decides"),
        ("train_cfg['by_epoch'] = False", TypeError, "train_cfg.by_epoch: EpochBasedTrainLoop has no argument"),
        ("custom_hooks = [dict(type='NumClassCheckHok')]", KeyError, "custom_hooks.0.type: 'NumClassCheckHok' is not"),
        (
            "custom_imports = dict(imports=['mmdet.models.necks.my_neck'])",
            ImportError,
            "custom_imports: cannot import 'mmdet.models.necks.my_neck': No module named 'mmdet'",
        ),
    ],
)
def test_what_would_be_ignored_stays_an_error(write, more, error, message):
    with pytest.raises(error) as refusal:
        load(write(more))
    assert message in str(refusal.value.args[0])


def test_a_module_of_ones_own_that_needs_mmdetection(write, tmp_path):
    (tmp_path / "a_neck_for_mmdet.py").write_text("from mmdet.registry import MODELS\n")
    more = "custom_imports = dict(imports=['mmdet', 'a_neck_for_mmdet'])"
    with pytest.raises(ImportError, match=r"cannot import 'a_neck_for_mmdet'.* import from detkit what it imports"):
        load(write(more))
    (tmp_path / "a_neck_for_mmdet.py").write_text("from detkit.registry import MODELS\n")
    cfg = load(write(more))
    assert cfg.custom_imports.imports == ["a_neck_for_mmdet"]
    assert "a_neck_for_mmdet" in sys.modules


def test_bases_of_mmdetection_by_package(tmp_path, monkeypatch):
    (tmp_path / "configs" / "_base_").mkdir(parents=True)
    (tmp_path / "configs" / "retinanet").mkdir()
    (tmp_path / "configs" / "_base_" / "runtime.py").write_text(RUNTIME)
    name = "retinanet/retinanet_r50_fpn_1x_coco.py"
    (tmp_path / "configs" / name).write_text("_base_ = '../_base_/runtime.py'\nwork_dir = 'theirs'\n")
    child = tmp_path / "child.py"
    child.write_text(f"_base_ = 'mmdet::{name}'\nlog_level = 'DEBUG'\n")
    monkeypatch.delenv("DETKIT_MMDET_CONFIGS", raising=False)
    assert load(child, checked=False).model.type == "RetinaNet"  # detkit's own
    monkeypatch.setenv("DETKIT_MMDET_CONFIGS", str(tmp_path / "configs"))
    assert load(child).to_dict().keys() >= {"work_dir", "visualizer"}
    assert "model" not in load(child)
    monkeypatch.setenv("DETKIT_MMDET_CONFIGS", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"DETKIT_MMDET_CONFIGS names no folder: .*nowhere"):
        load(child)
    monkeypatch.setenv("DETKIT_MMDET_CONFIGS", str(tmp_path / "configs"))
    child.write_text("_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_cocoo.py'\n")
    with pytest.raises(FileNotFoundError) as refusal:
        load(child)
    assert repr(str(tmp_path / "configs" / name)) in str(refusal.value)


def test_bases_of_an_installed_mmdetection(tmp_path, monkeypatch):
    monkeypatch.delenv("DETKIT_MMDET_CONFIGS", raising=False)
    child = tmp_path / "child.py"
    child.write_text("_base_ = 'mmdet::swn/a_b_c.py'\n")
    with pytest.raises(FileNotFoundError, match=r"'mmdet::swn/a_b_c\.py' .*no mmdet is installed here.*DETKIT_MMDET"):
        load(child)
    configs = tmp_path / "site" / "mmdet" / ".mim" / "configs"
    (configs / "swn").mkdir(parents=True)
    (configs / "_base_").mkdir()
    (configs.parents[1] / "__init__.py").write_text("raise RuntimeError('configs are read without importing it')")
    (configs / "swn" / "a_b_c.py").write_text("work_dir = 'x'")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert load(child).work_dir == "x"


def test_all_that_stands_against_a_config_is_one_error(write, tmp_path):
    more = """
custom_imports = dict(imports=['not_there_at_all'])
model['type'] = 'FasterRcn'
model['neck'] = [dict(type='FPN', in_channels=[64], out_channels=16, num_outs=5, colour=1), dict(type='FPNN')]
val_dataloader = dict(dataset=dict(type='CocoDatset'), sampler=dict(type='DefaultSampler'))
test_dataloader = val_dataloader
optm_wrapper = dict()
"""
    path = write(more)
    _, problems = examine(path)
    parts = {"module not_there_at_all", "key optm_wrapper", "CocoDatset", "FasterRcn", "FPN(colour)", "FPNN"}
    assert {problem.part for problem in problems} == parts
    assert len(problems) == 7  # the test set lacks what the validation set lacks
    with pytest.raises(ConfigProblems) as error:
        load(path)
    first, *lines = str(error.value).splitlines()
    assert first == "6 things stand against this config:"
    assert sorted(line.strip().split(";")[0].split(" in /")[0] for line in lines) == [
        "custom_imports: cannot import 'not_there_at_all': No module named 'not_there_at_all'",
        "model.neck.0.colour: FPN has no argument 'colour'",
        "model.neck.1.type: 'FPNN' is not in the registry MODELS",
        "model.type: 'FasterRcn' is not in the registry MODELS",
        "unknown key 'optm_wrapper'",
        "val_dataloader.dataset.type, test_dataloader.dataset.type: 'CocoDatset' is not in the registry DATASETS",
    ]
    assert "did you mean 'CocoDataset'" in str(error.value)
