"""CopyPaste on pictures whose objects can be found again, and what is wrong with its input."""

import numpy as np
import pytest
from transforms.squares import assert_boxes_lie_on_squares, squares

from detkit.registry import TRANSFORMS
from detkit.transforms import CopyPaste, RandomErasing, SegRescale


def halves():
    """A picture with the first two objects and one with all, which has the others at their own places."""
    first, other = squares(2, masks=True), squares(4, masks=True)
    return first, {**other, **{key: other[key][np.array([2, 3])] for key in FIELDS}}


FIELDS = ("gt_bboxes", "gt_bboxes_labels", "gt_ignore_flags", "gt_masks")


def test_pasted_objects_come_with_all_they_have():
    first, other = halves()
    results = CopyPaste(selected=False)({**first, "mix_results": [other], "instances": [{"ann_id": 5}]})
    assert_boxes_lie_on_squares(results)
    assert results["gt_bboxes_labels"].tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(results["img"], squares(4)["img"])
    assert results["img"].dtype == np.uint8
    assert "instances" not in results
    np.testing.assert_array_equal(first["img"], squares(2)["img"])
    assert len(other["gt_bboxes"]) == 2


def test_how_many_are_pasted_is_drawn():
    counts = set()
    for seed in range(30):
        np.random.seed(seed)
        first, other = halves()
        results = CopyPaste()({**first, "mix_results": [other]})
        assert_boxes_lie_on_squares(results)
        counts.add(len(results["gt_bboxes"]))
    assert counts == {2, 3, 4}
    np.random.seed(0)
    first, other = halves()
    assert all(len(CopyPaste(max_num_pasted=1)({**first, "mix_results": [other]})["gt_bboxes"]) == 2 for _ in "abc")


def test_what_is_pasted_over_is_cut_out_or_dropped():
    below = squares(1, masks=True)  # 20 x 12 pixels from (6, 8) on
    above = squares(1, masks=True)
    above["gt_masks"].masks[:] = 0
    above["gt_masks"].masks[0, 8:20, 6:20] = 1  # leaves 6 columns
    kept = CopyPaste(selected=False, bbox_occluded_thr=0, mask_occluded_thr=71)({**below, "mix_results": [above]})
    np.testing.assert_array_equal(kept["gt_bboxes"], [[20, 8, 26, 20], [6, 8, 26, 20]])
    assert kept["gt_masks"].areas.tolist() == [6 * 12, 14 * 12]
    gone = CopyPaste(selected=False, bbox_occluded_thr=0, mask_occluded_thr=72)({**below, "mix_results": [above]})
    assert len(gone["gt_bboxes"]) == 1
    near = CopyPaste(selected=False, bbox_occluded_thr=14, mask_occluded_thr=72)({**below, "mix_results": [above]})
    assert len(near["gt_bboxes"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mix_results": []}, r"1 other image was expected in 'mix_results', got 0"),
        ({"gt_masks": None}, r"no masks; set with_mask=True of LoadAnnotations, or paste_by_box=True"),
        ({"gt_seg_map": np.zeros((64, 96))}, r"the image has a segmentation map"),
        (
            {"mix_results": [squares(1, masks=True, shape=(64, 90))]},
            r"images of one size .* \(64, 96, 3\) and \(64, 90",
        ),
    ],
)
def test_a_wrong_input_is_refused(change, message):
    first, other = halves()
    with pytest.raises(ValueError, match=message):
        CopyPaste(selected=False)({**first, "mix_results": [other], **change})


def test_erased_objects_go_and_the_input_stays():
    results = squares(2, masks=True)
    results["gt_seg_map"] = np.zeros((64, 96), dtype=np.uint8)
    step = RandomErasing(1, 0.5, bbox_erased_thr=0.5, mask_border_value=0)
    step._draw = lambda *shape: np.array([[0, 0, 50, 64]])  # all of the first, half of the second
    out = step(dict(results))
    assert len(out["gt_bboxes"]) == 0
    step.bbox_erased_thr = 0.51
    out = step(dict(results))
    assert out["gt_bboxes_labels"].tolist() == [1]
    assert out["gt_masks"].areas.tolist() == [200]
    assert (out["gt_seg_map"] == 255).sum() == 50 * 64
    np.testing.assert_array_equal(results["img"], squares(2)["img"])
    assert results["gt_masks"].areas.tolist() == [240, 400]


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"type": "CopyPaste", "max_num_pasted": 0}, "max_num_pasted"),
        ({"type": "RandomErasing", "n_patches": (3, 1), "ratio": 0.5}, "n_patches"),
        ({"type": "RandomErasing", "n_patches": 1, "ratio": 1.0}, "ratio"),
        ({"type": "SegRescale", "scale_factor": 0}, "scale_factor"),
    ],
)
def test_wrong_arguments(cfg, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(cfg)


def test_a_map_that_is_not_there_is_told():
    with pytest.raises(ValueError, match=r"squares\.png: no segmentation map"):
        SegRescale(0.5)(squares())
