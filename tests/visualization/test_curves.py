import json
import subprocess
import sys

import pytest
from PIL import Image

from detkit.visualization.curves import _points, plot_run, read_metrics


def write(folder, *records, tail=""):
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(text + tail)
    return folder / "metrics.jsonl"


def losses(*steps, loss=1.0):
    return [{"step": step, "epoch": 1, "loss": loss, "loss_cls": loss / 2, "lr": 0.1} for step in steps]


def test_curves_of_losses_and_precision(tmp_path):
    write(tmp_path, *losses(10, 20), {"step": 20, "epoch": 1, "coco/bbox_mAP": 0.4, "coco/bbox_mAP_l": -1})
    paths = plot_run(tmp_path)
    assert [path.name for path in paths] == ["loss.png", "ap.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.width > 600
            assert image.convert("L").getextrema()[0] < 50  # something is drawn


def test_without_an_evaluation_there_is_no_precision_curve(tmp_path):
    write(tmp_path, *losses(10))
    assert [path.name for path in plot_run(tmp_path)] == ["loss.png"]


def test_nothing_to_show_draws_nothing(tmp_path):
    write(tmp_path, {"step": 1, "epoch": 1, "time": 0.1})
    assert plot_run(tmp_path) == []


def test_gaps_and_constant_and_negative_values_can_be_drawn(tmp_path):
    nothing = {"step": 30, "epoch": 1, "loss": None, "coco/bbox_mAP": None}
    write(tmp_path, *losses(10, loss=-2.0), nothing)
    assert len(plot_run(tmp_path)) == 2


def test_a_resumed_run_supersedes_what_it_repeats(tmp_path):
    evaluation = {"step": 20, "epoch": 1, "coco/bbox_mAP": 0.4}
    lost = {"step": 40, "epoch": 2, "coco/bbox_mAP": 0.9}
    path = write(tmp_path, *losses(10, 20), evaluation, *losses(30, 40), lost, *losses(25, 45, loss=0.5))
    assert [(r["step"], r.get("loss")) for r in read_metrics(path)] == [
        (10, 1.0),
        (20, 1.0),
        (20, None),
        (25, 0.5),
        (45, 0.5),
    ]


def test_the_last_of_equal_steps_is_drawn():
    assert _points([{"step": 1, "a": 2.0}, {"step": 1, "a": 3.0}], "a") == {1: 3.0}


def test_a_line_cut_off_at_the_end_is_left_out(tmp_path):
    path = write(tmp_path, *losses(10), tail='{"step": 20, "lo')
    assert [record["step"] for record in read_metrics(path)] == [10]


@pytest.mark.parametrize("line", ["{bad", "[1]", '{"epoch": 1}'])
def test_a_bad_line_is_named(tmp_path, line):
    path = write(tmp_path, *losses(10), tail=line + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: a JSON object with 'step'"):
        read_metrics(path)


def test_no_metrics(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl: no such file"):
        plot_run(tmp_path)


def test_pyplot_is_left_alone(tmp_path):
    write(tmp_path, *losses(10))
    code = (
        "import sys; from detkit.visualization.curves import plot_run; plot_run(sys.argv[1]);"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 0
