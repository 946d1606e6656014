"""Every transform against MMDetection's values."""

import gzip
import io

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from detkit.registry import TRANSFORMS
from detkit.structures import BitmapMasks, DetDataSample, PolygonMasks
from tests.reference import DATA, cases

# Cases that MMDetection refuses with an assertion; detkit says what is wrong.
REFUSED = {"none_bitmaps": "one of size, size_divisor and pad_to_square was expected"}


def _all():
    names = ["LoadAnnotations", "Resize", "RandomFlip", "Pad", "FilterAnnotations", "PackDetInputs", "Compose"]
    for name in (*names, "FixShapeResize", "Normalize", "RandomCrop"):
        for case in cases(f"pipeline/{name}"):
            yield pytest.param(*case.values, id=f"{name}-{case.id}")


def _results(inputs):
    """The results dict of a case: arrays for tensors, tuples for sizes, masks for masks."""
    results = {}
    for key, value in inputs.items():
        if key == "gt_masks":
            results[key] = BitmapMasks(value.numpy().copy(), *value.shape[1:])
        elif key == "gt_polygons":
            polygons = [[np.array(part) for part in parts] for parts in value["polygons"]]
            results["gt_masks"] = PolygonMasks(polygons, *value["size"])
        elif key in ("img_shape", "ori_shape"):
            results[key] = tuple(value)
        else:
            results[key] = value.numpy().copy() if isinstance(value, torch.Tensor) else value
    return results


def _flatten(output):
    """What a case states of an output, in its form."""
    if output is None:
        return {"dropped": True}
    if isinstance(output.get("data_samples"), DetDataSample):
        sample = output["data_samples"]
        output = {
            **output,
            "metainfo": sample.metainfo,
            "gt_instances": dict(sample.gt_instances.items()),
            "ignored_instances": dict(sample.ignored_instances.items()),
        }
    return output


def _same(actual, expected, place):
    if isinstance(actual, PolygonMasks):
        assert [actual.height, actual.width] == list(expected["size"]), place
        _same(actual.masks, expected["polygons"], place)
    elif isinstance(expected, dict):
        for key, value in expected.items():
            assert key in actual, f"{place}.{key} is missing"
            _same(actual[key], value, f"{place}.{key}")
    elif isinstance(expected, torch.Tensor):
        actual = torch.as_tensor(np.ascontiguousarray(actual.masks if isinstance(actual, BitmapMasks) else actual))
        assert actual.dtype == expected.dtype, place
        # Tolerances of the reference: an image may differ by one, boxes by 1e-4.
        image = expected.dtype == torch.uint8 and "masks" not in place
        atol = 1 if image else 1e-4 if expected.is_floating_point() else 0
        torch.testing.assert_close(actual.double(), expected.double(), atol=atol, rtol=0 if image else 1e-5, msg=place)
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), place
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            _same(a, e, f"{place}[{i}]")
    elif isinstance(expected, float):
        assert float(actual) == pytest.approx(expected, rel=1e-5, abs=1e-4), place
    else:
        assert actual == expected, place


@pytest.mark.parametrize("case", list(_all()))
def test_reference(case):
    if "error" in case:
        with pytest.raises(ValueError, match=REFUSED[case["name"]]):
            TRANSFORMS.build(case["config"])
        return
    transform = TRANSFORMS.build(case["config"])
    if case.get("fixed"):  # a window that the reference did not draw
        transform._draw_offset = lambda *margins: case["fixed"]["offset"]
    output = transform(_results(case["inputs"]))
    if case["config"]["type"] == "RandomCrop" and "polygons" in case["name"] and output is not None:
        _sort_corners(output["gt_masks"].masks)
        _sort_corners(case["outputs"]["gt_masks"]["polygons"])
    _same(_flatten(output), case["outputs"], case["name"])


def _sort_corners(masks):
    """A cut polygon may begin at any corner, and go round either way."""
    for parts in masks:
        for i, part in enumerate(parts):
            corners = np.round(np.array(part).reshape(-1, 2), 4) + 0.0  # no negative zeros
            parts[i] = sorted(corners.tolist())


def _drawn():
    """Cases of transforms that draw, each from numpy's generator with the seed of the case."""
    for file in ("drawn.pt.gz", "drawn_masks.pt.gz"):
        content = gzip.decompress((DATA / "pipeline" / file).read_bytes())
        for case in torch.load(io.BytesIO(content), weights_only=True):
            yield pytest.param(case, id=case["name"])


@pytest.mark.parametrize("case", list(_drawn()))
def test_a_seed_gives_the_picture_of_the_reference(case):
    transform = TRANSFORMS.build(case["config"])
    results = _results(case["inputs"])
    if case["mix"]:
        results["mix_results"] = [_results(other) for other in case["mix"]]
    np.random.seed(case["seed"])
    _same(_flatten(transform(results)), case["outputs"], case["name"])


def test_boxes_of_a_packed_sample_are_plain_tensors():
    case = cases("pipeline/PackDetInputs")[0].values[0]
    sample = TRANSFORMS.build(case["config"])(_results(case["inputs"]))["data_samples"]
    assert isinstance(sample.gt_instances, InstanceData)
    assert type(sample.gt_instances.bboxes) is torch.Tensor
    assert sample.gt_instances.bboxes.dtype == torch.float32
