"""tools/draw_assigners.py: every assigner has a picture of what it marks, and a place in docs/assigners.md."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from detkit.registry import TASK_UTILS

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/draw_assigners.py"
PAGE = (ROOT / "docs/assigners.md").read_text()


def load_tool():
    spec = importlib.util.spec_from_file_location("draw_assigners", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL_MODULE = load_tool()
NAMES = sorted(TOOL_MODULE.CASES)


@pytest.fixture(scope="module")
def pictures():
    return {name: make() for name, make in TOOL_MODULE.CASES.items()}


def registered_assigners():
    TASK_UTILS.import_from_location()
    package = "detkit.task_modules.assigners."
    return sorted(name for name, cls in TASK_UTILS.module_dict.items() if cls.__module__.startswith(package))


def test_every_assigner_has_a_picture_and_is_explained():
    assert registered_assigners() == NAMES
    assert sorted(re.findall(r"^### (\w+)$", PAGE, flags=re.MULTILINE)) == NAMES
    assert sorted(re.findall(r"^!\[(\w+)\]\(images/assigners/\1\.png\)$", PAGE, flags=re.MULTILINE)) == NAMES


def test_the_pictures_of_the_page_are_small():
    sizes = [(ROOT / f"docs/images/assigners/{name}.png").stat().st_size for name in NAMES]
    assert max(sizes) < 60_000
    assert sum(sizes) < 1_000_000


def test_files_are_made(monkeypatch, tmp_path, capsys):
    folder = tmp_path / "pictures"
    monkeypatch.setattr(sys, "argv", ["draw_assigners.py", "--out-dir", str(folder), "--dpi", "30"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(TOOL), run_name="__main__")
    assert sorted(path.stem for path in folder.iterdir()) == NAMES
    assert all(Image.open(path).width == 300 for path in folder.iterdir())
    assert f"pictures: {folder}" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_every_object_has_positives_in_the_picture(pictures, name):
    picture = pictures[name]
    assert picture.title == name
    assert len(picture.panels) == 3
    learnt = torch.cat([panel.gt_inds for panel in picture.panels])
    assert set(learnt[learnt > 0].tolist()) == {1, 2, 3}
    assert (learnt == 0).any()
    for panel in picture.panels:
        assert panel.centres.shape == (len(panel.gt_inds), 2)
        assert all(number in (0, 1, 2, 3) and len(box) == 4 for box, number in panel.outlines)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("HungarianAssigner", "MultiInstanceAssigner")])
def test_positives_are_near_their_objects(pictures, name):
    for panel in pictures[name].panels:
        for number, (x1, y1, x2, y2) in enumerate(TOOL_MODULE.OBJECTS, start=1):
            x, y = panel.centres[panel.gt_inds == number].unbind(dim=1)
            assert ((x >= x1 - 4) & (x <= x2 + 4) & (y >= y1 - 4) & (y <= y2 + 4)).all()


def test_the_picture_shows_what_the_module_says(pictures):
    """The rule of MaxIoUAssigner, from its anchors as drawn."""
    from detkit.structures.boxes import bbox_overlaps

    panels = pictures["MaxIoUAssigner"].panels
    centres = torch.cat([panel.centres for panel in panels])
    half = torch.cat([torch.full((len(p.centres), 1), 16.0 * 2**level) for level, p in enumerate(panels)])
    anchors = torch.cat([centres - half, centres + half], dim=1)
    gt_inds = torch.cat([panel.gt_inds for panel in panels])
    overlaps = bbox_overlaps(anchors, torch.tensor(TOOL_MODULE.OBJECTS, dtype=torch.float32))
    best, index = overlaps.max(dim=1)
    assert torch.equal(gt_inds[best >= 0.5], index[best >= 0.5] + 1)
    in_region = bbox_overlaps(anchors, torch.tensor([TOOL_MODULE.REGION], dtype=torch.float32), mode="iof")[:, 0] > 0.5
    assert torch.equal(gt_inds == -1, ((best >= 0.4) & (best < 0.5)) | in_region)


def test_rings(pictures):
    atss, shadow = pictures["ATSSAssigner"], pictures["CenterRegionAssigner"]
    for panel in atss.panels:
        positive = panel.gt_inds > 0
        assert torch.equal(panel.rings[positive], panel.gt_inds[positive])
    assert any((panel.rings > 0).any() for panel in shadow.panels)
    assert not any(((panel.rings == panel.gt_inds) & (panel.rings > 0)).any() for panel in shadow.panels)


def test_one_of_them(monkeypatch, tmp_path):
    monkeypatch.setattr(
        sys, "argv", ["draw_assigners.py", "--only", "ATSSAssigner", "--out-dir", str(tmp_path), "--dpi", "20"]
    )
    runpy.run_path(str(TOOL), run_name="__main__")
    assert [path.name for path in tmp_path.iterdir()] == ["ATSSAssigner.png"]
