"""Targets and losses of FCOS: by hand, against MMDetection 3.3.0, batches, pieces, no waiting."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from no_sync import NoSync
from reference import arguments, assert_same, cases

from detkit.losses import CrossEntropyLoss, FocalLoss, GIoULoss
from detkit.models.dense_heads.fcos_loss import centerness, fcos_losses, fcos_targets
from detkit.registry import MODELS
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import MlvlPointGenerator
from detkit.task_modules.assigners import chunks

RANGES = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))
REFERENCE = [
    case
    for name in ("FCOSHead", "FCOSHeadPlus")
    for case in cases(f"dense_heads/{name}")
    if case.values[0]["method"] == "loss"
]


def forward(case, features):
    """Logits, distances and centerness of the reference's head, written out."""
    weights, config = {name: value.float() for name, value in case["state_dict"].items()}, case["config"]
    groups = config["norm_cfg"]["num_groups"]

    def convolve(x, name):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def tower(x, name):
        for index in range(config["stacked_convs"]):
            prefix = f"{name}.{index}"
            bias = weights.get(f"{prefix}.conv.bias")
            x = F.conv2d(x, weights[f"{prefix}.conv.weight"], bias, padding=1)
            x = F.group_norm(x, groups, weights[f"{prefix}.gn.weight"], weights[f"{prefix}.gn.bias"])
            x = F.relu(x)
        return x

    rows = []
    for level, feature in enumerate(features):
        cls_feature, reg_feature = tower(feature, "cls_convs"), tower(feature, "reg_convs")
        distance = convolve(reg_feature, "conv_reg") * weights[f"scales.{level}.scale"]
        distance = distance.clamp(min=0) if config["norm_on_bbox"] else distance.exp()
        central = convolve(reg_feature if config["centerness_on_reg"] else cls_feature, "conv_centerness")
        maps = (convolve(cls_feature, "conv_cls"), distance, central)
        rows.append([m.flatten(2).transpose(1, 2) for m in maps])
    return [torch.cat(column, dim=1) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("case", REFERENCE)
def test_reference(case):
    config, inputs = case["config"], arguments(case["inputs"])
    generator = MlvlPointGenerator(config["strides"])
    levels = generator.grid_priors([tuple(x.shape[-2:]) for x in inputs["x"]], with_stride=True)
    priors = torch.cat(levels)
    ranges = torch.cat([torch.tensor([r]).expand(len(p), 2) for r, p in zip(RANGES, levels, strict=True)])
    logits, distances, central = forward(case, inputs["x"])
    targets = fcos_targets(
        priors[:, :2],
        ranges,
        GroundTruth.from_samples(inputs["batch_data_samples"]),
        config["num_classes"],
        priors[:, 2],
        config.get("center_sample_radius") if config["center_sampling"] else None,
    )
    losses = fcos_losses(
        logits,
        distances,
        central.squeeze(2),
        targets,
        *(MODELS.build(config[name]) for name in ("loss_cls", "loss_bbox", "loss_centerness")),
        strides=priors[:, 2] if config["norm_on_bbox"] else None,
    )
    assert_same(losses, case["outputs"]["losses"], rtol=1e-3, atol=1e-4)


def scene():
    x, y = torch.meshgrid(torch.arange(4, 64, 8.0), torch.arange(4, 64, 8.0), indexing="xy")
    points = torch.stack([x, y], dim=-1).view(-1, 2)
    images = [
        InstanceData(bboxes=torch.tensor([[0.0, 0, 40, 40], [0, 0, 24, 24]]), labels=torch.tensor([0, 1])),
        InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0)),
        InstanceData(bboxes=torch.tensor([[8.0, 8, 60, 30]]), labels=torch.tensor([2])),
    ]
    return points, torch.tensor([[-1.0, 64.0]]).expand(64, 2), GroundTruth.from_instances(images)


