"""CenterNet's targets and detections by hand; its successor's heat and positives."""

import pytest
import torch
from mmengine.structures import InstanceData

from detkit.models.dense_heads import CenterNetHead
from detkit.models.dense_heads.targets.centernet_update_targets import center_heat_targets, near_points, well_predicted
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import MlvlPointGenerator


def samples(*images):
    """Images of 64 x 64 with boxes and labels."""
    made = []
    for boxes, labels in images:
        sample = DetDataSample(metainfo={"img_shape": (64, 64), "batch_input_shape": (64, 64), "pad_shape": (64, 64)})
        sample.gt_instances = InstanceData(bboxes=torch.tensor(boxes).view(-1, 4), labels=torch.tensor(labels).long())
        made.append(sample)
    return made


def head(**test_cfg):
    return CenterNetHead(in_channels=4, feat_channels=4, num_classes=3, test_cfg=test_cfg)


def test_targets_by_hand():
    # Stride 4. Centres (10, 14) and (33, 33) are in cells (2, 3) and (8, 8), half and a quarter beyond their corners.
    batch = samples(([[4.0, 6, 16, 22], [25, 25, 41, 41]], [1, 2]), ([], []))
    targets = head()._targets(torch.zeros(2, 3, 16, 16), batch)
    assert (targets.heatmap == 1).nonzero().tolist() == [[0, 1, 3, 2], [0, 2, 8, 8]]
    assert targets.weight.sum() == 2
    assert targets.size[0, :, 3, 2].tolist() == [3, 4]
    assert targets.offset[0, :, 3, 2].tolist() == [0.5, 0.5]
    assert targets.offset[0, :, 8, 8].tolist() == [0.25, 0.25]
    assert not targets.heatmap[1].any()


def test_of_two_objects_in_a_cell_the_last_is_learnt():
    first, second = [4.0, 6, 16, 22], [6.0, 10, 14, 18]
    targets = head()._targets(torch.zeros(1, 3, 16, 16), samples(([first, second], [0, 1])))
    assert targets.size[0, :, 3, 2].tolist() == [2, 2]
    assert targets.weight.sum() == 1


def test_what_is_learnt_is_predicted():
    boxes = [[4.0, 6, 16, 22], [25, 25, 41, 41]]
    batch = samples((boxes, [1, 2]))
    model = head(topk=2, local_maximum_kernel=3)
    targets = model._targets(torch.zeros(1, 3, 16, 16), batch)
    model.forward = lambda x: ([targets.heatmap], [targets.size], [targets.offset])
    (found,) = model.predict([torch.zeros(1, 4, 16, 16)], batch)
    assert sorted(found.bboxes.tolist()) == boxes
    assert sorted(found.labels.tolist()) == [1, 2]
    assert found.scores.tolist() == [1, 1]


def test_a_border_is_taken_off():
    batch = samples(([[4.0, 6, 16, 22]], [1]))
    batch[0].set_metainfo({"border": [6, 64, 4, 64], "scale_factor": (2.0, 2.0)})
    model = head(topk=1, local_maximum_kernel=3)
    targets = model._targets(torch.zeros(1, 3, 16, 16), batch)
    model.forward = lambda x: ([targets.heatmap], [targets.size], [targets.offset])
    (found,) = model.predict([torch.zeros(1, 4, 16, 16)], batch, rescale=True)
    assert found.bboxes.tolist() == [[0, 0, 6, 8]]


def test_one_level_only():
    with pytest.raises(ValueError, match="one level is expected, got 2"):
        head().loss([torch.zeros(1, 4, 16, 16)] * 2, samples(([], [])))


RANGES = ((0.0, 20.0), (16.0, 1e8))
SIZES = [(8, 8), (4, 4)]


def pyramid():
    levels = MlvlPointGenerator([8, 16]).grid_priors(SIZES, with_stride=True)
    ranges = torch.cat([torch.tensor([ends]).expand(len(p), 2) for p, ends in zip(levels, RANGES, strict=True)])
    return torch.cat(levels), ranges


def truth(*boxes):
    return GroundTruth.from_instances(
        [InstanceData(bboxes=torch.tensor(boxes).view(-1, 4), labels=torch.arange(len(boxes)))]
    )


def test_heat_by_hand():
    points, ranges = pyramid()
    # The centre (20, 20) is that of a cell of stride 8, and in the cell around (24, 24) of stride 16.
    targets = center_heat_targets(points, ranges, truth([10.0, 10, 30, 30]), 2, delta=0.25, min_radius=4)
    fine, coarse = targets.heat[0, :64, 0].view(8, 8), targets.heat[0, 64:, 0].view(4, 4)
    assert fine[2, 2] == 1
    assert coarse[1, 1] == 1
    # The squared radius is 2 * 0.25^2 * 400 = 50; the next cell is 8 away.
    torch.testing.assert_close(fine[2, 3], torch.tensor(-64 / 50).exp())
    assert not targets.heat[0, :, 1].any()


def test_boxes_are_learnt_around_the_centre_on_levels_of_the_size():
    points, ranges = pyramid()
    targets = center_heat_targets(points, ranges, truth([10.0, 10, 30, 30]), 2, delta=0.25, min_radius=4)
    fine, coarse = targets.positive[0, :64].view(8, 8), targets.positive[0, 64:].view(4, 4)
    # Half the diagonal is 14: the fine level's only. Of 3 x 3 cells, all centres are in the box.
    assert fine.nonzero().tolist() == [[row, column] for row in (1, 2, 3) for column in (1, 2, 3)]
    assert not coarse.any()
    # From (20, 12): 10 to each side, 2 up and 18 down, in strides.
    assert targets.distances[0, :64].view(8, 8, 4)[1, 2].tolist() == [1.25, 0.25, 1.25, 2.25]


def test_cells_near_a_centre():
    near = near_points(SIZES, [(8, 8), (16, 16)], RANGES, truth([10.0, 10, 30, 30]))
    points, _ = pyramid()
    fine = near.point[0, 0, :9]
    assert points[fine][:, :2].tolist() == [[x, y] for y in (12, 20, 28) for x in (12, 20, 28)]
    assert near.inside[0, 0, :9].all()
    assert near.distances[0, 0, 1].tolist() == [1.25, 0.25, 1.25, 2.25]
    # On the coarse level only the cell around (24, 24) lies in the object, and its size is not that level's.
    assert near.inside[0, 0, 9:].nonzero().flatten().tolist() == [4]
    assert near.center[0, 0].nonzero().flatten().tolist() == [4]


def test_cells_that_predict_well_are_positive_too():
    near = near_points(SIZES, [(8, 8), (16, 16)], RANGES, truth([10.0, 10, 30, 30]))
    predicted = torch.zeros(1, 80, 4)
    # The cell above the centre predicts the box exactly, that below nearly.
    predicted[0, 10] = near.distances[0, 0, 1]
    predicted[0, 26] = near.distances[0, 0, 7] + 0.1

    def loss_of(a, b):
        return (a - b).abs().sum(dim=1)

    chosen = well_predicted(near, predicted, loss_of, topk=9, threshold=0.2)
    assert chosen[0, 0].nonzero().flatten().tolist() == [1, 4]
    chosen = well_predicted(near, predicted, loss_of, topk=9, threshold=0.5)
    assert chosen[0, 0].nonzero().flatten().tolist() == [1, 4, 7]
    # Less than the third best: two
    chosen = well_predicted(near, predicted, loss_of, topk=3, threshold=0.5)
    assert chosen[0, 0].nonzero().flatten().tolist() == [1, 4]
