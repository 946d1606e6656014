"""Suppression against MMCV's and MMDetection's results, by hand and by its laws, and what its configs may say."""

import math
from importlib import import_module

import pytest
import torch
from reference import arguments, assert_same, cases

from detkit import ops
from detkit.ops import NMS_KINDS, batched_nms, fast_nms, mask_matrix_nms, multiclass_nms, nms, soft_nms
from detkit.ops.nms import HardNMS, _keep_in_rows, _keep_of_groups
from detkit.ops.nms_rows import MAX_ROW

NAMES = ("batched_nms", "fast_nms", "mask_matrix_nms", "multiclass_nms", "nms", "soft_nms")
ALL = [case for name in NAMES for case in cases(f"nms/{name}")]
GOOD = [case for case in ALL if "error" not in case.values[0]]
# Of no boxes MMCV fails, and detkit returns none. What lacks a value, or names an unknown one, both refuse.
EMPTY = [case for case in ALL if case.id.endswith("_empty") and "error" in case.values[0]]
REFUSED = [case for case in ALL if case.id in ("default_iou", "default_iou_empty", "other")]
SQUARE = torch.tensor([0.0, 0, 10, 10])


def call(case):
    return getattr(ops, case["config"]["type"])(**arguments(case["inputs"]))


def random_boxes(count, seed=0, size=100.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size
    boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 20], dim=1)
    return boxes, torch.rand(count, generator=generator), torch.randint(0, 7, (count,), generator=generator)


@pytest.mark.parametrize("case", GOOD)
def test_reference(case):
    assert_same(call(case), case["outputs"]["out"], 1e-5, 1e-5)


@pytest.mark.parametrize("case", [case for case in EMPTY if case not in REFUSED])
def test_of_nothing_nothing_is_kept(case):
    dets, keep = call(case)
    assert dets.shape == (0, 5)
    assert keep.shape == (0,)


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_reference_refuses_is_refused(case):
    with pytest.raises((TypeError, ValueError), match=r"'iou_threshold' is missing|unknown kernel 'other'"):
        call(case)


def test_every_function_takes_no_boxes():
    boxes, scores, labels = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long()
    assert nms(boxes, scores, 0.5)[0].shape == soft_nms(boxes, scores)[0].shape == (0, 5)
    dets, found, coefficients = fast_nms(boxes, torch.zeros(0, 3), torch.zeros(0, 6), 0.1, 0.5, 10)
    assert (dets.shape, found.shape, coefficients.shape) == ((0, 5), (0,), (0, 6))
    assert [len(part) for part in mask_matrix_nms(torch.zeros(0, 2, 2), labels, scores, filter_thr=0.1)] == [0] * 4
    cfg = {"type": "soft_nms"}
    assert [part.shape for part in multiclass_nms(boxes, torch.zeros(0, 3), 0.1, cfg)] == [(0, 5), (0,)]


def test_boxes_of_different_classes_do_not_suppress_each_other():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 9]])
    _, keep = batched_nms(boxes, torch.tensor([0.5, 0.9, 0.8]), torch.tensor([0, 1, 1]), {"iou_threshold": 0.5})
    assert keep.tolist() == [1, 0]


@pytest.mark.parametrize("wild", [math.inf, -math.inf, math.nan, 1e30])
@pytest.mark.parametrize("count", [3, 300])
def test_a_box_without_end_does_not_keep_others_from_suppressing(wild, count):
    """Neither in one call of all groups nor by chunks."""
    pair = torch.tensor([[10.0, 10, 20, 20], [10, 10, 20, 21]])
    boxes = torch.cat([torch.tensor([[0.0, 0, wild, 5]]), pair.repeat(count, 1)])
    groups = torch.cat([torch.zeros(1), torch.arange(count).repeat_interleave(2)]).long()
    scores = torch.linspace(1, 0.1, len(boxes))
    _, keep = batched_nms(boxes, scores, groups, {"type": "nms", "iou_threshold": 0.5})
    assert keep.tolist() == [0, *range(1, len(boxes), 2)]


