"""Laws of the steps that draw: boxes stay on their objects, a seed decides, nobody's arrays are written into."""

import numpy as np
import pytest
from transforms.squares import assert_boxes_lie_on_squares, found, squares

from detkit.registry import TRANSFORMS
from detkit.structures import PolygonMasks
from detkit.transforms import Expand, MinIoURandomCrop, PhotoMetricDistortion, RandomAffine, RandomCrop, RandomShift

STEPS = {
    "crop": {"type": "RandomCrop", "crop_size": (60, 40)},
    "crop_range": {"type": "RandomCrop", "crop_size": (30, 90), "crop_type": "absolute_range"},
    "crop_relative": {"type": "RandomCrop", "crop_size": (0.4, 0.4), "crop_type": "relative_range"},
    "min_iou": {"type": "MinIoURandomCrop", "min_ious": (0.05,)},
    "expand": {"type": "Expand", "prob": 1.0, "ratio_range": (1, 2)},
    "shift": {"type": "RandomShift", "prob": 1.0, "max_shift_px": 30},
    "affine": {"type": "RandomAffine", "max_rotate_degree": 0.0, "max_shear_degree": 0.0, "border_val": (0, 0, 0)},
    "affine_border": {
        "type": "RandomAffine",
        "max_rotate_degree": 0.0,
        "max_shear_degree": 0.0,
        "scaling_ratio_range": (1.0, 1.6),
        "border": (-8, 10),
        "border_val": (0, 0, 0),
    },
    "hsv": {"type": "YOLOXHSVRandomAug"},
    "resize": {"type": "RandomResize", "scale": (96, 64), "ratio_range": (0.5, 2.0), "keep_ratio": True},
    "resize_between": {"type": "RandomResize", "scale": [[60, 40], [120, 90]]},
    "choice": {"type": "RandomChoiceResize", "scales": [(60, 40), [120, 80], 100], "keep_ratio": False},
    "fixed": {"type": "FixShapeResize", "width": 128, "height": 128, "keep_ratio": True},
}


def run(step, seed, **kwargs):
    results = squares(**kwargs)
    np.random.seed(seed)
    return TRANSFORMS.build(step)(results)


@pytest.mark.parametrize("name", STEPS)
def test_boxes_and_masks_stay_on_their_objects(name):
    seen = 0
    for seed in range(12):
        results = run(STEPS[name], seed, masks=True)
        if results is not None:
            assert_boxes_lie_on_squares(results, tolerance=1.6)
            seen += len(results["gt_bboxes"])
    assert seen > 10


@pytest.mark.parametrize("name", STEPS)
def test_a_seed_decides_and_the_input_stays_as_it_is(name):
    given = squares()
    kept = {key: np.array(value) for key, value in given.items() if isinstance(value, np.ndarray)}
    arrays = {key: given[key] for key in kept}
    for array in arrays.values():
        array.flags.writeable = False
    np.random.seed(3)
    first = TRANSFORMS.build(STEPS[name])(dict(given))
    second = run(STEPS[name], 3)
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, kept[key])
    for key in kept:
        np.testing.assert_array_equal(first[key], second[key])
    pictures = {first["img"].tobytes(), *(run(STEPS[name], seed)["img"].tobytes() for seed in range(4, 10))}
    assert (len(pictures) == 1) == (name == "fixed")  # the one that draws nothing


@pytest.mark.parametrize("name", [name for name in STEPS if name not in ("crop", "crop_range", "crop_relative")])
def test_an_image_without_objects_passes(name):
    results = run(STEPS[name], 0, count=0)
    assert results["gt_bboxes"].shape == (0, 4)
    assert results["gt_bboxes"].dtype == np.float32


def test_a_crop_without_objects_is_dropped_unless_it_is_allowed():
    assert RandomCrop((20, 20))(squares(0)) is None
    results = RandomCrop((20, 20), allow_negative_crop=True)(squares(0))
    assert results["img"].shape == (20, 20, 3)
    assert len(results["gt_bboxes"]) == 0


def test_a_cut_of_a_demanding_iou_keeps_what_it_demands():
    np.random.seed(0)
    step = MinIoURandomCrop(min_ious=(0.9,))
    step._modes = (0.9, 1)
    for _ in range(10):
        results = step({**squares(1), "gt_bboxes": np.array([[2, 2, 94, 62]], dtype=np.float32)})
        x1, y1, x2, y2 = results["gt_bboxes"][0]
        # The part and the object overlap by 0.9, so that most of the object is left.
        assert (x2 - x1) * (y2 - y1) > 0.9 * 92 * 60


