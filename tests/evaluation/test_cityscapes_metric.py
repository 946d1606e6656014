"""CityScapesMetric against the benchmark's own script, by hand, and what is wrong with its input."""

import gzip
import io

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from reference import DATA

from detkit.evaluation import CityScapesMetric
from detkit.structures.sample import DetDataSample

CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")


def metric_of(folder, classes=CLASSES, **arguments):
    metric = CityScapesMetric(**{"seg_prefix": str(folder / "gtFine"), **arguments})
    metric.dataset_meta = {"classes": classes}
    return metric


def write(folder, truth, name="a"):
    (folder / "gtFine" / "bonn").mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "gtFine" / "bonn" / f"{name}_gtFine_instanceIds.png"), truth.astype(np.uint16))


def sample_of(folder, masks, labels, scores, name="a"):
    path = str(folder / "leftImg8bit" / "bonn" / f"{name}_leftImg8bit.png")
    sample = DetDataSample(metainfo={"img_path": path, "ori_shape": masks.shape[1:]})
    sample.pred_instances = InstanceData(masks=masks, labels=torch.as_tensor(labels), scores=torch.as_tensor(scores))
    return sample


def test_reference(tmp_path):
    content = gzip.decompress((DATA / "metrics" / "cityscapes.pt.gz").read_bytes())
    case = torch.load(io.BytesIO(content), weights_only=True)
    metric = metric_of(tmp_path, case["classes"])
    for number, image in enumerate(case["images"]):
        write(tmp_path, image["truth"].numpy(), str(number))
        masks = np.unpackbits(image["masks"].numpy(), axis=-1)[..., : case["width"]].astype(bool)
        sample = sample_of(tmp_path, torch.from_numpy(masks), image["labels"], image["scores"], str(number))
        metric.process({}, [sample.to_dict() if number % 2 else sample])
    found = metric.evaluate(len(case["images"]))
    assert found == pytest.approx({"cityscapes/mAP": case["mAP"], "cityscapes/AP@50": case["AP50"]}, rel=1e-9)
    assert 0 < case["mAP"] < case["AP50"] < 1


def mask(*boxes):
    masks = torch.zeros(len(boxes), 40, 60, dtype=torch.bool)
    for one, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        one[y1:y2, x1:x2] = True
    return masks


def truth():
    """A car of 20 x 20, a group of cars, a car of nine pixels, void; road elsewhere."""
    ids = np.full((40, 60), 7)
    ids[:20, :20], ids[20:, :20], ids[20:23, 40:43], ids[:, 50:] = 26001, 26, 26002, 3
    return ids


@pytest.mark.parametrize(
    ("boxes", "scores", "expected"),
    [
        ([(0, 0, 20, 20)], [0.5], 1.0),
        ([(0, 0, 20, 20), (20, 0, 40, 20)], [0.5, 0.4], 1.0),  # wrong, but less sure
        ([(0, 0, 20, 20), (0, 20, 20, 40)], [0.5, 0.9], 1.0),  # in a group
        ([(0, 0, 20, 20), (50, 0, 60, 20)], [0.5, 0.9], 1.0),  # in void
        ([(0, 0, 20, 20), (40, 20, 43, 24)], [0.5, 0.9], 1.0),  # on a small one
        ([(20, 0, 40, 20)], [0.5], 0.0),
        ([], [], 0.0),
    ],
)
def test_by_hand(tmp_path, boxes, scores, expected):
    write(tmp_path, truth())
    metric = metric_of(tmp_path)
    metric.process({}, [sample_of(tmp_path, mask(*boxes), [2] * len(boxes), scores)])
    assert metric.evaluate(1)["cityscapes/AP@50"] == pytest.approx(expected)


def test_predictions_are_written_for_the_server(tmp_path):
    metric = metric_of(tmp_path, format_only=True, seg_prefix=None, outfile_prefix=str(tmp_path / "out"))
    metric.process({}, [sample_of(tmp_path, mask((0, 0, 20, 20), (5, 5, 9, 9)), [2, 0], [0.5, 0.25])])
    assert metric.evaluate(1) == {}
    lines = (tmp_path / "out" / "results" / "a_leftImg8bit_pred.txt").read_text().splitlines()
    names, ids, scores = zip(*(line.split() for line in lines), strict=True)
    assert (ids, scores) == (("26", "24"), ("0.5", "0.25"))
    written = cv2.imread(str(tmp_path / "out" / "results" / names[1]), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(written > 0, mask((5, 5, 9, 9))[0].numpy())


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(ValueError, match="seg_prefix: the folder of the ground truth was expected"):
        CityScapesMetric()
    with pytest.raises(ValueError, match="give outfile_prefix"):
        CityScapesMetric(format_only=True)
    sample = sample_of(tmp_path, mask((0, 0, 20, 20)), [2], [0.5])
    with pytest.raises(
        FileNotFoundError, match=r"bonn/a_gtFine_instanceIds\.png: the ground truth of .* does not exist"
    ):
        metric_of(tmp_path).process({}, [sample])
    write(tmp_path, truth()[:30])
    with pytest.raises(ValueError, match=r"instance ids of shape \(40, 60\) were expected, got \(30, 60\)"):
        metric_of(tmp_path).process({}, [sample])
    with pytest.raises(ValueError, match="Cityscapes has no class 'cars'; did you mean 'car'"):
        metric_of(tmp_path, ("person", "rider", "cars")).process({}, [sample])
    with pytest.raises(ValueError, match="the label 2 stands for none of the 2 classes"):
        metric_of(tmp_path, ("person", "rider")).process({}, [sample])
    del sample.pred_instances.masks
    with pytest.raises(ValueError, match="needs masks, but the model predicts none"):
        metric_of(tmp_path).process({}, [sample])