def test_classes_stay_apart_at_negative_coordinates():
    boxes = torch.tensor([[0.0, 0, 100, 100], [-101.0, -101, -1, -1]])
    _, keep = batched_nms(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), {"iou_threshold": 0.5})
    assert keep.tolist() == [0, 1]


@pytest.mark.parametrize("label", [0, 79, 1202])
def test_the_label_does_not_round_the_overlap(label):
    # IoU 2/3, on both sides of the threshold
    boxes = torch.tensor([[1330.0, 1330, 1332.4, 1332], [1330.0, 1330, 1331.6, 1332]])
    for threshold, kept in ((0.66, 1), (0.67, 2)):
        _, keep = batched_nms(boxes, torch.ones(2), torch.full((2,), label), {"iou_threshold": threshold})
        assert len(keep) == kept


@pytest.mark.parametrize("kind", [{"type": "nms", "iou_threshold": 0.4}, {"type": "soft_nms", "min_score": 0.05}])
def test_groups_in_one_call_equal_one_call_each(kind):
    """More boxes than the kernel gets at a time, scores with ties."""
    boxes, scores, labels = random_boxes(1500)
    scores = (scores * 50).round() / 50
    dets, keep = batched_nms(boxes, scores, labels, kind)
    expected_scores, expected = torch.zeros_like(scores), []
    for label in range(7):
        own = (labels == label).nonzero().squeeze(1)
        own_dets, own_keep = batched_nms(boxes[own], scores[own], torch.zeros_like(own), kind)
        expected.append(own[own_keep])
        expected_scores[own[own_keep]] = own_dets[:, 4]
    found = torch.cat(expected).sort().values
    assert len(found) < 1400
    assert torch.equal(keep, found[expected_scores[found].argsort(descending=True, stable=True)])
    torch.testing.assert_close(dets, torch.cat([boxes[keep], expected_scores[keep, None]], dim=1))


def test_a_group_larger_than_a_chunk_stays_whole():
    boxes, scores, labels = random_boxes(1500, seed=1)
    groups = torch.where(labels < 6, 3, 1)
    whole, _ = HardNMS(0.5)(boxes[groups == 3], scores[groups == 3], None)
    _, keep = HardNMS(0.5)(boxes, scores, groups)
    assert torch.equal(scores[keep[groups[keep] == 3]], whole)


def test_the_offset_counts_the_last_pixel():
    # 10 x 10 and 10 x 6 share 60 of 100 cells; with the last pixel counted 77 of 121.
    boxes = torch.stack([SQUARE, torch.tensor([0.0, 0, 10, 6])])
    assert len(nms(boxes, torch.ones(2), 0.61)[1]) == 2
    assert len(nms(boxes, torch.ones(2), 0.61, offset=1)[1]) == 1


@pytest.mark.parametrize(
    ("method", "factor"), [("naive", 0.0), ("linear", 0.4), ("gaussian", math.exp(-(0.6**2) / 0.5))]
)
def test_soft_nms_by_hand(method, factor):
    """IoU 0.6 with the best box, none with the third."""
    boxes = torch.stack([torch.tensor([0.0, 0, 10, 6]), SQUARE, SQUARE + 20])
    dets, keep = soft_nms(boxes, torch.tensor([0.8, 0.9, 0.5]), 0.5, 0.5, 0.0, method)
    assert keep.tolist() == ([1, 0, 2] if 0.8 * factor > 0.5 else [1, 2, 0])
    assert sorted(dets[:, 4].tolist(), reverse=True) == pytest.approx(sorted([0.9, 0.8 * factor, 0.5], reverse=True))


def test_naive_soft_nms_is_hard_nms():
    boxes, scores, _ = random_boxes(300)
    assert torch.equal(
        soft_nms(boxes, scores, 0.5, method="naive")[1], nms(boxes, scores, 0.5, score_threshold=1e-3)[1]
    )


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms_takes_equal_and_empty_boxes(method):
    boxes = torch.stack([SQUARE, SQUARE, SQUARE * 0, SQUARE * 0])
    dets, keep = soft_nms(boxes, torch.tensor([0.9, 0.9, 0.4, 0.3]), method=method)
    assert torch.isfinite(dets).all()
    assert [index for index in keep.tolist() if index != 1] == [0, 2, 3]


