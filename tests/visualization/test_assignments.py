"""Pictures of assignments: which marks there are, where, and in whose colour."""

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from detkit.visualization import AssignmentPanel, AssignmentPicture, draw_assignment
from detkit.visualization.assignments import COLOURS, DARK, GREY, _add_legend, _draw_panel

CENTRES = torch.tensor([[5.0, 5], [15, 5], [25, 5], [35, 5], [45, 5]])
PANEL = AssignmentPanel(
    "one level",
    CENTRES,
    gt_inds=torch.tensor([2, 0, -1, 1, 2]),
    outlines=[((0, 0, 10, 10), 2), ((20, 0, 30, 10), 0)],
    rings=torch.tensor([0, 1, 0, 0, 0]),
)
PICTURE = AssignmentPicture(
    "Mine", "thr=0.5", (20, 50), [(30, 0, 40, 10), (0, 0, 10, 10)], [PANEL], region=(20, 10, 30, 20), ring="near"
)


@pytest.fixture
def drawn():
    axes = Figure().add_axes((0, 0, 1, 1))
    _draw_panel(axes, PANEL, PICTURE)
    return axes


def marks(axes):
    """Colour, filled or not, and places of each group of marks."""
    found = {}
    for group in axes.collections:
        places = [tuple(place) for place in group.get_offsets().tolist()]
        filled = len(group.get_facecolors()) > 0
        colour = to_hex((group.get_facecolors() if filled else group.get_edgecolors())[0])
        found[colour, filled] = found.get((colour, filled), []) + places
    return {key: sorted(places) for key, places in found.items() if places}


def test_a_prior_has_the_colour_of_its_object(drawn):
    assert marks(drawn) == {
        (GREY, True): [(15, 5)],
        (DARK, True): [(25, 5)],
        (COLOURS[0], True): [(35, 5)],
        (COLOURS[1], True): [(5, 5), (45, 5)],
        (COLOURS[0], False): [(15, 5)],
    }
    boxes = {patch.get_bbox().extents.astype(int).tolist()[0]: to_hex(patch.get_edgecolor()) for patch in drawn.patches}
    assert boxes[30] == COLOURS[0]
    assert boxes[0] == COLOURS[1]


def test_outlines_are_thin_and_unfilled(drawn):
    outlines = [patch for patch in drawn.patches if not patch.get_fill()]
    assert [to_hex(patch.get_edgecolor()) for patch in outlines] == [COLOURS[1], GREY]


def test_the_image_begins_at_the_top_left(drawn):
    assert drawn.get_xlim() == (0, 50)
    assert drawn.get_ylim() == (20, 0)


def test_better_fits_of_the_background_are_larger():
    panel = AssignmentPanel("", CENTRES, torch.zeros(5, dtype=torch.int64), fit=torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0]))
    axes = Figure().add_axes((0, 0, 1, 1))
    _draw_panel(axes, panel, PICTURE)
    sizes = axes.collections[0].get_sizes()
    assert (sizes[1:] > sizes[:-1]).all()


def test_the_legend_names_what_there_is():
    figure = Figure()
    _add_legend(figure, PICTURE)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["learns the object of its colour", "background", "ignored", "near", "ignored region"]
    plain = AssignmentPicture("", "", (20, 50), PICTURE.objects, [], fit="larger where it fits", outline="anchor")
    figure = Figure()
    _add_legend(figure, plain)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["learns the object of its colour", "background, larger where it fits", "anchor"]


@pytest.mark.parametrize("num_panels", [0, 1, 3, 4])
def test_a_file_ten_inches_wide(tmp_path, num_panels):
    path = tmp_path / "mine.png"
    picture = AssignmentPicture("Mine", "", (20, 50), PICTURE.objects, [PANEL] * num_panels)
    draw_assignment(picture, path, dpi=40)
    assert Image.open(path).width == 400


def test_no_objects_and_no_priors(tmp_path):
    panel = AssignmentPanel("nothing", torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    draw_assignment(AssignmentPicture("Mine", "", (20, 50), [], [panel]), tmp_path / "none.png", dpi=20)
    assert (tmp_path / "none.png").exists()
