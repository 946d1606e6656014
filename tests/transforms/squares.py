"""A picture of squares, each of its own colour, and the squares found in a picture again."""

import numpy as np

from detkit.structures import BitmapMasks

COLOURS = np.array([[0, 0, 250], [0, 250, 0], [250, 0, 0], [0, 250, 250], [250, 250, 0]], dtype=np.uint8)
# Apart from each other and from the border, none square to the image; the third is to be ignored.
BOXES = np.array([[6, 8, 26, 20], [40, 5, 60, 25], [70, 30, 84, 52], [10, 34, 34, 58]], dtype=np.float32)


def squares(count=4, masks=False, shape=(64, 96)):
    """The results dict of a picture (64 x 96) with ``count`` rectangles; labels are the indices of the colours."""
    img = np.zeros((*shape, 3), dtype=np.uint8)
    bitmaps = np.zeros((count, *shape), dtype=np.uint8)
    for index, (x1, y1, x2, y2) in enumerate(BOXES[:count].astype(int)):
        img[y1:y2, x1:x2] = COLOURS[index]
        bitmaps[index, y1:y2, x1:x2] = 1
    results = {
        "img": img,
        "img_shape": shape,
        "img_path": "squares.png",
        "gt_bboxes": BOXES[:count].copy(),
        "gt_bboxes_labels": np.arange(count),
        "gt_ignore_flags": np.arange(count) == 2,
    }
    return {**results, "gt_masks": BitmapMasks(bitmaps, *shape)} if masks else results


def found(img, label, weight=1.0):
    """Box around the pixels of a colour, xyxy, or None; ``weight`` is how much of a pixel is the picture's."""
    # Half of a colour at least, so that interpolated borders count from their middle on.
    channels = COLOURS[label] > 0
    bright = img.astype(float) > 125 * weight
    pixels = (bright == channels).all(axis=-1)
    if not pixels.any():
        return None
    rows, columns = np.nonzero(pixels.any(axis=1))[0], np.nonzero(pixels.any(axis=0))[0]
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def assert_boxes_lie_on_squares(results, tolerance=1.0):
    """Each box is where its colour is, inside the image; fields have one entry per object, flags the right one."""
    height, width = results["img"].shape[:2]
    assert results["img_shape"] == (height, width)
    boxes, labels = results["gt_bboxes"], results["gt_bboxes_labels"]
    assert boxes.dtype == np.float32
    assert len(boxes) == len(labels) == len(results["gt_ignore_flags"])
    np.testing.assert_array_equal(results["gt_ignore_flags"], labels == 2)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= [width, height]).all()
    assert (boxes[:, 2:] >= boxes[:, :2]).all()
    if "gt_masks" in results:
        assert len(results["gt_masks"]) == len(boxes)
        assert results["gt_masks"].masks.shape[1:] == (height, width)
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        if (box[2:] - box[:2]).min() < 3:
            continue  # too thin a rest to be found
        np.testing.assert_allclose(found(results["img"], label), box, atol=tolerance)
        if "gt_masks" in results:
            rows, columns = np.nonzero(results["gt_masks"].masks[index])
            mask_box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(mask_box, box, atol=tolerance)
