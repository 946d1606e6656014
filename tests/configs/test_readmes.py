"""The README of each method's folder lists its configs, and no others."""

from __future__ import annotations

import re

import pytest
from shipped import CONFIGS, SHIPPED

FOLDERS = sorted({path.parent for path in SHIPPED})


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_a_readme_lists_the_configs_of_its_folder(folder):
    text = (folder / "README.md").read_text()
    # Their own files stand in a table as links; MMDetection's others may be mentioned.
    linked = set(re.findall(r"\]\(([\w.+-]+\.py)\)", text))
    assert linked == {path.name for path in SHIPPED if path.parent == folder}
    assert re.search(r"https?://\S+", text), "the paper"


def test_no_folder_is_without_configs():
    assert {path.parent for path in CONFIGS.glob("*/README.md")} == set(FOLDERS)
