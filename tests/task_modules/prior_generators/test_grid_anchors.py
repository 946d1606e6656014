"""What ``GridAnchors`` is given by a generator of one's own."""

import pytest
import torch

from detkit.task_modules import GridAnchors

SQUARE = torch.tensor([[-4.0, -4, 4, 4]])


class Mine(GridAnchors):
    """A user's generator."""


def test_a_plain_number_is_the_stride_along_both_axes():
    plain, pairs = Mine([8, 16], [SQUARE, SQUARE]), Mine([(8, 8), [16, 16]], [SQUARE, SQUARE])
    sizes = [(2, 3), (1, 2)]
    assert plain.strides == pairs.strides == [(8, 8), (16, 16)]
    for found, expected in zip(plain.grid_priors(sizes), pairs.grid_priors(sizes), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(plain.sparse_priors(torch.tensor([1]), (2, 3), 0), torch.tensor([[4.0, -4, 12, 4]]))
    assert plain.valid_flags(sizes, (8, 16))[0].tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize("stride", [0, -8, "8", None, (8,), (8, 8, 8), (8, 0)])
def test_wrong_strides(stride):
    with pytest.raises(ValueError, match=r"Mine: a stride must be a number above 0, or two"):
        Mine([stride], [SQUARE])


def test_one_stride_for_all_levels():
    with pytest.raises(ValueError, match=r"Mine: strides must be one per level, got 8"):
        Mine(8, [SQUARE])


@pytest.mark.parametrize(
    ("anchors", "given"),
    [
        (SQUARE[0], r"\(4,\)"),
        (SQUARE[:, :3], r"\(1, 3\)"),
        (SQUARE[:0], r"\(0, 4\)"),
        ([1, 2, 3, 4], r"\[1, 2, 3, 4\]"),
    ],
)
def test_wrong_base_anchors(anchors, given):
    with pytest.raises(
        ValueError, match=rf"Mine: base anchors of level 1 must be a tensor \(A, 4\), A > 0, got {given}"
    ):
        Mine([8, 16], [SQUARE, anchors])


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_levels_of_anchors_as_strides(count):
    with pytest.raises(ValueError, match=rf"Mine: base anchors of {count} levels for 2 strides"):
        Mine([8, 16], [SQUARE] * count)
