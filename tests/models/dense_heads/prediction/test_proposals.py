"""Proposals of a fixed number: equal to suppression image by image, in rows that are padded."""

import pytest
import torch
from no_sync import NoSync

from detkit.models.dense_heads.prediction.postprocess import Candidates, DenseTestCfg, detections
from detkit.models.dense_heads.prediction.proposals import propose


def candidates(seed=0, num=60):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(3, num, 2, generator=generator) * 40
    size = torch.rand(3, num, 2, generator=generator) * 30
    size[0, :10] = 0  # without area
    scores = torch.rand(3, num, generator=generator)
    levels = torch.randint(0, 3, (3, num), generator=generator)
    kept = torch.rand(3, num, generator=generator) > 0.2
    kept[2] = False
    return Candidates(scores, levels, torch.cat([corner, corner + size], dim=2), kept)


@pytest.mark.parametrize("limit", [5, 1000, -1])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("min_size", [-1, 0, 4])
def test_rows_are_the_detections_of_each_image(limit, agnostic, min_size):
    nms = {"type": "nms", "iou_threshold": 0.4, "class_agnostic": agnostic}
    cfg = DenseTestCfg(nms=nms, max_per_img=limit, min_bbox_size=min_size)
    got = propose(candidates(), cfg)
    expected = detections(candidates(), [{}] * 3, cfg, rescale=False)
    assert got.boxes.shape == (3, 5 if limit == 5 else 60, 4)
    assert got.valid.sum(dim=1).tolist() == [len(one) for one in expected]
    assert got.valid[2].sum() == 0
    for index, one in enumerate(expected):
        count = len(one)
        assert got.valid[index, :count].all()
        torch.testing.assert_close(got.boxes[index, :count], one.bboxes)
        torch.testing.assert_close(got.scores[index, :count], one.scores)
        assert got.boxes[index, count:].abs().sum() == 0


def test_without_suppression_the_best_stay():
    got = propose(candidates(), DenseTestCfg(max_per_img=4))
    best = torch.where(candidates().kept, candidates().scores, -1.0).topk(4, dim=1).values
    torch.testing.assert_close(got.scores, best.clamp(min=0))


def test_suppression_alone_waits(monkeypatch):
    import torchvision

    monkeypatch.setattr(torchvision.ops, "nms", lambda boxes, scores, _: scores.argsort(descending=True)[::2])
    with NoSync():
        got = propose(candidates(), DenseTestCfg(nms={"type": "nms", "iou_threshold": 0.4}, max_per_img=7))
    assert got.boxes.shape == (3, 7, 4)


def test_no_candidates():
    empty = candidates(num=10)
    empty = Candidates(*(value[:, :0] for value in (empty.scores, empty.labels, empty.boxes, empty.kept)))
    got = propose(empty, DenseTestCfg(nms={"type": "nms", "iou_threshold": 0.4}, max_per_img=7))
    assert got.boxes.shape == (3, 0, 4)