def test_a_rotated_box_holds_its_object():
    np.random.seed(1)
    step = RandomAffine(max_rotate_degree=40, max_translate_ratio=0, scaling_ratio_range=(0.5, 0.6), max_shear_degree=5)
    step.border, step.border_val = (30, 30), (0, 0, 0)
    for _ in range(8):
        results = step(squares())
        for box, label in zip(results["gt_bboxes"], results["gt_bboxes_labels"], strict=True):
            inner = found(results["img"], label)
            if inner is not None and (box[2:] - box[:2]).min() > 3:
                assert (inner[:2] >= box[:2] - 1.5).all()
                assert (inner[2:] <= box[2:] + 1.5).all()


def test_the_canvas_has_the_mean_and_maps_their_label():
    np.random.seed(0)
    results = {**squares(masks=True), "gt_seg_map": np.zeros((64, 96), dtype=np.uint8)}
    results = Expand(mean=(1, 2, 3), ratio_range=(2, 2), seg_ignore_label=9, prob=1.0)(results)
    assert results["img"].shape == (128, 192, 3)
    corner = results["img"][0, 0] if results["gt_seg_map"][0, 0] == 9 else results["img"][-1, -1]
    np.testing.assert_array_equal(corner, [3, 2, 1])  # BGR
    assert (results["gt_seg_map"] == 0).sum() == 64 * 96


def test_nothing_is_left_undrawn_by_the_distortion():
    np.random.seed(0)
    img = np.tile(np.array([30, 90, 200], dtype=np.uint8), (2, 2, 1))
    drawn = np.stack([PhotoMetricDistortion()({"img": img})["img"][0, 0] for _ in range(200)])
    assert drawn.dtype == np.float32
    assert (np.ptp(drawn, axis=0) > 60).all()
    unchanged = np.isclose(drawn, [30, 90, 200], atol=0.01).all(axis=1).sum()
    assert 0 < unchanged < 30  # brightness, contrast, saturation, hue and order all left out: 1 of 32