@pytest.mark.parametrize("offset", [0, 1])
def test_soft_nms_without_a_table_of_weights(monkeypatch, offset):
    boxes, scores, labels = random_boxes(200)
    suppress = NMS_KINDS["soft_nms"](method="gaussian", offset=offset)
    expected = suppress(boxes, scores, labels)
    monkeypatch.setattr(import_module("detkit.ops.soft_nms"), "TABLE_ELEMENTS", 0)
    assert_same(suppress(boxes, scores, labels), expected, 1e-5, 1e-6)


def test_soft_nms_stops_when_enough_are_found():
    boxes, scores, labels = random_boxes(400)
    suppress = NMS_KINDS["soft_nms"](method="gaussian")
    all_scores, all_index = suppress(boxes, scores, labels)
    some_scores, some_index = suppress(boxes, scores, labels, 20)
    assert torch.equal(some_index[:20], all_index[:20])
    assert torch.equal(some_scores[:20], all_scores[:20])


@pytest.mark.parametrize("kind", [{"type": "nms", "iou_threshold": 0.5}, {"type": "soft_nms"}])
def test_at_most_max_num(kind):
    boxes, scores, labels = random_boxes(100)
    dets, keep = batched_nms(boxes, scores, labels, kind)
    for limit, expected in ((3, 3), (0, len(keep)), (-1, len(keep))):
        some, index = batched_nms(boxes, scores, labels, {**kind, "max_num": limit})
        assert torch.equal(some, dets[:expected])
        assert torch.equal(index, keep[:expected])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [{"type": "nms", "iou_threshold": 0.5}, {"type": "soft_nms"}])
def test_results_have_the_dtype_of_the_boxes(dtype, kind):
    boxes, scores, labels = random_boxes(50)
    dets, _ = batched_nms(boxes.to(dtype), scores.to(dtype), labels, kind)
    assert dets.dtype == dtype


def test_a_mask_that_is_itself_suppressed_suppresses_less():
    """Masks of a row: 0-9, 0-9 again, 5-14. The second loses all; the third by its IoU 1/3 with the first alone."""
    masks = torch.zeros(3, 1, 20)
    masks[:2, :, :10] = 1
    masks[2, :, 5:15] = 1
    scores, labels, _, index = mask_matrix_nms(
        masks, torch.zeros(3).long(), torch.tensor([0.9, 0.8, 0.6]), kernel="linear"
    )
    assert index.tolist() == [0, 2, 1]
    assert scores.tolist() == pytest.approx([0.9, 0.6 * 2 / 3, 0.0])
    assert labels.tolist() == [0, 0, 0]


def test_a_kind_of_ones_own_is_named_in_the_table(monkeypatch):
    monkeypatch.setitem(NMS_KINDS, "strict_nms", HardNMS)
    assert len(batched_nms(*random_boxes(5), {"type": "strict_nms", "iou_threshold": 1.0})[1]) == 5


@pytest.mark.parametrize(
    ("cfg", "error", "message"),
    [
        ({"type": "nms", "iou_thr": 0.5}, KeyError, r"nms\.iou_thr: unknown key; did you mean 'iou_threshold'"),
        ({"type": "nms", "iou_threshold": 0.5, "sigma": 1}, KeyError, r"nms\.sigma: unknown key"),
        ({"type": "mns", "iou_threshold": 0.5}, ValueError, r"nms\.type: unknown kind 'mns'; did you mean 'nms'"),
        ({"type": "softnms"}, ValueError, r"nms\.type: unknown kind 'softnms'; did you mean 'soft_nms'"),
        ({"iou_threshold": 50}, ValueError, r"nms\.iou_threshold must be in \[0, 1\], got 50"),
        ({"iou_threshold": "0.5"}, TypeError, r"nms\.iou_threshold must be a number, got '0\.5'"),
        ({"iou_threshold": 0.5, "max_num": 1.5}, TypeError, r"nms\.max_num must be a whole number, got 1\.5"),
        ({"type": "soft_nms", "sigma": 0}, ValueError, r"nms\.sigma must be in \(0, inf\), got 0"),
        (
            {"type": "soft_nms", "method": "gauss"},
            ValueError,
            r"nms\.method: unknown .*'gauss'; did you mean 'gaussian'",
        ),
        (0.5, TypeError, r"nms: a dict such as .* was expected, got 0\.5"),
    ],
)
def test_wrong_configs_name_the_key(cfg, error, message):
    with pytest.raises(error, match=message):
        batched_nms(*random_boxes(1), cfg)


