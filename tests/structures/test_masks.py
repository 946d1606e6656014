"""Bitmap and polygon masks do the same things to the same shapes."""

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from torchvision.ops import roi_align

from detkit.structures import BitmapMasks, PolygonMasks

HEIGHT, WIDTH = 20, 30
# A rectangle, and an object of two rectangles; as xyxy.
RECTANGLES = [[(4, 2, 10, 8)], [(12, 5, 20, 9), (22, 5, 26, 15)]]


def polygon(x1, y1, x2, y2):
    return np.array([x1, y1, x2, y1, x2, y2, x1, y2], dtype=np.float64)


def polygons(objects=RECTANGLES, height=HEIGHT, width=WIDTH):
    return PolygonMasks([[polygon(*box) for box in boxes] for boxes in objects], height, width)


def bitmaps(objects=RECTANGLES, height=HEIGHT, width=WIDTH):
    masks = np.zeros((len(objects), height, width), dtype=np.uint8)
    for mask, boxes in zip(masks, objects, strict=True):
        for x1, y1, x2, y2 in boxes:
            mask[y1:y2, x1:x2] = 1
    return BitmapMasks(masks, height, width)


KINDS = pytest.mark.parametrize("make", [bitmaps, polygons])


def moved(function):
    """The rectangles with every (x, y) replaced."""
    return [[(*function(x1, y1), *function(x2, y2)) for x1, y1, x2, y2 in boxes] for boxes in RECTANGLES]