def test_a_shift_that_loses_all_objects_is_not_made():
    np.random.seed(0)
    step = RandomShift(prob=1.0, max_shift_px=30)
    step._draw = lambda: (90, 0)
    results = step(squares(1))
    np.testing.assert_array_equal(results["img"], squares(1)["img"])
    np.testing.assert_array_equal(results["gt_bboxes"], squares(1)["gt_bboxes"])


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"type": "RandomCrop", "crop_size": (5, 0)}, r"two whole positive numbers were expected .* got \(5, 0\)"),
        ({"type": "RandomCrop", "crop_size": (5, 5), "crop_type": "relativ"}, "got 'relativ'"),
        ({"type": "RandomCrop", "crop_size": (0.5, 2), "crop_type": "relative"}, r"in \(0, 1\]"),
        ({"type": "RandomCrop", "crop_size": (9, 5), "crop_type": "absolute_range"}, "the smaller first"),
        ({"type": "MinIoURandomCrop", "min_ious": (0.5, 1.5)}, r"min_ious: .* got \(0\.5, 1\.5\)"),
        ({"type": "MinIoURandomCrop", "min_crop_size": 0}, "min_crop_size"),
        ({"type": "Expand", "ratio_range": (0.5, 2)}, "factors of at least 1"),
        ({"type": "Expand", "prob": 2}, "prob: a probability"),
        ({"type": "RandomShift", "max_shift_px": -1}, "max_shift_px: .* got -1"),
        ({"type": "RandomAffine", "scaling_ratio_range": (0, 1)}, "scaling_ratio_range"),
        ({"type": "RandomAffine", "max_translate_ratio": 1.5}, "max_translate_ratio"),
        ({"type": "PhotoMetricDistortion", "contrast_range": (2, 1)}, "contrast_range: .* the smaller first"),
        ({"type": "PhotoMetricDistortion", "hue_delta": -1}, "hue_delta"),
        ({"type": "YOLOXHSVRandomAug", "value_delta": -1}, "at least 0"),
        ({"type": "CutOut", "n_holes": 1}, "one of cutout_shape and cutout_ratio"),
        ({"type": "CutOut", "n_holes": (3, 1), "cutout_shape": (2, 2)}, "n_holes"),
        ({"type": "RandomResize", "scale": (5, 5)}, "or one with a ratio_range"),
        ({"type": "RandomResize", "scale": [(5, 5), (6, 6)], "ratio_range": (1, 2)}, "scale: two sizes"),
        ({"type": "RandomChoiceResize", "scales": []}, "scales: sizes"),
        ({"type": "Mosaic", "img_scale": 640}, "img_scale: .* got 640"),
        ({"type": "Mosaic", "center_ratio_range": (0.5, 2.5)}, "below 2"),
        ({"type": "MixUp", "flip_ratio": -0.5}, "flip_ratio"),
        ({"type": "MixUp", "max_iters": 0}, "max_iters"),
        ({"type": "CachedMosaic", "max_cached_images": 3}, "max_cached_images: at least 4"),
        ({"type": "CachedMixUp", "max_cached_images": 1}, "max_cached_images: at least 2"),
        ({"type": "RandomCenterCropPad", "crop_size": (5, 5)}, "mean, std and to_rgb"),
        (
            {
                "type": "RandomCenterCropPad",
                "mean": [0],
                "std": [1],
                "to_rgb": True,
                "crop_size": (5, 5),
                "border": -1,
                "test_pad_mode": None,
            },
            "border: .* got -1",
        ),
        (
            {"type": "RandomCenterCropPad", "mean": [0], "std": [1], "to_rgb": True, "test_mode": True},
            "ratios: None was expected with test_mode=True",
        ),
    ],
)
def test_wrong_arguments(cfg, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(cfg)


def test_sides_are_rounded_down_where_they_are_to_be():
    given = {"scale": (50, 60), "keep_ratio": True}
    for name, height in (("Resize", 43), ("FixScaleResize", 42)):  # of 71 * 60 / 100 = 42.6
        results = TRANSFORMS.build({"type": name, **given})({"img": np.zeros((71, 100, 3), np.uint8)})
        assert results["img"].shape[:2] == results["img_shape"] == (height, 60)
        assert results["scale_factor"] == (0.6, height / 71)


@pytest.mark.parametrize("name", ["RandomResize", "RandomChoiceResize"])
def test_an_argument_that_the_inner_resize_does_not_take(name):
    sizes = {"scale": [(5, 5), (6, 6)]} if name == "RandomResize" else {"scales": [5]}
    with pytest.raises(TypeError, match="keep_ration"):
        TRANSFORMS.build({"type": name, **sizes, "keep_ration": True})


def test_a_window_may_lie_around_any_point():
    cfg = {"type": "RandomCenterCropPad", "crop_size": (40, 30), "border": 0, "test_pad_mode": None}
    step = TRANSFORMS.build(cfg | {"mean": [0, 0, 0], "std": [1, 1, 1], "to_rgb": True})
    results = squares()
    results["img"] = results["img"].astype(np.float32)
    assert step(results)["img"].shape[:2] in {(27, 36), (30, 40), (33, 44)}


def test_a_window_takes_masks_and_the_map_along():
    cfg = {"type": "RandomCenterCropPad", "crop_size": (100, 70), "border": 16, "test_pad_mode": None}
    step = TRANSFORMS.build(cfg | {"mean": [0, 0, 0], "std": [1, 1, 1], "to_rgb": True})
    seen = 0
    for seed in range(8):
        np.random.seed(seed)
        results = squares(masks=True)
        results["gt_seg_map"] = results["gt_masks"].masks.max(axis=0) * 7
        results["img"] = results["img"].astype(np.float32)
        results = step(results)
        assert_boxes_lie_on_squares(results)
        assert results["gt_seg_map"].shape == results["img_shape"]
        np.testing.assert_array_equal(results["gt_seg_map"] == 7, results["img"].any(axis=-1))
        assert set(np.unique(results["gt_seg_map"])) <= {0, 7, 255}
        seen += len(results["gt_bboxes"])
    assert seen > 15


def test_an_affine_step_takes_polygons_and_the_map_along():
    np.random.seed(2)
    step = RandomAffine(max_rotate_degree=30, max_translate_ratio=0.1, border_val=(0, 0, 0))
    for _ in range(4):
        results = squares(masks=True)
        results["gt_seg_map"] = results["gt_masks"].masks.max(axis=0) * 7
        results["gt_masks"] = polygons_of(results["gt_bboxes"], (64, 96))
        results = step(results)
        shown = results["gt_masks"].to_ndarray().max(axis=0)
        assert shown.shape == results["img_shape"] == results["gt_seg_map"].shape
        inside = results["img"].max(axis=-1) > 125
        # Borders may differ by a pixel: corners and pixel centres are half a pixel apart.
        assert (shown == inside).mean() > 0.94
        assert ((results["gt_seg_map"] == 7) == inside).mean() > 0.98
        assert (results["gt_seg_map"] == 255).any()


def polygons_of(boxes, shape):
    return PolygonMasks([[box[[0, 1, 2, 1, 2, 3, 0, 3]]] for box in boxes], *shape)
