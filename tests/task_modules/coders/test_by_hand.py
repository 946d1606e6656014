"""Box coders in numbers that one can check by hand, and what their constructors refuse."""

import math

import pytest
import torch

from detkit.registry import TASK_UTILS
from detkit.task_modules.coders import (
    BucketingBBoxCoder,
    DeltaXYWHBBoxCoder,
    DeltaXYWHBBoxCoderForGLIP,
    DistancePointBBoxCoder,
    LegacyDeltaXYWHBBoxCoder,
    TBLRBBoxCoder,
    YOLOBBoxCoder,
    encode_finite,
)


def test_delta_by_hand():
    # Prior centre (5, 5), size 10; object centre (6, 5), size 20 x 10
    deltas = DeltaXYWHBBoxCoder().encode(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[-4.0, 0, 16, 10]]))
    torch.testing.assert_close(deltas, torch.tensor([[0.1, 0.0, math.log(2), 0.0]]))


def test_a_side_of_no_length_leaves_that_of_its_prior():
    flat, prior = torch.tensor([[2.0, 3, 2, 13]]), torch.tensor([[0.0, 0, 10, 10]])
    assert DeltaXYWHBBoxCoder().encode(prior, flat)[0, 2] == -math.inf
    # From centre (5, 5) to (2, 8), in sides of 10
    torch.testing.assert_close(encode_finite(DeltaXYWHBBoxCoder(), prior, flat), torch.tensor([[-0.3, 0.3, 0, 0]]))
    assert encode_finite(DeltaXYWHBBoxCoder(), flat, flat).tolist() == [[0, 0, 0, 0]]


def test_one_pixel_more_or_less():
    prior, gt = torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([[0.0, 0, 19, 9]])
    # Ten and twenty pixels wide; centre from 4.5 to 9.5
    deltas = LegacyDeltaXYWHBBoxCoder().encode(prior, gt)
    torch.testing.assert_close(deltas, torch.tensor([[0.5, 0.0, math.log(2), 0.0]]))
    # Nothing moves: 9 pixels wide around (4, 4), so from 0 to 8
    decoded = DeltaXYWHBBoxCoderForGLIP().decode(prior, torch.zeros(1, 4))
    assert decoded.tolist() == [[0, 0, 8, 8]]
    wide = torch.tensor([[-5.0, -5, 50, 50]])
    for coder in (LegacyDeltaXYWHBBoxCoder(), DeltaXYWHBBoxCoderForGLIP()):
        assert coder.decode(wide, torch.zeros(1, 4), max_shape=(20, 30)).tolist() == [[0, 0, 29, 19]]


def test_tblr_by_hand():
    # From (5, 10) up 8, down 12, left 5, right 7; over height 20 (twice), width 10 (twice), and 4
    code = TBLRBBoxCoder().encode(torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[0.0, 2, 12, 22]]))
    torch.testing.assert_close(code, torch.tensor([[8 / 80, 12 / 80, 5 / 40, 7 / 40]]))


def test_yolo_by_hand():
    prior, gt = torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([[2.0, 0, 18, 32]])
    # Centre (10, 16) is 2 right of and 8 below (8, 8): in the cell at 10/16 and 1; heights 32 : 16
    code = YOLOBBoxCoder(eps=0.25).encode(prior, gt, 16)
    torch.testing.assert_close(code, torch.tensor([[10 / 16, 0.75, 0.0, math.log(2)]]))


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_yolo_strides_may_have_a_last_dimension(shape):
    priors, strides = torch.tensor([[0.0, 0, 9, 7], [5, 5, 25, 35], [9, 0, 40, 30]]), torch.tensor([8.0, 16.0, 32.0])
    coder, code = YOLOBBoxCoder(), torch.arange(12.0).view(3, 4) / 12
    one_by_one = torch.cat([coder.decode(priors[i : i + 1], code[i : i + 1], float(strides[i])) for i in range(3)])
    assert torch.equal(coder.decode(priors, code, strides.view(shape)), one_by_one)
    batch = coder.decode(priors, code.expand(2, 3, 4), strides.view(shape))
    assert torch.equal(batch, one_by_one.expand(2, 3, 4))
    encoded = coder.encode(priors, one_by_one, strides.view(shape))
    torch.testing.assert_close(encoded[1:], code[1:])  # the first is at the border of its cell


def test_distance_by_hand():
    code = DistancePointBBoxCoder().encode(torch.tensor([[5.0, 5]]), torch.tensor([[2.0, 6, 15, 9]]))
    assert code.tolist() == [[3, -1, 10, 4]]
    clamped = DistancePointBBoxCoder().encode(
        torch.tensor([[5.0, 5]]), torch.tensor([[2.0, 6, 15, 9]]), max_dis=4, eps=0.5
    )
    assert clamped.tolist() == [[3, 0, 3.5, 3.5]]


