"""Localization distillation: the head beside MMDetection 3.3.0's values, and the detector that holds a teacher."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.structures import InstanceData
from no_sync import NoSync

from detkit.checkpoints import save_checkpoint_file
from detkit.models import LDHead
from detkit.registry import MODELS
from detkit.structures import DetDataSample

HEAD = {
    "num_classes": 3,
    "in_channels": 8,
    "stacked_convs": 1,
    "feat_channels": 8,
    "norm_cfg": {"type": "GN", "num_groups": 2},
    "reg_max": 8,
    "anchor_generator": {
        "type": "AnchorGenerator",
        "ratios": [1.0],
        "octave_base_scale": 4,
        "scales_per_octave": 1,
        "strides": [8, 16],
    },
}
ATSS = {"assigner": {"type": "ATSSAssigner", "topk": 4}, "allowed_border": -1, "pos_weight": -1, "debug": False}
BACKBONE = {
    "type": "ResNet",
    "depth": 18,
    "base_channels": 4,
    "num_stages": 3,
    "strides": (1, 2, 2),
    "dilations": (1, 1, 1),
    "out_indices": (1, 2),
    "norm_eval": False,
}
NECK = {"type": "FPN", "in_channels": [8, 16], "out_channels": 8, "num_outs": 2}
TEACHER = {"type": "GFL", "backbone": BACKBONE, "neck": NECK, "bbox_head": {"type": "GFLHead", **HEAD}}


def samples(*counts):
    made = []
    for count in counts:
        made.append(DetDataSample(metainfo={"img_shape": (64, 64), "pad_shape": (64, 64)}))
        boxes = torch.tensor([[8.0, 8, 40, 40], [20, 24, 60, 60]])[:count]
        made[-1].gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 2])[:count])
    return made


def maps(channels, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, size, size, generator=generator) for size in (8, 4)]


def test_losses_are_mmdetections():
    head = LDHead(**HEAD, train_cfg=ATSS)
    generator = torch.Generator().manual_seed(0)
    head.load_state_dict(
        {
            name: value if "project" in name else torch.randn(value.shape, generator=generator) * 0.3
            for name, value in sorted(head.state_dict().items())
        }
    )
    generator = torch.Generator().manual_seed(1)
    x, soft = ([torch.randn(2, c, size, size, generator=generator) for size in (8, 4)] for c in (8, 36))
    with NoSync():
        losses = head.loss(x, (x, soft), samples(2, 0))
    # of MMDetection's LDHead, with these weights and maps
    expected = {
        "loss_cls": 35.23825454711914,
        "loss_bbox": 1.3955978155136108,
        "loss_dfl": 0.5359534621238708,
        "loss_ld": 0.02001884952187538,
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], torch.tensor(value), rtol=1e-5, atol=0)


def test_nothing_is_learnt_from_the_teacher_without_objects_or_from_itself():
    head = LDHead(**HEAD, train_cfg=ATSS)
    x = maps(8, 2)
    assert head.loss(x, (x, maps(36, 3)), samples(0, 0))["loss_ld"] == 0
    losses = head.loss(x, head(x), samples(2, 1))
    torch.testing.assert_close(losses["loss_ld"], torch.tensor(0.0), rtol=0, atol=1e-6)


def test_what_does_not_fit_is_refused():
    head = LDHead(**HEAD, train_cfg=ATSS)
    with pytest.raises(ValueError, match=r"the teacher's distributions .*20, 8, 8.* are not of 36 channels on levels"):
        head.loss(maps(8, 2), (maps(8, 2), maps(20, 3)), samples(1, 1))
    with pytest.raises(ValueError, match="LDHead: loss_ld: L1Loss learns"):
        LDHead(**HEAD, loss_ld={"type": "L1Loss"})


@pytest.fixture
def student():
    """A function that builds a student, with further arguments."""

    def build(**arguments):
        torch.manual_seed(0)
        return MODELS.build(
            {
                "type": "KnowledgeDistillationSingleStageDetector",
                "backbone": BACKBONE,
                "neck": NECK,
                "bbox_head": {"type": "LDHead", **HEAD},
                "teacher_config": {"model": TEACHER},
                "train_cfg": ATSS,
                **arguments,
            }
        )

    return build


def test_the_teacher_teaches_and_is_no_part_of_the_student(student):
    model = student().train()
    assert not any("teacher" in name for name in [*model.state_dict(), *dict(model.named_modules())])
    before = copy.deepcopy(model.teacher_model.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    losses = model.loss(images, samples(2, 0))
    assert losses["loss_ld"] > 0
    sum(losses.values()).backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
    assert all(weight.grad is None for weight in model.teacher_model.parameters())
    for name, value in model.teacher_model.state_dict().items():  # its norms stand still, too
        assert torch.equal(value, before[name]), name
    assert not model.teacher_model.training
    assert student(eval_teacher=False).train().teacher_model.training
    assert next(model.double().teacher_model.parameters()).dtype == torch.float64


def test_the_teachers_weights_are_read_when_training_starts(student, tmp_path):
    teacher = MODELS.build(TEACHER)
    save_checkpoint_file({"state_dict": teacher.state_dict()}, tmp_path / "teacher.pth")
    model = student(teacher_ckpt=str(tmp_path / "teacher.pth"))
    weight = model.teacher_model.bbox_head.gfl_cls.weight
    assert not torch.equal(weight, teacher.bbox_head.gfl_cls.weight)
    model.eval()
    assert not torch.equal(weight, teacher.bbox_head.gfl_cls.weight)
    model.train()
    assert torch.equal(weight, teacher.bbox_head.gfl_cls.weight)
    assert not weight.requires_grad
    student(teacher_ckpt=str(tmp_path / "nowhere.pth")).eval()  # not needed to predict
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        student(teacher_ckpt=str(tmp_path / "nowhere.pth")).train()


def test_the_teacher_may_be_a_config_file(student, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(f"model = {TEACHER!r}")
    assert type(student(teacher_config=tmp_path / "mine.py").teacher_model).__name__ == "GFL"
    monkeypatch.chdir(tmp_path)  # as MMDetection's say, from its checkout
    with torch.device("meta"):
        model = student(teacher_config="configs/gfl/gfl_r18_fpn_shapes.py")
    assert model.teacher_model.bbox_head.num_classes == 5
    (tmp_path / "mine.py").write_text("work_dir = 'x'")
    with pytest.raises(KeyError, match="teacher_config: the key 'model' is missing"):
        student(teacher_config=tmp_path / "mine.py")