def test_by_hand():
    points, ranges, truth = scene()
    targets = fcos_targets(points, ranges, truth, 3)
    labels = targets.labels.view(3, 8, 8)
    # Of the nested objects the smaller has the first 3 x 3 cells, the larger the rest of its 5 x 5.
    assert labels[0, :3, :3].eq(1).all()
    assert labels[0, :5, :5].eq(0).sum() == 16
    assert labels[0].eq(3).sum() == 64 - 25
    assert labels[1].eq(3).all()
    # The point (20, 12) in [0, 0, 24, 24]
    assert targets.distances.view(3, 8, 8, 4)[0, 1, 2].tolist() == [20, 12, 4, 12]
    torch.testing.assert_close(centerness(torch.tensor([20.0, 12, 4, 12])), torch.tensor((4 / 20) ** 0.5))


def test_the_range_is_of_the_farthest_side():
    points, _, truth = scene()
    targets = fcos_targets(points, torch.tensor([[-1.0, 30.0]]).expand(64, 2), truth, 3)
    # In 40 x 40, from (4, 4) the farthest side is 36 away; from (20, 20) it is 20.
    labels = targets.labels.view(3, 8, 8)
    assert labels[0, 4, 4] == 3
    assert labels[0, 3, 3] == 0


def test_the_centre_only():
    points, ranges, truth = scene()
    targets = fcos_targets(points, ranges, truth, 3, torch.full((64,), 8.0), 0.6)
    # Within 4.8 pixels of (20, 20), the larger's centre, is one point; and one within 4.8 of (12, 12).
    assert targets.positive[0].sum() == 2
    assert targets.labels.view(3, 8, 8)[0, 2, 2] == 0
    assert targets.labels.view(3, 8, 8)[0, 1, 1] == 1


def test_pieces_and_batches_change_nothing():
    points, ranges, truth = scene()
    whole = fcos_targets(points, ranges, truth, 3)
    with mock.patch.object(chunks, "CPU_CHUNK", 1):
        pieces = fcos_targets(points, ranges, truth, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))
    for index in range(3):
        keep = truth.valid[index]
        alone = GroundTruth.from_instances(
            [InstanceData(bboxes=truth.boxes[index][keep], labels=truth.labels[index][keep])]
        )
        single = fcos_targets(points, ranges, alone, 3)
        assert all(torch.equal(a[index], b[0]) for a, b in zip(whole, single, strict=True))


@pytest.mark.parametrize("infinite", [False, True])
def test_losses_wait_for_nothing_and_stay_finite(infinite):
    points, ranges, truth = scene()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 64, 3, generator=generator).requires_grad_()
    raw = torch.randn(3, 64, 4, generator=generator)
    if infinite:
        raw[1] = 200.0  # exp overflows; the image has no objects
    raw.requires_grad_()
    central = torch.randn(3, 64, generator=generator).requires_grad_()
    with NoSync():
        targets = fcos_targets(points, ranges, truth, 3)
        parts = FocalLoss(), GIoULoss(), CrossEntropyLoss(use_sigmoid=True)
        losses = fcos_losses(logits, raw.exp(), central, targets, *parts)
        sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert torch.isfinite(central.grad).all()
    if not infinite:
        assert torch.isfinite(raw.grad).all()
        assert raw.grad[1].abs().sum() == 0


def test_a_radius_in_strides_needs_them():
    points, ranges, truth = scene()
    with pytest.raises(ValueError, match=r"center_sample_radius=1.5 needs strides"):
        fcos_targets(points, ranges, truth, 3, center_sample_radius=1.5)


def test_a_side_at_the_end_of_the_range_belongs_to_it():
    points, _, truth = scene()
    # From (20, 20), the farthest side of 24 x 24 is 20 away.
    for ends in ((-1.0, 20.0), (20.0, 64.0)):
        targets = fcos_targets(points, torch.tensor([ends]).expand(64, 2), truth, 3)
        assert targets.labels.view(3, 8, 8)[0, 2, 2] == 1


def test_without_objects_nothing_is_divided_by_nothing():
    points, ranges, _ = scene()
    empty = GroundTruth.from_instances([InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))])
    distances = torch.ones(1, 64, 4, requires_grad=True)
    parts = FocalLoss(), GIoULoss(), CrossEntropyLoss(use_sigmoid=True)
    targets = fcos_targets(points, ranges, empty, 3)
    losses = fcos_losses(torch.zeros(1, 64, 3), distances, torch.zeros(1, 64), targets, *parts)
    losses["loss_bbox"].backward()
    assert losses["loss_bbox"] == 0
    assert not distances.grad.any()