def test_buckets_by_hand():
    # Four buckets over 0 … 40, so 10 wide: left centres 5, 15; right 35, 25. The left side of the object is at
    # 6, 0.1 bucket widths right of the first centre.
    coder = BucketingBBoxCoder(num_buckets=4, scale_factor=2.0)
    targets = coder.encode(torch.tensor([[10.0, 10, 30, 30]]), torch.tensor([[6.0, 5, 35, 20]]))
    left, right, top, bottom = targets.offsets.view(4, 2).tolist()
    assert left == pytest.approx([-0.1, 0.9])
    assert right == pytest.approx([0, -1])
    assert top == pytest.approx([0, 1])
    assert bottom == pytest.approx([1.5, 0.5])
    assert targets.labels.view(4, 2).tolist() == [[1, 0], [1, 0], [1, 0], [0, 1]]
    # A second bucket learns an offset where it is nearer than one width, and then is no wrong class either.
    assert targets.offset_weights.view(4, 2).tolist() == [[1, 1], [1, 0], [1, 0], [0, 1]]
    assert targets.label_weights.view(4, 2).tolist() == [[1, 0], [1, 1], [1, 1], [1, 1]]


def test_buckets_next_to_the_best_make_a_side_surer():
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.2, 0.3], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]).log().view(1, 12)
    coder = BucketingBBoxCoder(num_buckets=6, scale_factor=1.0)
    _, confidence = coder.decode(torch.tensor([[0.0, 0, 60, 60]]), (logits, torch.zeros(1, 12)))
    # 0.5 + 0.3; 0.5, the second best is not next to it; 0.8 + 0.1; 0.8, of the equal ones the first is second
    torch.testing.assert_close(confidence, torch.tensor([(0.8 + 0.5 + 0.9 + 0.8) / 4]))


def test_wrong_settings_are_refused():
    for coder in (DeltaXYWHBBoxCoder, LegacyDeltaXYWHBBoxCoder, DeltaXYWHBBoxCoderForGLIP):
        with pytest.raises(ValueError, match=rf"{coder.__name__}: target_stds needs 4 numbers, got \(1.0, 1.0\)"):
            coder(target_stds=(1.0, 1.0))
        with pytest.raises(ValueError, match=rf"{coder.__name__}: target_stds must be above 0, got \(0, 0, 0, 0\)"):
            coder(target_stds=(0, 0, 0, 0))
        with pytest.raises(ValueError, match=rf"{coder.__name__}: target_stds needs 4 numbers, got 'abcd'"):
            coder(target_stds="abcd")
        with pytest.raises(ValueError, match=rf"{coder.__name__}: target_means needs 4 numbers, got 0.5"):
            coder(target_means=0.5)
    with pytest.raises(ValueError, match=r"normalizer must be a number or 4 numbers, above 0, got \(1.0, 2.0\)"):
        TBLRBBoxCoder(normalizer=(1.0, 2.0))
    for wrong in (0, "4.0", "four", None, (4.0, 4.0, 0.0, 4.0)):
        with pytest.raises(ValueError, match="TBLRBBoxCoder: normalizer must be a number or 4 numbers, above 0, got "):
            TBLRBBoxCoder(normalizer=wrong)
    with pytest.raises(ValueError, match="num_buckets must be at least 3, got 2"):
        BucketingBBoxCoder(num_buckets=2, scale_factor=1.0)
    with pytest.raises(ValueError, match="offset_topk must be in 1 … 4, half of num_buckets 7, got 5"):
        BucketingBBoxCoder(num_buckets=7, scale_factor=1.0, offset_topk=5)
    with pytest.raises(ValueError, match=r"\(logits, offsets\) were expected, got 3 parts"):
        BucketingBBoxCoder(num_buckets=4, scale_factor=1.0).decode(torch.zeros(1, 4), (torch.zeros(1, 8),) * 3)


def test_box_types_are_asked_for_in_vain():
    prior = torch.tensor([[0.0, 0, 10, 10]])
    for name in ("DeltaXYWHBBoxCoder", "DeltaXYWHBBoxCoderForGLIP", "LegacyDeltaXYWHBBoxCoder", "TBLRBBoxCoder"):
        coder = TASK_UTILS.build({"type": name, "use_box_type": True})
        assert isinstance(coder.decode(prior, torch.zeros(1, 4)), torch.Tensor)
    for name in ("YOLOBBoxCoder", "DistancePointBBoxCoder", "PseudoBBoxCoder"):
        assert TASK_UTILS.build({"type": name, "use_box_type": True}).use_box_type
    assert BucketingBBoxCoder(num_buckets=14, scale_factor=3.0, use_box_type=True).use_box_type
