"""Priors in numbers that one can check by hand, regions, and what constructors refuse."""

import math

import pytest
import torch

from detkit.structures.boxes import HorizontalBoxes
from detkit.task_modules.prior_generators import (
    AnchorGenerator,
    LegacyAnchorGenerator,
    LegacySSDAnchorGenerator,
    MlvlPointGenerator,
    PointGenerator,
    SSDAnchorGenerator,
    YOLOAnchorGenerator,
    anchor_inside_flags,
    calc_region,
)


def test_anchors():
    # Size 8 * 2; a ratio of 4 is twice as high as the square and half as wide.
    generator = AnchorGenerator([8], ratios=[1.0, 4.0], scales=[2.0])
    assert generator.base_anchors[0].tolist() == [[-8, -8, 8, 8], [-4, -16, 4, 16]]
    assert generator.grid_priors([(2, 2)])[0][2:4].tolist() == [[0, -8, 16, 8], [4, -16, 12, 16]]
    assert generator.num_base_anchors == generator.num_base_priors == [2]


def test_the_scale_may_vary_slower_than_the_ratio():
    widths = {}
    for scale_major in (True, False):
        x1, _, x2, _ = AnchorGenerator([8], [1.0, 4.0], [1.0, 2.0], scale_major=scale_major).base_anchors[0].unbind(1)
        widths[scale_major] = (x2 - x1).tolist()
    assert widths == {True: [8, 16, 4, 8], False: [8, 4, 16, 8]}


def test_octaves():
    generator = AnchorGenerator([8], [1.0], octave_base_scale=4, scales_per_octave=3)
    torch.testing.assert_close(generator.scales, torch.tensor([4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)]))


def test_legacy_anchors_end_with_their_last_pixel():
    # 16 pixels around half of the last pixel, 0.5 * 7 = 3.5: from -4 to 11
    generator = LegacyAnchorGenerator([8], ratios=[1.0], scales=[2.0], center_offset=0.5)
    assert generator.base_anchors[0].tolist() == [[-4, -4, 11, 11]]


def test_a_subclass_may_make_other_base_anchors():
    class Squares(AnchorGenerator):
        def gen_single_level_base_anchors(self, base_size, scales, ratios, center=None):
            return torch.tensor([[0.0, 0, base_size, base_size]])

    assert Squares([8, 16], [1.0], [1.0]).base_anchors[1].tolist() == [[0, 0, 16, 16]]


def test_ssd_anchors():
    generator = SSDAnchorGenerator([8], [[4]], min_sizes=[16], max_sizes=[64], scale_major=False)
    # Around (4, 4): the square, the square of side sqrt(16 * 64) = 32, then 1 : 4 lying and standing
    assert generator.base_anchors[0].tolist() == [
        [-4, -4, 12, 12],
        [-12, -12, 20, 20],
        [-12, 0, 20, 8],
        [0, -12, 8, 20],
    ]


def test_ssd_sizes_of_the_paper():
    # 300 pixels, COCO: the first level 7 to 15 %, then steps of (90 - 15) // 4 = 18 %
    generator = SSDAnchorGenerator([8, 16, 32, 64, 100, 300], [[2], [2, 3], [2, 3], [2, 3], [2], [2]])
    assert generator.base_sizes == [21, 45, 99, 153, 207, 261]
    torch.testing.assert_close(generator.scales[0], torch.tensor([1.0, math.sqrt(45 / 21)]))


def test_legacy_ssd_anchors_are_centred_between_pixels():
    generator = LegacySSDAnchorGenerator([8, 16, 32], [[2], [2], [2]], (0.15, 0.3))
    # 21 pixels around 3.5: from -6.5 to 13.5, rounded half to even
    assert generator.base_anchors[0][0].tolist() == [-6, -6, 14, 14]


def test_yolo_anchors():
    generator = YOLOAnchorGenerator([32, 16], [[(116, 90)], [(30, 62)]])
    assert generator.base_anchors[1].tolist() == [[8 - 15, 8 - 31, 8 + 15, 8 + 31]]


def test_points():
    points = MlvlPointGenerator([(8, 4)]).grid_priors([(2, 2)], with_stride=True)[0]
    assert points.tolist() == [[4, 2, 8, 4], [12, 2, 8, 4], [4, 6, 8, 4], [12, 6, 8, 4]]
    assert MlvlPointGenerator([8], offset=0).grid_priors([(1, 2)])[0].tolist() == [[0, 0], [8, 0]]
    assert PointGenerator().grid_points((1, 2), stride=4).tolist() == [[0, 0, 4], [4, 0, 4]]
    assert PointGenerator().valid_flags((2, 2), (1, 2)).tolist() == [True, True, False, False]


