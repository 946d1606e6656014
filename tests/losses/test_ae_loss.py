"""Associative embedding loss by hand, and for objects that are not there."""

import pytest
import torch

from detkit.losses import AssociativeEmbeddingLoss


def maps(*values):
    """A map (1, 1, 1, W) of embeddings."""
    return torch.tensor([[[values]]])


def at(*columns):
    """Objects whose two corners lie in these columns of the only row."""
    return [[[0, column], [0, column]] for column in columns]


def test_by_hand():
    loss = AssociativeEmbeddingLoss(pull_weight=1.0, push_weight=1.0)
    # Means 1, 1.5 and 4, pulled by 2 * 1^2, 0 and 2 * 2^2; only the first two are nearer than 1, by 0.5.
    pull, push = loss(maps(0.0, 1.5, 2.0), maps(2.0, 1.5, 6.0), [at(0, 1, 2)])
    torch.testing.assert_close(pull, torch.tensor(10 / 3))
    torch.testing.assert_close(push, torch.tensor(2 * 0.5 / (3 * 2)))


def test_corners_are_given_as_row_and_column():
    first, second = torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 3)
    first[0, 0, 1, 2], second[0, 0, 0, 1] = 2.0, 4.0
    pull, push = AssociativeEmbeddingLoss(pull_weight=0.5)(first, second, [[[[1, 2], [0, 1]]]])
    torch.testing.assert_close(pull, torch.tensor(0.5 * 2))
    assert push == 0


def test_images_add_up_and_do_not_push_each_other():
    loss = AssociativeEmbeddingLoss()
    first = torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    second = torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(1))
    match = [[[[0, 0], [1, 2]], [[3, 4], [2, 2]]], [], [[[1, 1], [2, 3]]]]
    alone = [loss(first[i : i + 1], second[i : i + 1], match[i : i + 1]) for i in range(3)]
    together = loss(first, second, match)
    torch.testing.assert_close(together, tuple(sum(values) for values in zip(*alone, strict=True)))


def test_wrong_matches_are_refused():
    embedding = torch.zeros(1, 1, 2, 3)
    with pytest.raises(ValueError, match=r"image 0 has a corner at \(y, x\) = \(0, 3\), outside a map of 2 x 3"):
        AssociativeEmbeddingLoss()(embedding, embedding, [[[[0, 0], [0, 3]]]])
    with pytest.raises(ValueError, match=r"AssociativeEmbeddingLoss: pred \(1, 1, 2, 3\).* matches of 2 images"):
        AssociativeEmbeddingLoss()(embedding, embedding, [[], []])


@pytest.mark.parametrize("pair", [[[0, 0]], [[0, 0], [1, 1], [1, 2]], [[0, 0], [1]]])
def test_an_object_needs_two_corners(pair):
    embedding = torch.zeros(2, 1, 2, 3)
    with pytest.raises(ValueError, match=r"Loss: image 1 has an object .*; expected its two corners"):
        AssociativeEmbeddingLoss()(embedding, embedding, [[], [pair]])


def test_factors_are_numbers():
    with pytest.raises(TypeError, match="AssociativeEmbeddingLoss: pull_weight must be a number, got '1'"):
        AssociativeEmbeddingLoss(pull_weight="1")