@pytest.mark.parametrize(("count", "pairs"), [(1, 1 << 26), (300, 1 << 26), (2000, 1 << 20), (2000, 1)])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.1, 0.5, 1.0])
def test_rows_keep_what_the_kernel_keeps(count, pairs, iou_threshold, monkeypatch):
    """All rows at once, some at a time, one at a time."""
    module = import_module("detkit.ops.nms_rows")
    monkeypatch.setattr(module, "PAIRS", pairs)
    monkeypatch.setattr(module, "PAIRS_COMPARED", max(pairs // 8, 1 << 14))
    boxes, scores, _ = random_boxes(count)
    scores = (scores * 50).round() / 50  # some are equal
    groups = torch.arange(count) % 40  # rows have several
    expected = _keep_of_groups(boxes, scores, groups, iou_threshold)
    assert torch.equal(_keep_in_rows(boxes, scores, groups, iou_threshold), expected)


def test_rows_settle_a_chain_longer_than_their_rounds():
    """Each box beats the next: every other one stays."""
    start = torch.arange(101.0)
    boxes = torch.stack([start, torch.zeros(101), start + 3, torch.ones(101)], dim=1)
    scores = torch.linspace(1, 0, 101)
    keep = _keep_in_rows(boxes, scores, torch.zeros(101, dtype=torch.int64), 0.4)
    assert keep.tolist() == list(range(0, 101, 2))


INF = math.inf
ODD_BOXES = {
    "without area": [[5.0, 5, 5, 5], [5, 5, 5, 5], [5, 5, 6, 6]],
    "infinite": [[0, 0, INF, INF], [0, 0, INF, INF], [0, 0, 5, 5]],
    "infinite to all sides": [[-INF, -INF, INF, INF], [-INF, -INF, INF, INF], [0, 0, 5, INF]],
    "huge": [[0, 0, 1e20, 1e20], [0, 0, 1e20, 1e20], [0, 0, 5, 5]],
    "no number": [[0, 0, math.nan, 5], [0, 0, 5, 5], [0, 0, 5, 5]],
}


@pytest.mark.parametrize("group", [0, -1, -2])
@pytest.mark.parametrize("boxes", ODD_BOXES.values(), ids=ODD_BOXES)
def test_rows_take_odd_boxes_and_groups_as_the_kernel_does(boxes, group):
    boxes, scores = torch.tensor(boxes), torch.tensor([0.9, 0.8, 0.7])
    expected = _keep_of_groups(boxes, scores, torch.zeros(3, dtype=torch.int64), 0.5)
    assert torch.equal(_keep_in_rows(boxes, scores, torch.full((3,), group), 0.5), expected)


def test_rows_build_no_graph():
    boxes, scores, groups = random_boxes(300)
    boxes.requires_grad_()
    expected = _keep_of_groups(boxes.detach(), scores, groups, 0.5)
    assert torch.equal(_keep_in_rows(boxes, scores, groups, 0.5), expected)


@pytest.mark.parametrize("others", [0, 1, 500])
def test_a_group_longer_than_a_row_goes_to_the_kernel(others):
    boxes, scores, groups = random_boxes(MAX_ROW + 1 + others, size=2000.0)
    groups[others:] = 3
    expected = _keep_of_groups(boxes, scores, groups, 0.5)
    assert torch.equal(_keep_in_rows(boxes, scores, groups, 0.5), expected)