def mirrored(function):
    return [[(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in boxes] for boxes in moved(function)]


def assert_shows(masks, objects, height, width):
    """The masks are these rectangles, whichever kind they are."""
    assert (masks.height, masks.width) == (height, width)
    np.testing.assert_array_equal(masks.to_ndarray(), bitmaps(objects, height, width).masks)


@KINDS
def test_as_bitmaps(make):
    assert_shows(make(), RECTANGLES, HEIGHT, WIDTH)
    assert_shows(make().to_bitmap(), RECTANGLES, HEIGHT, WIDTH)
    assert make().to_ndarray().dtype == np.uint8
    tensor = make().to_tensor(torch.float32, "cpu")
    assert (tensor.dtype, tensor.sum().item()) == (torch.float32, 36 + 32 + 40)


@KINDS
def test_areas_and_boxes(make):
    np.testing.assert_allclose(make().areas, [36, 72])
    boxes = make().get_bboxes()
    np.testing.assert_array_equal(boxes, [[4, 2, 10, 8], [12, 5, 26, 15]])
    assert boxes.dtype == np.float32
    with pytest.raises(ValueError, match="dst_type: 'hbox' was expected, got 'rbox'"):
        make().get_bboxes("rbox")


@KINDS
def test_resize_and_rescale(make):
    assert_shows(make().resize((40, 90)), moved(lambda x, y: (3 * x, 2 * y)), 40, 90)
    assert_shows(make().rescale(2), moved(lambda x, y: (2 * x, 2 * y)), 40, 60)
    assert_shows(make().rescale((1000, 60)), moved(lambda x, y: (3 * x, 3 * y)), 60, 90)


@KINDS
def test_flip(make):
    assert_shows(make().flip(), mirrored(lambda x, y: (WIDTH - x, y)), HEIGHT, WIDTH)
    assert_shows(make().flip("vertical"), mirrored(lambda x, y: (x, HEIGHT - y)), HEIGHT, WIDTH)
    assert_shows(make().flip("diagonal"), mirrored(lambda x, y: (WIDTH - x, HEIGHT - y)), HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="one of horizontal, vertical, diagonal was expected, got 'up'"):
        make().flip("up")


@KINDS
def test_pad_and_expand(make):
    assert_shows(make().pad((24, 32)), RECTANGLES, 24, 32)
    assert_shows(make().expand(40, 50, 3, 7), moved(lambda x, y: (x + 7, y + 3)), 40, 50)
    with pytest.raises(ValueError, match=r"at least \(20, 30\) was expected, got \(19, 40\)"):
        make().pad((19, 40))


def test_pad_with_a_value():
    assert bitmaps().pad((21, 30), pad_val=1).masks[:, 20].all()


@KINDS
def test_crop(make):
    # The window 6..24 x 4..9, then minus its corner.
    expected = [[(0, 0, 4, 4)], [(6, 1, 14, 5), (16, 1, 18, 5)]]
    assert_shows(make().crop(np.array([6, 4, 24, 9])), expected, 5, 18)
    assert_shows(make().crop(np.array([-9, -9, 99, 99])), RECTANGLES, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match=r"crop: one box \(4,\) was expected, got shape \(1, 4\)"):
        make().crop(np.array([[6, 4, 24, 9]]))


@KINDS
def test_a_crop_beside_an_object_leaves_an_empty_mask(make):
    cropped = make().crop(np.array([0, 0, 11, 20]))
    assert len(cropped) == 2
    np.testing.assert_array_equal(cropped.areas, [36, 0])
    np.testing.assert_array_equal(cropped.to_ndarray().sum((1, 2)), [36, 0])
    assert (cropped.height, cropped.width) == (20, 11)
    # A window without area is one pixel large.
    tiny = make().crop(np.array([5, 5, 5, 5]))
    assert (tiny.height, tiny.width, tiny.to_ndarray()[0].sum()) == (1, 1, 1)


def test_a_concave_polygon_is_cropped_to_the_area_inside():
    # A U of two 2-wide towers on a 1-high foot; the window cuts the towers apart.
    u = np.array([0, 0, 2, 0, 2, 4, 6, 4, 6, 0, 8, 0, 8, 5, 0, 5], dtype=np.float64)
    cropped = PolygonMasks([[u]], 10, 10).crop(np.array([1, 0, 9, 3]))
    assert cropped.areas.tolist() == [3 + 6]
    expected = np.zeros((3, 8))
    expected[:, :1] = expected[:, 5:7] = 1
    np.testing.assert_array_equal(cropped.to_ndarray()[0], expected)


def test_a_slanted_side_is_cut_where_it_crosses():
    triangle = np.array([0, 0, 8, 0, 0, 4], dtype=np.float64)
    (part,) = PolygonMasks([[triangle]], 10, 10).crop(np.array([2, 0, 10, 10])).masks[0]
    # The side from (8, 0) to (0, 4) crosses x = 2 at y = 3; then minus the corner (2, 0).
    assert sorted(map(tuple, part.reshape(-1, 2))) == [(0, 0), (0, 3), (6, 0)]


def test_a_polygon_that_only_touches_the_window_is_gone():
    (part,) = polygons().crop(np.array([10, 0, 30, 20])).masks[0]
    assert part.tolist() == [0] * 6


@KINDS
def test_translate(make):
    shown = moved(lambda x, y: (x + 3, y))
    assert_shows(make().translate((20, 30), 3), shown, 20, 30)
    assert_shows(make().translate((25, 40), 4, "vertical"), moved(lambda x, y: (x, y + 4)), 25, 40)
    out = make().translate((20, 30), -8)
    assert_shows(out, [[(0, 2, 2, 8)], [(4, 5, 12, 9), (14, 5, 18, 15)]], 20, 30)
    np.testing.assert_array_equal(out.get_bboxes(), [[0, 2, 2, 8], [4, 5, 18, 15]])
    with pytest.raises(ValueError, match="one of horizontal, vertical was expected, got 'diagonal'"):
        make().translate((20, 30), 3, "diagonal")


@KINDS
def test_project(make):
    # Twice as large, three to the right, and cut at a small canvas.
    matrix = np.array([[2, 0, 3], [0, 2, 0], [0, 0, 1]], dtype=np.float64)
    out = make().project(matrix, (18, 33))
    assert (out.height, out.width) == (18, 33)
    boxes = [[11, 4, 23, 16], [27, 10, 33, 18]]
    np.testing.assert_allclose(out.get_bboxes(), boxes, atol=1)
    # A perspective that brings the image's lower edge nearer together.
    matrix = np.array([[1, 0, 0], [0, 1, 0], [0, 0.05, 1]], dtype=np.float64)
    box = make()[0].project(matrix, (20, 30)).get_bboxes()[0]
    np.testing.assert_allclose(box, [4 / 1.4, 2 / 1.1, 10 / 1.1, 8 / 1.4], atol=1)


@KINDS
def test_indexing_gives_masks(make):
    masks = make([*RECTANGLES, [(0, 0, 3, 3)]])
    for index, expected in [
        (1, [1]),
        (-1, [2]),
        (slice(0, 2), [0, 1]),
        ([2, 0], [2, 0]),
        (np.array([True, False, True]), [0, 2]),
        (torch.tensor([False, True, False]), [1]),
        (torch.tensor([2, 2]), [2, 2]),
        ([], []),
        (np.zeros(3, dtype=bool), []),
    ]:
        chosen = masks[index]
        assert type(chosen) is type(masks)
        objects = [[*RECTANGLES, [(0, 0, 3, 3)]][i] for i in expected]
        assert_shows(chosen, objects, HEIGHT, WIDTH)
    with pytest.raises(IndexError, match="a boolean index of 3 was expected, got 2"):
        masks[np.array([True, False])]
    with pytest.raises(IndexError):
        masks[3]


@KINDS
def test_iteration_and_length(make):
    assert len(make()) == len(list(make())) == 2


@KINDS
def test_cat(make):
    joined = type(make()).cat([make(RECTANGLES[:1]), make([]), make(RECTANGLES[1:])])
    assert_shows(joined, RECTANGLES, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="at least one"):
        type(make()).cat([])
    with pytest.raises(ValueError, match=r"20|21"):
        type(make()).cat([make(), make([[(0, 0, 1, 1)]], height=21)])


@KINDS
def test_no_masks(make):
    none = make([])
    for masks in (
        none.resize((5, 6)),
        none.rescale(0.5),
        none.flip("diagonal"),
        none.pad((30, 40)),
        none.crop(np.array([1, 2, 5, 6])),
        none.expand(40, 40, 1, 1),
        none.translate((20, 30), 2),
        none.crop_and_resize(np.zeros((0, 4)), (28, 28), np.zeros(0, dtype=int)),
    ):
        assert len(masks) == 0
        assert masks.to_ndarray().shape == (0, masks.height, masks.width)
    assert none.areas.shape == (0,)
    assert none.get_bboxes().shape == (0, 4)


@KINDS
def test_operations_leave_the_masks_alone(make):
    masks = make()
    before = masks.to_ndarray().copy()
    masks.resize((5, 6)), masks.flip(), masks.crop(np.array([5, 5, 9, 9])), masks.translate((20, 30), 4)
    np.testing.assert_array_equal(masks.to_ndarray(), before)


@KINDS
def test_masks_are_a_field_of_instances(make):
    instances = InstanceData(masks=make(), labels=torch.tensor([4, 7]))
    kept = instances[instances.labels > 5]
    assert type(kept.masks) is type(make())
    assert_shows(kept.masks, RECTANGLES[1:], HEIGHT, WIDTH)


@pytest.mark.parametrize("out_shape", [(28, 28), (7, 14)])
def test_mask_targets_are_roi_align(out_shape):
    generator = np.random.default_rng(0)
    masks = BitmapMasks(generator.integers(0, 2, (3, HEIGHT, WIDTH), dtype=np.uint8), HEIGHT, WIDTH)
    corners = generator.uniform(-6, 34, (40, 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
    boxes[0] = 0, 0, WIDTH, HEIGHT
    boxes[1] = 3, 4, 3, 4  # without area
    inds = generator.integers(0, 3, 40)
    rois = torch.from_numpy(np.column_stack([inds, boxes])).float()
    expected = roi_align(torch.from_numpy(masks.masks)[:, None].float(), rois, out_shape, 1.0, 0, aligned=True)[:, 0]
    soft = masks.crop_and_resize(boxes, out_shape, inds, binarize=False)
    torch.testing.assert_close(torch.from_numpy(soft.masks), expected, atol=1e-5, rtol=1e-5)
    hard = masks.crop_and_resize(torch.from_numpy(boxes), out_shape, torch.from_numpy(inds))
    # Values of exactly one half may round to either side.
    clear = (expected - 0.5).abs() > 1e-5
    assert torch.equal(torch.from_numpy(hard.masks)[clear], (expected >= 0.5)[clear])


def test_mask_targets_of_polygons():
    # The left half of the second rectangle of object 1, blown up to 8 x 20.
    cut = polygons().crop_and_resize(np.array([[22.0, 5, 24, 15], [4, 2, 10, 8]]), (20, 8), np.array([1, 0]))
    assert_shows(cut[1:], [[(0, 0, 8, 20)]], 20, 8)
    assert cut.to_ndarray()[0].all()
    assert cut.masks[0][1].tolist() == polygon(0, 0, 16, 20).tolist()
    # A box without area counts as one pixel.
    point = polygons().crop_and_resize(np.array([[4.0, 2, 4, 2]]), (5, 5), np.array([0]))
    assert point.masks[0][0].tolist() == polygon(0, 0, 30, 30).tolist()


def test_wrong_masks_are_refused():
    with pytest.raises(ValueError, match=r"masks of 20 x 30 \(height x width\) were expected, got shape \(1, 30, 20\)"):
        BitmapMasks(np.zeros((1, 30, 20), dtype=np.uint8), 20, 30)
    with pytest.raises(ValueError, match="got shape"):
        BitmapMasks(np.zeros((20, 30), dtype=np.uint8), 20, 30)
    with pytest.raises(ValueError, match="interpolation: 'bilinear' was expected, got 'nearest'"):
        bitmaps().crop_and_resize(np.zeros((1, 4)), (7, 7), [0], interpolation="nearest")
    with pytest.raises(ValueError, match="polygons can only be moved over 0, got 1"):
        polygons().translate((20, 30), 3, border_value=1)