def test_anchors_inside_an_image():
    anchors = torch.tensor([[0.0, 0, 9, 9], [-1, 0, 9, 9], [0, 0, 10, 9], [0, 0, 9, 21]])
    valid = torch.tensor([True, True, True, True])
    # Height 20, width 10; x2 must be less than the width
    assert anchor_inside_flags(anchors, valid, (20, 10)).tolist() == [True, False, False, False]
    assert anchor_inside_flags(anchors, valid, (20, 10), allowed_border=1).tolist() == [True, True, True, False]
    assert anchor_inside_flags(HorizontalBoxes(anchors), valid, (20, 10), 2).all()
    assert anchor_inside_flags(anchors, ~valid, (20, 10), -1).tolist() == [False] * 4


def test_the_middle_of_boxes():
    boxes = torch.tensor([[0.0, 0, 10, 20], [4, 4, 8, 30]])
    regions = calc_region(boxes, 0.25)
    # 2.5 and 7.5 are rounded half to even
    assert torch.stack(regions, dim=-1).tolist() == [[2, 5, 8, 15], [5, 10, 7, 24]]
    assert calc_region(boxes[1], 0.25, (20, 6))[3].item() == 20
    assert calc_region(boxes[1], 0.25, (20, 6))[2].item() == 6


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AnchorGenerator([8], [1.0]), "AnchorGenerator: give either scales, or octave_base_scale and"),
        (
            lambda: LegacyAnchorGenerator([8], [1.0], [1.0], center_offset=2),
            "LegacyAnchorGenerator: center_offset .* 2",
        ),
        (lambda: AnchorGenerator([8], [1.0], [1.0], centers=[(1, 1), (2, 2)]), "centers has 2 entries for 1 strides"),
        (
            lambda: AnchorGenerator([8], [1.0], [1.0], centers=[(1, 1)], center_offset=0.5),
            "give centers or center_offset, not both",
        ),
        (lambda: AnchorGenerator([8], [1.0], [1.0], base_sizes=[4, 8]), "base_sizes has 2 entries for 1 strides"),
        (lambda: AnchorGenerator([8], [], [1.0]), r"AnchorGenerator: ratios must be numbers above 0, .* got \[\]"),
        (lambda: AnchorGenerator([8], [1.0, 0.0], [1.0]), r"ratios must be numbers above 0, .* got \[1.0, 0.0\]"),
        (lambda: AnchorGenerator([8, -16], [1.0], [1.0]), "AnchorGenerator: strides must be numbers above 0, .* -16"),
        (lambda: LegacyAnchorGenerator([(8, 0)], [1.0], [1.0]), "LegacyAnchorGenerator: strides must be numbers above"),
        (lambda: SSDAnchorGenerator([8], [[2]], min_sizes=[8]), r"both min_sizes and max_sizes or neither, got \[8\]"),
        (lambda: SSDAnchorGenerator([8], [[2]], [8, 9], [9, 10]), "min_sizes has 2 entries for 1 strides"),
        (lambda: SSDAnchorGenerator([8], [[2], [3]], [8], [9]), "ratios has 2 entries for 1 strides"),
        (lambda: SSDAnchorGenerator([8, 16], [[2], [2]]), "at least 3 strides, got .* and 2 strides"),
        (lambda: SSDAnchorGenerator([8] * 3, [[2]] * 3, input_size=320), "300 with 0.15, .*; got 320 with 0.15"),
        (
            lambda: SSDAnchorGenerator([8] * 9, [[2]] * 9, basesize_ratio_range=(0.15, 0.2)),
            "no step for 9 levels",
        ),
        (lambda: YOLOAnchorGenerator([8, 16], [[(1, 2)], [(1, 2), (3, 4)]]), r"each of 2 levels, got \[1, 2\]"),
        (lambda: YOLOAnchorGenerator([8, 16], [[(1, 2)]]), r"each of 2 levels, got \[1\]"),
        (
            lambda: AnchorGenerator([8], [1.0], [1.0]).grid_priors([(1, 1)], with_stride=True),
            "AnchorGenerator: anchors carry no stride",
        ),
    ],
)
def test_what_does_not_fit_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
