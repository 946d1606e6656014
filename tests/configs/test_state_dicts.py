"""Checkpoints of MMDetection fit: names and shapes of weights of every shipped config that it has too."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch
from shipped import SHIPPED, config_of, name_of, parametrized

from detkit.registry import MODELS


def reference():
    """MMDetection 3.3.0's configs: number of parameters, and the shape of each entry of the state dict."""
    with gzip.open(Path(__file__).parents[1] / "data" / "state_dicts.json.gz", "rt") as file:
        return json.load(file)


REFERENCE = reference()
NAMED = [path for path in SHIPPED if name_of(path) in REFERENCE]


@parametrized(NAMED)
def test_keys_and_shapes_are_mmdetections(path):
    with torch.device("meta"):
        model = MODELS.build(config_of(path).model)
    expected = REFERENCE[name_of(path)]
    found = {name: list(value.shape) for name, value in model.state_dict().items()}
    missing, extra = expected["keys"].keys() - found.keys(), found.keys() - expected["keys"].keys()
    assert (sorted(missing), sorted(extra)) == ([], [])
    assert found == expected["keys"]
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["params"]


def test_the_reference_names_most_of_what_is_shipped():
    """Were the names of files and reference to part, the test above would hold nothing."""
    on_coco = [path for path in SHIPPED if not path.stem.endswith("_shapes")]
    assert len(NAMED) >= len(on_coco) / 2
