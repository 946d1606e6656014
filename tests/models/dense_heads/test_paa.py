"""PAA: whose anchors are positive, voting of boxes, refused parts."""

import pytest
import torch
from no_sync import NoSync

from detkit.models import PAAHead
from detkit.models.dense_heads.prediction.score_voting import vote_boxes
from detkit.models.dense_heads.targets.paa_targets import lowest_of_each_object, paa_positives
from detkit.structures.boxes import bbox_overlaps


def test_the_lowest_losses_of_each_object_against_a_loop():
    generator = torch.Generator().manual_seed(1)
    losses = torch.rand(2, 40, generator=generator)
    owners = torch.randint(0, 5, (2, 40), generator=generator)
    owners[1, owners[1] == 2] = 0
    index, lowest = lowest_of_each_object(losses, owners, 5, 6)
    assert lowest.shape == (2, 5, 6)
    for image in range(2):
        for obj in range(5):
            own = (owners[image] == obj + 1).nonzero()[:, 0]
            expected = sorted(losses[image, own].tolist())[:6]
            found = lowest[image, obj][lowest[image, obj].isfinite()]
            assert found.tolist() == expected
            assert losses[image, index[image, obj, : len(found)]].tolist() == expected


# Two levels of five anchors; the object with number 1 has low losses at 0, 1, 2 and 5, high ones at 3, 4 and 6.
LOSSES = torch.tensor([[0.30, 0.32, 0.31, 3.0, 3.1, 0.29, 2.9, 9.0, 0.1, 0.2]])
OWNERS = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0, 2, 0]])


def test_positives_are_the_good_half_up_to_the_likeliest():
    # By loss: 5, 0, 2, 1. The likeliest of 0.29, 0.30, 0.31, 0.32 lies in their middle, at 0.30 or 0.31.
    chosen = paa_positives(LOSSES, OWNERS, 3, [5, 5], topk=9)[0].nonzero()[:, 0].tolist()
    assert chosen in ([0, 5], [0, 2, 5])
    # With the one best of each level, 0 and 5, both distributions are fitted to one anchor each.
    assert paa_positives(LOSSES, OWNERS, 3, [5, 5], topk=1)[0].nonzero()[:, 0].tolist() == [5]


def test_an_object_with_one_anchor_has_no_positives_and_broken_losses_are_none():
    assert not paa_positives(LOSSES, torch.where(OWNERS == 2, 2, 0), 3, [5, 5], topk=9).any()
    broken = LOSSES.clone()
    broken[0, [5, 0]] = torch.tensor([torch.nan, torch.inf])
    assert paa_positives(broken, OWNERS, 3, [5, 5], topk=9)[0].nonzero()[:, 0].tolist() in ([2], [1, 2])
    assert not paa_positives(LOSSES, torch.zeros_like(OWNERS), 0, [5, 5], topk=9).any()


def test_equal_losses_leave_an_object_with_a_positive():
    chosen = paa_positives(torch.ones_like(LOSSES), OWNERS, 3, [5, 5], topk=9)[0]
    assert chosen.sum() > 0
    assert (OWNERS[0, chosen] == 1).all()


def test_positives_wait_for_nothing():
    with NoSync():
        paa_positives(LOSSES, OWNERS, 3, [5, 5], topk=9)


def test_votes_against_a_loop():
    generator = torch.Generator().manual_seed(2)
    corner, size = torch.rand(30, 2, generator=generator) * 20, torch.rand(30, 2, generator=generator) * 20 + 1
    voters, scores = torch.cat([corner, corner + size], dim=1), torch.rand(30, generator=generator)
    labels = torch.arange(30) % 3
    expected = []
    for box, label in zip(voters[:8], labels[:8], strict=True):
        near = [
            (torch.exp(-((1 - iou) ** 2) / 0.025) * score, voter)
            for voter, score, own in zip(voters, scores, labels, strict=True)
            if own == label and (iou := bbox_overlaps(box[None], voter[None])[0, 0]) > 0.01
        ]
        expected.append(sum(w * voter for w, voter in near) / sum(w for w, _ in near))
    torch.testing.assert_close(vote_boxes(voters[:8], labels[:8], voters, labels, scores), torch.stack(expected))


def test_a_box_without_votes_stays():
    box = torch.tensor([[3.0, 3, 3, 9]])
    other = torch.tensor([[0.0, 0, 10, 10]])
    assert vote_boxes(box, torch.tensor([1]), other, torch.tensor([1]), torch.ones(1)).equal(box)
    assert vote_boxes(other, torch.tensor([1]), box, torch.tensor([1]), torch.ones(1)).equal(other)
    assert vote_boxes(other[:0], torch.tensor([]), box, torch.tensor([1]), torch.ones(1)).shape == (0, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"covariance_type": "diagonal"}, "covariance_type 'diagonal' .* did you mean 'diag'"),
        ({"topk": 0}, "topk must be at least 1, got 0"),
        ({"reg_decoded_bbox": False}, "reg_decoded_bbox=False"),
        ({"loss_cls": {"type": "CrossEntropyLoss"}}, "use_sigmoid=False needs a channel"),
        ({"loss_cls": {"type": "QualityFocalLoss"}}, "QualityFocalLoss learns labels with qualities"),
        ({"pred_kernel_size": 2}, "pred_kernel_size must be odd, got 2"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"PAAHead.*{message}"):
        PAAHead(3, 8, feat_channels=32, stacked_convs=1, **arguments)
