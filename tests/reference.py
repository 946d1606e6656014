"""Reference cases under ``tests/data/parity``: how to load, build, call and compare them.

Each file is a list of cases: config, method, inputs, and what MMDetection 3.3.0 returned. DETKIT_TEST_DEVICE=cuda
compares on a GPU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from detkit.structures.masks import BitmapMasks, PolygonMasks
from detkit.structures.sample import DetDataSample

DATA = Path(__file__).parent / "data" / "parity"
DEVICE = torch.device(os.environ.get("DETKIT_TEST_DEVICE", "cpu"))
if DEVICE.type == "cuda":
    torch.backends.cudnn.allow_tf32 = False  # ten bits of a mantissa meet no tolerance here


def cases(name: str) -> list[Any]:
    """Cases of ``group/Name`` as pytest parameters."""
    return [pytest.param(case, id=case["name"]) for case in torch.load(DATA / f"{name}.pt", weights_only=True)]


def case_named(name: str, case: str) -> dict[str, Any]:
    """One case of ``group/Name``."""
    found = [c for c in torch.load(DATA / f"{name}.pt", weights_only=True) if c["name"] == case]
    return found[0]


def rule_tensor(shape: list[int], lo: float, hi: float, seed: int) -> Tensor:
    """Weights as the reference's rule makes them."""
    count = 1
    for size in shape:
        count *= size
    x = (torch.arange(count) * 2654435761 + seed * 40503 + 12345) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 2246822519) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 3266489917) & 0xFFFFFFFF
    x = x ^ (x >> 16)
    return (x.double() / 2**32 * (hi - lo) + lo).float().reshape(shape)


def rule_weights(network: torch.nn.Module, period: int | None = None) -> dict[str, Tensor]:
    """A state dict by the rule: norms near one, offsets of some pixels, convolutions that keep the scale.

    With ``period``, a weight repeats its first so many values: the rule takes long for many.
    """

    def values(shape: list[int], lo: float, hi: float, seed: int) -> Tensor:
        count = math.prod(shape)
        if period is None or count <= period:
            return rule_tensor(shape, lo, hi, seed)
        return rule_tensor([period], lo, hi, seed).repeat(count // period + 1)[:count].reshape(shape)

    state = {}
    for seed, (name, value) in enumerate(sorted(network.state_dict().items())):
        shape = list(value.shape)
        if not value.is_floating_point():
            state[name] = value.clone()
        elif name.endswith("running_mean") or name.endswith("bias"):
            state[name] = values(shape, -0.2, 0.2, seed)
        elif value.ndim < 2:
            state[name] = values(shape, 0.5, 1.5, seed)
        else:
            bound = (3 / value[0].numel()) ** 0.5
            state[name] = values(shape, -bound, bound, seed)
    return state


def projection(feature: Tensor) -> float:
    """A number that every element moves, and their order."""
    weights = rule_tensor(list(feature.shape), -1, 1, 7)
    return float((feature * weights).sum() / feature.numel() ** 0.5)


def load_weights(module: torch.nn.Module, case: Mapping[str, Any]) -> None:
    """The case's weights, every one of them, into the module."""
    state = {name: value.float() if value.is_floating_point() else value for name, value in case["state_dict"].items()}
    state |= {name: rule_tensor(*rule) for name, rule in case.get("state_rule", {}).items()}
    module.load_state_dict(state, strict=True)


def instances(fields: Mapping[str, Any]) -> InstanceData:
    """Instance data of a dict of tensors; integer ``masks`` are bitmaps, ``polygons`` go into ``masks`` too."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "polygons":
            parts = [[np.array(part) for part in parts] for parts in value["polygons"]]
            found["masks"] = PolygonMasks(parts, *value["size"])
        elif name == "masks" and value.dtype == torch.uint8:
            found["masks"] = BitmapMasks(value.numpy().copy(), *value.shape[1:])
        else:
            found[name] = value.clone().to(DEVICE)
    return InstanceData(**found)


def data_sample(case: Mapping[str, Any]) -> DetDataSample:
    """A data sample of its dict."""
    sample = DetDataSample(metainfo=case["metainfo"])
    sample.gt_instances = instances(case["gt_instances"])
    sample.ignored_instances = instances(case["ignored_instances"])
    if "gt_sem_seg" in case:
        sample.gt_sem_seg = PixelData(sem_seg=case["gt_sem_seg"].clone().to(DEVICE))
    return sample


def arguments(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs as the method takes them."""
    found: dict[str, Any] = {}
    for name, value in inputs.items():
        if name.endswith(("_instances", "_instances_ignore")):
            found[name] = instances(value)
        elif name == "rpn_results_list":
            found[name] = [instances(one) for one in value]
        elif name.endswith("data_samples"):
            found[name] = [data_sample(one) for one in value]
        else:
            found[name] = on_device(value)
    return found


def on_device(value: Any) -> Any:
    """Copies of tensors, also within lists and dicts; what is none of these as it is."""
    if isinstance(value, Tensor):
        return value.clone().to(DEVICE)
    if isinstance(value, (list, tuple)):
        return type(value)(on_device(one) for one in value)
    return {key: on_device(one) for key, one in value.items()} if type(value) is dict else value


def assert_same(actual: Any, expected: Any, rtol: float, atol: float, where: str = "") -> None:
    """Every expected key is met; further keys of the actual value may be there."""
    if isinstance(expected, Mapping):
        for key, value in expected.items():
            found = actual[key] if isinstance(actual, Mapping) else getattr(actual, key)
            assert_same(found, value, rtol, atol, f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), where
        for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert_same(a, e, rtol, atol, f"{where}[{index}]")
    elif isinstance(expected, Tensor):
        torch.testing.assert_close(
            actual.cpu() if isinstance(actual, Tensor) else actual,
            expected,
            rtol=rtol,
            atol=atol,
            equal_nan=True,
            check_dtype=expected.dtype != torch.bool,
            msg=None,
        )
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=rtol, abs=atol, nan_ok=True), where
    else:
        assert actual == expected, where
