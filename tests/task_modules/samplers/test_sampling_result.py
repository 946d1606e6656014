"""What a sampler returns, for one image and for a batch."""

import pytest
import torch
from mmengine.structures import InstanceData
from task_modules.samplers.images import batch, image

from detkit.structures.boxes import HorizontalBoxes
from detkit.task_modules import AssignResult, BatchSamplingResult, PseudoSampler, RandomSampler, SamplingResult


def result():
    # Prior 0 is object 1 itself, prior 2 learns object 0; 1 and 3 are background.
    return SamplingResult(
        pos_inds=torch.tensor([0, 2]),
        neg_inds=torch.tensor([1, 3]),
        priors=torch.arange(16.0).view(4, 4),
        gt_bboxes=torch.tensor([[50.0, 50, 60, 60], [0, 1, 2, 3]]),
        assign_result=AssignResult(2, torch.tensor([2, 0, 1, 0]), None, torch.tensor([7, -1, 8, -1])),
        gt_flags=torch.tensor([1, 0, 0, 0], dtype=torch.uint8),
    )


def test_by_hand():
    found = result()
    assert found.num_pos == found.num_neg == 2
    assert found.avg_factor == 4
    assert found.num_gts == 2
    assert found.pos_assigned_gt_inds.tolist() == [1, 0]
    assert found.pos_gt_labels.tolist() == [7, 8]
    assert found.pos_is_gt.tolist() == [1, 0]
    assert found.pos_gt_bboxes[:, 0].tolist() == [0, 50]
    assert found.priors[:, 0].tolist() == [0, 8, 4, 12]
    assert found.info.keys() >= {"pos_inds", "neg_inds", "pos_priors", "neg_priors", "num_gts", "avg_factor"}
    assert "pos_priors=(2, 4)" in repr(found)


@pytest.mark.parametrize("sampler", [PseudoSampler(), RandomSampler(num=8, pos_fraction=0.5)])
def test_box_types_are_their_tensors(sampler):
    priors, objects = torch.arange(16.0).view(4, 4), torch.tensor([[50.0, 50, 60, 60], [0, 1, 2, 3]])

    def sample(box_type):
        assigned = AssignResult(2, torch.tensor([2, 0, 1, -1]), torch.rand(4), torch.tensor([7, -1, 8, -1]))
        instances = InstanceData(bboxes=box_type(objects), labels=torch.tensor([8, 7]))
        return sampler.sample(assigned, InstanceData(priors=box_type(priors)), instances)

    expected = vars(sample(lambda boxes: boxes))
    assert len(expected["pos_inds"]) >= 2
    for name, value in vars(sample(HorizontalBoxes)).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_former_names_warn_and_work():
    found = result()
    for old, new in (("bboxes", "priors"), ("pos_bboxes", "pos_priors"), ("neg_bboxes", "neg_priors")):
        with pytest.warns(DeprecationWarning, match=f"SamplingResult.{old} is now called {new}"):
            assert torch.equal(getattr(found, old), getattr(found, new))


def test_moving_moves_every_tensor():
    found = result()
    assert found.to("meta") is found
    assert all(value.device.type == "meta" for value in vars(found).values() if isinstance(value, torch.Tensor))
    assert found.num_pos == 2


def test_compact_by_hand():
    sampled = BatchSamplingResult(
        positive=torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 0, 0]]).bool(),
        negative=torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0]]).bool(),
        avg_factor=torch.tensor(6),
    )
    rows = sampled.compact(3)
    assert rows.indices.tolist() == [[1, 4, 0], [1, 0, 0]]
    assert rows.valid.tolist() == [[True, True, True], [True, False, False]]
    assert rows.positive.tolist() == [[True, True, False], [False, False, False]]
    values = torch.arange(10).view(2, 5)
    assert rows.of(values)[rows.valid].tolist() == [1, 4, 0, 6]


@pytest.mark.parametrize("num", [0, 4, 64])
def test_compact_is_the_sample_of_each_image(num):
    """Also where images have fewer priors than rows."""
    sampler = RandomSampler(num, 0.25)
    images = [image(30, count, seed) for seed, count in enumerate((2, 0, 5))]
    sampled = sampler.sample_batch(*batch(images))
    rows = sampled.compact(num)
    assert rows.indices.shape == rows.valid.shape == (3, num)
    boxes = rows.of(sampled.priors)
    assert boxes.shape == (3, num, 4)
    for index in range(3):
        positive, negative = (mask[index].nonzero().squeeze(1) for mask in (sampled.positive, sampled.negative))
        order = torch.cat([positive, negative])
        assert torch.equal(rows.indices[index][rows.valid[index]], order)
        assert rows.positive[index].sum() == len(positive)
        assert torch.equal(boxes[index][rows.valid[index]], sampled.priors[index][order])


def test_compact_of_nothing():
    sampled = PseudoSampler().sample_batch(*batch([image(0, 2, seed=0)]))
    rows = sampled.compact(3)
    assert not rows.valid.any()
    assert rows.of(sampled.priors).shape == (1, 3, 4)
