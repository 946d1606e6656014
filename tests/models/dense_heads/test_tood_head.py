"""TOOD: two phases, geometric means of probabilities, boxes from cells nearby, relative alignment."""

import pytest
import torch
from mmengine import MessageHub
from mmengine.structures import InstanceData

from detkit.models import TOODHead
from detkit.models.dense_heads.layers.tood_layers import geometric_mean_of_sigmoids, sample_boxes
from detkit.models.dense_heads.targets.anchor_targets import AnchorTargets
from detkit.models.dense_heads.tood_head import relative_alignment
from detkit.structures import DetDataSample
from detkit.task_modules import BatchAssignResult

TRAIN = {"initial_epoch": 4, "assigner": {"type": "TaskAlignedAssigner", "topk": 5}, "alpha": 1, "beta": 6}
ANCHORS = {
    "type": "AnchorGenerator",
    "octave_base_scale": 4,
    "scales_per_octave": 1,
    "ratios": [1.0],
    "strides": [8, 16],
}


def head(**arguments):
    torch.manual_seed(0)
    arguments = {
        "train_cfg": TRAIN,
        "anchor_generator": ANCHORS,
        "norm_cfg": {"type": "GN", "num_groups": 2},
        **arguments,
    }
    built = TOODHead(3, 8, feat_channels=8, stacked_convs=2, **arguments)
    built.init_weights()
    return built.train()


def losses(built):
    generator = torch.Generator().manual_seed(1)
    feats = [torch.randn(1, 8, size, size, generator=generator) for size in (8, 4)]
    sample = DetDataSample(metainfo={"img_shape": (64, 64), "pad_shape": (64, 64)})
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[8.0, 8, 48, 40]]), labels=torch.tensor([1]))
    return {name: value.item() for name, value in built.loss(feats, [sample]).items()}


@pytest.fixture
def hub(request):
    """A message hub of this test's own, as a run makes one."""
    current = MessageHub.get_current_instance()
    yield MessageHub.get_instance(request.node.name)
    MessageHub._instance_dict.move_to_end(current.instance_name)
    del MessageHub._instance_dict[request.node.name]


def test_the_epoch_decides_who_assigns(hub):
    built = head()
    assert built._training_epoch() == 0
    first = losses(built)
    built.set_epoch(3)
    assert losses(built) == first
    built.set_epoch(4)
    later = losses(built)
    assert later["loss_cls"] != pytest.approx(first["loss_cls"], rel=1e-3)
    # Without a hook, mmengine's message hub says it.
    built.epoch = None
    hub.update_info("epoch", 4)
    assert losses(built) == later
    hub.update_info("epoch", 2)
    assert losses(built) == first


def test_every_class_starts_with_a_probability_of_one_in_a_hundred():
    scores, boxes = head()([torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 2, 2)])
    torch.testing.assert_close(scores[0], torch.full_like(scores[0], 0.01), rtol=0.05, atol=0)
    # exp(0) strides to each side of the cell's centre
    torch.testing.assert_close(boxes[0][0, 2:] - boxes[0][0, :2], torch.full((2, 4, 4), 2.0), rtol=0.05, atol=0)


def test_a_geometric_mean_has_a_gradient_everywhere():
    x = torch.tensor([0.0, 2.0, -300.0, 300.0], requires_grad=True)
    y = torch.tensor([0.0, -1.0, -300.0, 300.0], requires_grad=True)
    mean = geometric_mean_of_sigmoids(x, y)
    torch.testing.assert_close(mean[:2], (x.sigmoid() * y.sigmoid()).sqrt()[:2])
    mean.sum().backward()
    # d sqrt(ab) / dx = sqrt(ab) (1 - a) / 2
    torch.testing.assert_close(x.grad, (mean * (1 - x.sigmoid()) / 2).detach())


def test_sides_are_taken_from_cells_nearby_unless_that_makes_no_box():
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 0, 5, 2], [9, 0, 12, 2]]).T.view(1, 4, 1, 3)
    offset = torch.zeros(1, 8, 1, 3)
    torch.testing.assert_close(sample_boxes(boxes, offset), boxes)
    # The first cell takes its right side from half way between the second and the third: (5 + 12) / 2.
    offset[0, 5, 0, 0] = 1.5
    torch.testing.assert_close(sample_boxes(boxes, offset)[0, :, 0, 0], torch.tensor([0, 0, 8.5, 2]))
    # The second would take its left side from the third, right of its own right side.
    offset[0, 1, 0, 1] = 1
    torch.testing.assert_close(sample_boxes(boxes, offset)[0, :, 0, 1], torch.tensor([1.0, 0, 5, 2]))


def targets(metrics):
    gt_inds = torch.tensor([[1, 1, 2, 0, -1]])
    overlaps = torch.tensor([[0.5, 0.8, 0.4, -1e8, -1e8]])
    positive = (gt_inds > 0).float()
    assigned = BatchAssignResult(gt_inds, overlaps, gt_inds - 1, metrics)
    return AnchorTargets(gt_inds, positive, positive, positive, positive.sum(), assigned=assigned)


def test_the_best_aligned_has_the_greatest_overlap_of_its_object():
    found = relative_alignment(targets(torch.tensor([[0.2, 0.1, 0.3, 0.0, 0.0]])), 3)
    torch.testing.assert_close(found, torch.tensor([[0.8, 0.4, 0.4, 0, 0]]))
    nothing = relative_alignment(targets(torch.zeros(1, 5)), 3)
    assert nothing.tolist() == [[0, 0, 0, 0, 0]]


def test_an_assigner_that_says_no_alignment_is_refused_by_its_phase():
    with pytest.raises(ValueError, match=r"train_cfg\.assigner must say how well"):
        relative_alignment(targets(None), 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss_cls": {"type": "QualityFocalLoss"}}, "loss_cls: this head gives probabilities; set activated=True"),
        ({"initial_loss_cls": {"type": "FocalLoss"}}, "initial_loss_cls: this head gives probabilities"),
        ({"anchor_type": "anchorfree"}, "anchor_type 'anchorfree'"),
        ({"anchor_generator": {**ANCHORS, "ratios": [0.5, 1.0]}}, r"makes \[2, 2\] anchors of a cell"),
        ({"train_cfg": {**TRAIN, "initial_assigner": {"type": "PointAssigner"}}}, "PointAssigner assigns points"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"TOODHead.*{message}"):
        head(**arguments)
