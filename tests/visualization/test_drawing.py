import numpy as np
import pytest

from detkit.visualization import captioned, class_colour, contact_sheet, draw_instances

GREY = np.full((128, 128, 3), 128, np.uint8)
NAMES = ("disc", "a class whose name is far longer than any small image is wide, and longer, and longer still")


def is_changed(before, after):
    """(H, W) where ``after`` differs from ``before`` enlarged to it."""
    factor = after.shape[0] // before.shape[0]
    return (after != before.repeat(factor, axis=0).repeat(factor, axis=1)).any(axis=2)


def test_a_small_image_is_enlarged_and_a_large_one_not():
    assert draw_instances(GREY, np.zeros((0, 4)), [], NAMES).shape == (512, 512, 3)
    large = np.zeros((600, 800, 3), np.uint8)
    assert draw_instances(large, np.zeros((0, 4)), [], NAMES).shape == large.shape


def test_no_object_leaves_the_image():
    assert not is_changed(GREY, draw_instances(GREY, np.zeros((0, 4)), [], NAMES, scores=[])).any()


def test_a_box_is_drawn_on_its_border_in_the_colour_of_its_class():
    picture = draw_instances(GREY, np.array([[32.0, 64, 96, 112]]), [0], NAMES, line_width=1)
    colour = class_colour(0)
    assert tuple(picture[300, 32 * 4]) == tuple(picture[300, 96 * 4 - 1]) == colour
    assert tuple(picture[112 * 4 - 1, 200]) == colour
    assert not is_changed(GREY, picture)[260:440, 130:380].any()


def test_the_input_stays_as_it_was():
    image = GREY.copy()
    masks = np.ones((1, 128, 128), bool)
    draw_instances(image, np.array([[0.0, 0, 9, 9]]), [0], NAMES, masks=masks)
    assert (image == GREY).all()


@pytest.mark.parametrize("box", [(0, 0, 128, 128), (100, -10, 300, 6), (-5, 120, 4, 140), (126, 126, 128, 128)])
@pytest.mark.parametrize("label", [0, 1])
def test_a_label_is_wholly_inside_the_picture(box, label):
    picture = draw_instances(GREY, np.array([box], float), [label], NAMES, scores=[0.5])
    plate = (picture == class_colour(label)).all(axis=2)
    rows, columns = np.flatnonzero(plate.sum(axis=1) > 20), np.flatnonzero(plate.any(axis=0))
    assert len(rows) >= 15  # a plate as high as its text
    assert rows[-1] < 512
    assert columns[-1] < 512
    is_text = (picture == 0).all(axis=2) | (picture == 255).all(axis=2)
    assert is_text.any()
    assert not is_text[:, [0, -1]].any()  # a margin is left on both sides


@pytest.mark.parametrize("best", [0, 1])
def test_objects_of_one_place_do_not_hide_each_other_s_names(best):
    boxes = np.array([[40.0, 40, 80, 80]] * 2)
    colours = [(255, 0, 0), (0, 0, 255)]
    scores = [0.9 if i == best else 0.2 for i in (0, 1)]
    picture = draw_instances(GREY, boxes, [0, 1], ("first", "second"), scores=scores, colours=colours, line_width=1)
    is_best, is_other = ((picture == colours[i]).all(axis=2) for i in (best, 1 - best))
    # The best box lies on top, its name stands above it; the other's name is elsewhere.
    assert is_best[240, 160]
    assert is_best[145:159, 160:200].sum() > 150
    assert is_other.sum() > 300
    assert not is_other[145:159, 160:200].any()


def test_masks_tint_their_pixels():
    masks = np.zeros((1, 128, 128), bool)
    masks[0, 60:70, 60:70] = True
    picture = draw_instances(
        GREY, np.array([[50.0, 50, 80, 80]]), [0], NAMES, masks=masks, mask_colours=[(228, 128, 28)], mask_opacity=0.5
    )
    assert tuple(picture[260, 260]) == (178, 128, 78)
    assert tuple(picture[300, 300]) == (128, 128, 128)


def test_class_colours_are_distinct():
    assert len({class_colour(label) for label in range(80)}) == 80
    assert all(0 <= channel <= 255 for label in range(500) for channel in class_colour(label))


def test_contact_sheet_places_pictures_row_by_row():
    images = [np.full((10 + n, 20, 3), n, np.uint8) for n in range(3)]
    sheet = contact_sheet(images, columns=2)
    assert sheet.shape == (12 + 8 + 12, 20 + 8 + 20, 3)
    assert (sheet[0, 0] == 0).all()
    assert (sheet[0, 28] == 1).all()
    assert (sheet[20, 0] == 2).all()
    assert (sheet[20, 28] == 255).all()


def test_a_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="0 pictures"):
        contact_sheet([], columns=2)


def test_a_caption_stands_above():
    picture = captioned(GREY, "ground truth")
    assert (picture[-128:] == GREY).all()
    head = picture[:-128]
    assert head.shape[1:] == (128, 3)
    assert head.min() < 100
    assert head.max() == 255
