"""Where weights come from: queries, schemes, and downloads; nothing here reaches the network."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from checkpoints.foreign_files import Evil, write
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from detkit.checkpoints import load_weights, open_checkpoint, register_scheme, schemes


@pytest.fixture
def scheme(monkeypatch):
    """Registers a scheme for one test."""
    monkeypatch.setattr(schemes, "_resolvers", dict(schemes._resolvers))
    monkeypatch.setattr(CheckpointLoader, "_schemes", CheckpointLoader._schemes.copy())
    return register_scheme


@pytest.fixture
def web(tmp_path, monkeypatch):
    """Gives files instead of the network: URL -> file; lists what was asked for."""
    files: dict[str, Path] = {}
    asked: list[str] = []

    def open_(request):
        url = getattr(request, "full_url", request)
        asked.append(url)
        return urlopen(files[url].as_uri())

    monkeypatch.setattr(torch.hub, "urlopen", open_)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    return files, asked


@pytest.mark.parametrize(
    ("name", "kind", "content"),
    [
        ("x.pth", "zip", {"state_dict": {"a": torch.ones(1)}}),
        ("x.pkl", "pickle2", {"model": {"a": np.ones(1)}, "__author__": "x"}),
        ("y.pkl", "pickle2", {"blobs": {"a": np.ones(1)}}),
        ("x.pyth", "zip", {"model_state": {"a": torch.ones(1)}}),
    ],
)
def test_an_unknown_query_is_an_error_for_every_format(tmp_path, name, kind, content):
    """Detectron2 ignores it for .pkl and .pyth."""
    path = write(kind, tmp_path / name, content)
    with pytest.raises(ValueError, match=r"unknown query matching; only 'matching_heuristics=True' is known"):
        open_checkpoint(f"{path}?matching=True")
    with pytest.raises(ValueError, match="matching_heuristics is True or False, got 'true'"):  # silently False there
        open_checkpoint(f"{path}?matching_heuristics=true")
    assert open_checkpoint(f"{path}?matching_heuristics=True")["matching_heuristics"] is True
    assert list(open_checkpoint(path)["state_dict"]) == ["a"]  # no error before it gets in the way


def test_a_question_mark_may_be_part_of_a_name(tmp_path):
    path = write("zip", tmp_path / "what?.pth", {"n": 1})
    assert open_checkpoint(path) == {"n": 1}


def test_a_scheme_of_ones_own(tmp_path, scheme):
    """Detectron2's case: a handler for detectron2_test://, with and without a query, also by mmengine's loader."""
    model = nn.ModuleDict({"block": nn.Linear(2, 1)})
    write("zip", tmp_path / "x.pth", model["block"].state_dict())
    scheme("detectron2_test://", lambda rest: tmp_path / rest)
    with pytest.raises(ValueError, match="no tensor of it fits"):
        load_weights(model, "detectron2_test://x.pth")
    assert load_weights(model, "detectron2_test://x.pth?matching_heuristics=True").complete
    assert "state_dict" in CheckpointLoader.load_checkpoint("detectron2_test://x.pth")
    scheme("two://", lambda rest: f"detectron2_test://{rest}")  # one that leads to another
    assert "state_dict" in open_checkpoint("two://x.pth")
    trace = tmp_path / "was_here"
    write("zip", tmp_path / "evil.pth", {"x": Evil(trace)})
    with pytest.raises(ValueError, match="would run code"):
        open_checkpoint("two://evil.pth")
    assert not trace.exists()
    with pytest.raises(KeyError, match="two:// is registered already"):
        scheme("two://", os.fspath)
    with pytest.raises(ValueError, match="looks like 'catalog://', got 'two'"):
        scheme("two", os.fspath)


def test_the_page_runs(tmp_path, monkeypatch, scheme):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    code = re.findall(r"```python\n(import .*?)```", page, re.DOTALL)
    assert len(code) == 1
    said = []
    exec(code[0], {"print": lambda report: said.append(f"print(report)  # {report}")})
    assert said[0] in page


def test_a_loader_registered_with_mmengine_is_asked(scheme):
    CheckpointLoader.register_scheme("mine://", loader=lambda name, map_location=None: {"state_dict": {name: 1}})
    assert open_checkpoint("mine://x") == {"state_dict": {"mine://x": 1}}


def test_schemes_that_would_open_code_are_refused():
    for name in ("s3://bucket/x.pth", "petrel://x.pth", "pavi://x.pth", "local://x.pth", "catlog://x.pth"):
        with pytest.raises(
            ValueError, match=f"weights are not fetched from {name.partition(':')[0]}:; download the file"
        ):
            open_checkpoint(name)
        if not name.startswith(("catlog", "local")):
            with pytest.raises(ValueError, match="weights are not fetched"):
                CheckpointLoader.load_checkpoint(name)


def test_downloads_are_kept_and_read_safely(tmp_path, web):
    files, asked = web
    trace = tmp_path / "was_here"
    files["https://a/x.pkl?token=1"] = write("pickle2", tmp_path / "1", {"model": {"a": np.ones(1)}})
    files["https://b/x.pkl"] = write("pickle2", tmp_path / "2", {"model": {"a": np.zeros(1)}})
    files["http://a/evil.pth"] = write("zip", tmp_path / "3", {"x": Evil(trace)})
    for _ in range(2):
        one = open_checkpoint("https://a/x.pkl?token=1&matching_heuristics=True")
        assert one["matching_heuristics"]
        assert one["state_dict"]["a"].item() == 1
        assert open_checkpoint("https://b/x.pkl")["state_dict"]["a"].item() == 0  # not the other server's file
    assert asked == ["https://a/x.pkl?token=1", "https://b/x.pkl"]
    for open_ in (open_checkpoint, CheckpointLoader.load_checkpoint):
        with pytest.raises(ValueError, match="would run code"):
            open_("http://a/evil.pth")
    assert not trace.exists()


def test_names_of_zoos_lead_to_their_urls(tmp_path, web, monkeypatch):
    files, asked = web
    file = write("zip", tmp_path / "x.pth", {"state_dict": {"backbone.a": torch.ones(1), "head.b": torch.ones(1)}})
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    lab = "https://download.openmmlab.com/"
    monkeypatch.setattr(
        mmengine_checkpoint, "get_external_models", lambda: {"detectron2/resnet50": f"{lab}r-{digest}.pth"}
    )
    monkeypatch.setattr(mmengine_checkpoint, "get_deprecated_model_names", lambda: {"r50": "detectron2/resnet50"})
    monkeypatch.setattr(
        mmengine_checkpoint, "get_mmcls_models", lambda: {"v1": f"{lab}v-{digest}.pth", "v2": f"{lab}v-00000000.pth"}
    )
    names = {
        "open-mmlab://detectron2/resnet50": f"{lab}r-{digest}.pth",
        "mmcls://v1": f"{lab}v-{digest}.pth",
        "detectron2://ImageNetPretrained/R-50.pth": "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/R-50.pth",
    }
    files |= dict.fromkeys([*names.values(), f"{lab}v-00000000.pth"], file)
    for name, url in names.items():
        state = open_checkpoint(name)["state_dict"]
        assert list(state) == (["a"] if name.startswith("mmcls") else ["backbone.a", "head.b"])
        assert asked[-1] == url
    assert open_checkpoint("openmmlab://r50")["state_dict"]
    with pytest.raises(RuntimeError, match="invalid hash value"):  # what arrived is not what was published
        open_checkpoint("mmcls://v2")
    with pytest.raises(ValueError, match=r"open-mmlab:// has no 'resnet50'; did you mean detectron2/resnet50"):
        open_checkpoint("open-mmlab://resnet50")
    with pytest.raises(ValueError, match="torchvision has no weights 'torchvision://resnet51'"):
        open_checkpoint("torchvision://resnet51")
