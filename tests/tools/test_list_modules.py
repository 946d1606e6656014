"""tools/list_modules.py and the page it wrote: complete, up to date, and every snippet builds."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from detkit.registry import MODELS, TASK_UTILS, accepted_arguments

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/list_modules.py"
PAGE = (ROOT / "docs/modules.md").read_text()
ENTRIES = {
    match[1]: match[2] for match in re.finditer(r"^### (\w+)\n(.*?)(?=^###? |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
}


def config_of(name):
    """The snippet of an entry, as a config file would read it."""
    return eval(re.search(r"```python\n(.*?)```", ENTRIES[name], flags=re.DOTALL)[1], {"dict": dict})


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("list_modules", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["list_modules.py", *arguments])
        monkeypatch.setattr(sys, "path", list(sys.path))
        runpy.run_path(str(TOOL), run_name="__main__")
        return capsys.readouterr()

    return run


def test_the_page_is_what_the_registries_say(run):
    run("--check")


def test_a_stale_page_fails_and_is_left_alone(run, capsys, tmp_path):
    stale = tmp_path / "modules.md"
    stale.write_text(PAGE.replace("gamma=2.0", "gamma=3.0"))
    with pytest.raises(SystemExit) as stop:
        run("--check", "--out", str(stale))
    assert stop.value.code == 1
    assert "modules.md is not what the registries say; run python tools/list_modules.py" in capsys.readouterr().err
    assert "gamma=3.0" in stale.read_text()
    run("--out", str(stale))
    assert stale.read_text() == PAGE


def test_every_registered_module_is_listed():
    MODELS.import_from_location()
    TASK_UTILS.import_from_location()
    known = [
        name
        for registry, package in ((MODELS, "detkit.losses."), (TASK_UTILS, "detkit."))
        for name, cls in registry.module_dict.items()
        if cls.__module__.startswith(package)
    ]
    assert sorted(ENTRIES) == sorted(known)


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_every_snippet_builds(name):
    config = config_of(name)
    registry = MODELS if name in MODELS.module_dict else TASK_UTILS
    cls = registry.get(name)
    accepted, needed, _ = accepted_arguments(cls)
    # The RoI head is what only a head can hand over.
    given = {"context": SimpleNamespace(bbox_head=SimpleNamespace())} if "context" in accepted else {}
    assert set(config) | set(given) == accepted | {"type"}
    assert isinstance(registry.build({**config, **given}), cls)
    for argument in set(needed) - set(given):
        assert re.search(rf"{argument}=.*# Required\.|# Required\..*\n(?: *#.*\n)*    {argument}=", ENTRIES[name])


@pytest.mark.parametrize("name", sorted(name for name in ENTRIES if "(../detkit/losses/" in ENTRIES[name]))
def test_every_loss_says_what_it_compares(name):
    assert len(re.findall(r"^- `\w+`: .+", ENTRIES[name], flags=re.MULTILINE)) >= 2


def test_an_entry_by_hand():
    entry = ENTRIES["FocalLoss"]
    assert "Sigmoid focal loss over class labels or targets per class." in entry
    assert "- `pred`: Logits, or probabilities where `activated`, (N, C).\n" in entry
    assert "    gamma=2.0,  # Focusing exponent, >= 0.\n" in entry
    assert "Source: Focal loss, Lin et al., [arXiv 1708.02002](https://arxiv.org/abs/1708.02002)." in entry
    assert config_of("IoULoss")["eps"] == 1e-6
    # By the function of its name, as its file has no paper and its forward is the general one.
    assert "- `target`: Same shape, compared one by one.\n" in ENTRIES["GIoULoss"]
    assert "algorithm 2, [arXiv 1902.09630]" in ENTRIES["GIoULoss"]


def test_a_required_argument_without_an_example(tool):
    class Bare:
        def __init__(self, num: int, wanted: int) -> None: ...

    with pytest.raises(ValueError, match="Bare needs 'wanted'; give an example of it in EXAMPLES"):
        tool.snippet("Bare", Bare)


def test_a_long_comment_goes_before_its_line(tool):
    code, text = "    eps=1e-06,", "word " * 40
    lines = tool._commented(code, text.strip()).splitlines()
    assert lines[-1] == code
    assert all(line.startswith("    # word") and len(line) <= 120 for line in lines[:-1])
    assert tool._commented(code, "short") == "    eps=1e-06,  # short"
