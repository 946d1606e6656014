"""Geometry that image, boxes, masks and segmentation map share."""

import cv2
import numpy as np
import pytest

from detkit.registry import TRANSFORMS
from detkit.structures import BitmapMasks
from detkit.transforms import Pad, RandomFlip, Resize

BOX = np.array([[4, 2, 10, 8]], dtype=np.float32)


def scene():
    """A 20 x 16 image with one white rectangle, and its box, mask and segmentation map."""
    mask = np.zeros((16, 20), dtype=np.uint8)
    mask[2:8, 4:10] = 1
    return {
        "img": np.repeat(mask[..., None] * 255, 3, axis=2),
        "img_shape": (16, 20),
        "gt_bboxes": BOX.copy(),
        "gt_masks": BitmapMasks(mask[None], 16, 20),
        "gt_seg_map": mask * 5,
    }


def assert_aligned(results):
    """Image, mask and segmentation map show a rectangle exactly where the box is."""
    x1, y1, x2, y2 = results["gt_bboxes"][0].astype(int)
    expected = np.zeros(results["img"].shape[:2])
    expected[y1:y2, x1:x2] = 1
    np.testing.assert_array_equal(results["img"] > 127, np.repeat(expected[..., None], 3, axis=2))
    np.testing.assert_array_equal(results["gt_masks"].masks[0], expected)
    np.testing.assert_array_equal(results["gt_seg_map"], expected * 5)
    assert results["img_shape"] == results["img"].shape[:2]
    assert results["gt_bboxes"].dtype == np.float32


@pytest.mark.parametrize("backend", ["cv2", "pillow"])
@pytest.mark.parametrize(
    ("kwargs", "shape", "factor"),
    [
        ({"scale": (40, 32)}, (32, 40), (2, 2)),
        ({"scale": (60, 32)}, (32, 60), (3, 2)),
        ({"scale": (1000, 48), "keep_ratio": True}, (48, 60), (3, 3)),
        ({"scale": (48, 1000), "keep_ratio": True}, (48, 60), (3, 3)),
        ({"scale": 40, "keep_ratio": True}, (32, 40), (2, 2)),
        ({"scale": 40}, (40, 40), (2, 2.5)),
        ({"scale_factor": 2}, (32, 40), (2, 2)),
        ({"scale_factor": [0.5, 1]}, (16, 10), (0.5, 1)),
        ({"scale_factor": 3.0, "keep_ratio": True}, (48, 60), (3, 3)),
        ({"scale": [40, 32], "keep_ratio": True}, (32, 40), (2, 2)),
    ],
)
def test_resize(kwargs, shape, factor, backend):
    results = Resize(**kwargs, interpolation="nearest", backend=backend)(scene())
    assert results["img"].shape[:2] == shape
    assert results["scale_factor"] == factor
    assert results["keep_ratio"] == kwargs.get("keep_ratio", False)
    assert_aligned(results)


def test_resize_clips_boxes_to_the_image_unless_told_not_to():
    box = np.array([[-3, 5, 25, 12]], dtype=np.float32)
    clipped = Resize(scale_factor=2.0)({**scene(), "gt_bboxes": box})["gt_bboxes"]
    np.testing.assert_array_equal(clipped, [[0, 10, 40, 24]])
    free = Resize(scale_factor=2.0, clip_object_border=False)({**scene(), "gt_bboxes": box})["gt_bboxes"]
    np.testing.assert_array_equal(free, [[-6, 10, 50, 24]])
    assert free.dtype == clipped.dtype == np.float32
    np.testing.assert_array_equal(box, [[-3, 5, 25, 12]])


