"""docs/coming_from_mmdetection.md: what it names is here, and what it claims of configs holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documented import check

from detkit.config.schema import RUN_KEYS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/coming_from_mmdetection.md").read_text()
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| ")]
NAME = re.compile(r"`(detkit(?:\.\w+)+|tools/\w+\.py|[A-Z][a-z]+[A-Z]\w+)`")
# Of mmcv or MMDetection, and named as such.
THEIRS = {"MMSyncBN", "NumClassCheckHook"}


def test_what_the_page_names_is_here():
    names = {name for row in ROWS for cell in row[1:] for name in NAME.findall(cell)}
    names |= set(re.findall(r"`([A-Z][a-z]+[A-Z]\w+)`", " ".join(row[0] for row in ROWS if "the same" in row[1])))
    assert len(names - THEIRS) > 20
    for name in names - THEIRS:
        check(name)
    with pytest.raises((AssertionError, AttributeError)):
        check("detkit.structures.DetDataSampel")


def test_keys_of_a_run():
    (row,) = [row for row in ROWS if row[0].startswith("`model_wrapper_cfg`")]
    assert set(re.findall(r"`(\w+)`", row[0])) - {"vis_backends"} <= RUN_KEYS  # that one is the visualizer's


def test_links_and_commands_lead_somewhere():
    for link in re.findall(r"\]\((\w+\.md)\)", PAGE):
        assert (ROOT / "docs" / link).is_file(), link
    for tool in set(re.findall(r"python (tools/\w+\.py)", PAGE)):
        assert (ROOT / tool).is_file(), tool
    assert "docs/coming_from_mmdetection.md" in (ROOT / "README.md").read_text()