def test_an_image_never_shrinks_to_nothing():
    results = Resize(scale=(3, 1), keep_ratio=True)({"img": np.zeros((1, 200, 3), dtype=np.uint8)})
    assert results["img"].shape == (1, 3, 3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "scale or scale_factor was expected, got neither"),
        ({"scale": (0, -5)}, r"scale: positive numbers were expected, got \(0, -5\)"),
        ({"scale": (10, 20, 30)}, r"scale: one number or \(width, height\) was expected"),
        ({"scale": "big"}, "scale: one number"),
        ({"scale_factor": 0.0}, r"scale_factor: positive numbers were expected, got 0\.0"),
        ({"scale": 5, "backend": "torch"}, "backend: 'cv2' or 'pillow' was expected, got 'torch'"),
        ({"scale": 5, "interpolation": "bilinea"}, "cv2 has no 'bilinea'; did you mean 'bilinear'"),
    ],
)
def test_wrong_arguments_of_resize(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Resize(**kwargs)


def test_the_placeholder_of_a_random_resize_is_no_size():
    with pytest.raises(ValueError, match="scale: positive numbers were expected"):
        Resize(scale=0)(scene())


@pytest.mark.parametrize(
    "cfg",
    [
        {"type": "RandomResize", "scale": [(40, 32), (60, 48)], "keep_ratio": True},
        {"type": "RandomResize", "scale": (40, 32), "ratio_range": (0.5, 2.0), "keep_ratio": True},
        {"type": "RandomChoiceResize", "scales": [(40, 32), (60, 48)], "keep_ratio": True},
        {"type": "RandomChoiceResize", "scales": [32, 48], "keep_ratio": True},
        {"type": "RandomChoice", "transforms": [[{"type": "Resize", "scale": (40, 32), "keep_ratio": True}]]},
    ],
)
def test_mmcvs_random_resizing_uses_this_resize(cfg):
    transform = TRANSFORMS.build(cfg)
    np.random.seed(1)
    for _ in range(5):
        results = transform(scene())
        # mmcv's own Resize leaves masks alone and makes boxes float64.
        assert results["gt_masks"].masks.shape[1:] == results["img"].shape[:2]
        assert results["gt_bboxes"].dtype == np.float32
    inner = transform.resize if hasattr(transform, "resize") else transform.transforms[0].transforms[0]
    assert type(inner) is Resize


@pytest.mark.parametrize(
    ("direction", "box"),
    [("horizontal", [10, 2, 16, 8]), ("vertical", [4, 8, 10, 14]), ("diagonal", [10, 8, 16, 14])],
)
def test_flip(direction, box):
    results = RandomFlip(prob=1.0, direction=direction)(scene())
    np.testing.assert_array_equal(results["gt_bboxes"], [box])
    assert (results["flip"], results["flip_direction"]) == (True, direction)
    assert_aligned(results)


def test_flip_draws_from_numpys_global_generator_with_the_given_frequencies():
    def draw():
        np.random.seed(3)
        flip = RandomFlip(prob=[0.2, 0.5], direction=["horizontal", "vertical"])
        return [flip({"img": np.zeros((2, 2, 3), np.uint8)})["flip_direction"] for _ in range(2000)]

    drawn = draw()
    assert drawn == draw()
    # Within five standard deviations, sqrt(2000 p (1 - p)).
    assert abs(drawn.count("horizontal") - 400) < 5 * 17.9
    assert abs(drawn.count("vertical") - 1000) < 5 * 22.4
    assert drawn.count(None) == 2000 - drawn.count("horizontal") - drawn.count("vertical")


def test_one_probability_is_shared_by_the_directions():
    np.random.seed(0)
    flip = RandomFlip(prob=1, direction=["horizontal", "diagonal"])
    drawn = {flip(scene())["flip_direction"] for _ in range(20)}
    assert drawn == {"horizontal", "diagonal"}


def test_flip_swaps_left_and_right_labels():
    results = RandomFlip(1.0, swap_seg_labels=[(5, 6)])({**scene(), "gt_seg_map": np.array([[5, 6, 7]], np.uint8)})
    np.testing.assert_array_equal(results["gt_seg_map"], [[7, 5, 6]])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "prob: a probability or one for each direction was expected, got None"),
        ({"prob": 1.5}, r"together at most 1 were expected, got 1\.5"),
        ({"prob": -0.5}, "at least 0"),
        ({"prob": [0.5], "direction": ["horizontal", "vertical"]}, "1 probabilities for the 2 directions"),
        ({"prob": 0.5, "direction": "horizontl"}, "'horizontl' is unknown; did you mean 'horizontal'"),
    ],
)
def test_wrong_arguments_of_flip(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RandomFlip(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "shape"),
    [
        ({"size": (30, 24)}, (24, 30)),
        ({"size_divisor": 16}, (16, 32)),
        ({"pad_to_square": True}, (20, 20)),
        ({"pad_to_square": True, "size_divisor": 16}, (32, 32)),
    ],
)
def test_pad(kwargs, shape):
    results = Pad(**kwargs, pad_val={"seg": 0})(scene())
    assert results["img_shape"] == shape
    assert results["pad_shape"] == (*shape, 3)
    assert_aligned(results)


def test_pad_values():
    results = Pad(size=(21, 16), pad_val={"img": [1, 2, 3], "masks": 1, "seg": 9})(scene())
    np.testing.assert_array_equal(results["img"][:, 20], [[1, 2, 3]] * 16)
    np.testing.assert_array_equal(results["gt_masks"].masks[0, :, 20], 1)
    np.testing.assert_array_equal(results["gt_seg_map"][:, 20], 9)
    plain = Pad(size=(21, 16), pad_val=114.0)(scene())
    np.testing.assert_array_equal(plain["img"][:, 20], 114)
    np.testing.assert_array_equal(plain["gt_seg_map"][:, 20], 255)
    edge = Pad(size=(22, 16), padding_mode="edge")(scene())
    np.testing.assert_array_equal(edge["img"][:, 20:], cv2.copyMakeBorder(scene()["img"][:, 19:], 0, 0, 0, 1, 1))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({}, ValueError, "one of size, size_divisor and pad_to_square was expected"),
        ({"size": (5, 5), "size_divisor": 2}, ValueError, r"got size=\(5, 5\), size_divisor=2"),
        ({"size": (5, 5), "pad_to_square": True}, ValueError, "exclude each other"),
        ({"size_divisor": 0}, ValueError, "size_divisor: a positive number was expected, got 0"),
        ({"size_divisor": 2, "padding_mode": "zero"}, ValueError, "padding_mode: one of constant, .* got 'zero'"),
        ({"size_divisor": 2, "pad_val": {"mask": 0}}, KeyError, r"pad_val\.mask: unknown key; did you mean 'masks'"),
    ],
)
def test_wrong_arguments_of_pad(kwargs, error, message):
    with pytest.raises(error, match=message):
        Pad(**kwargs)
