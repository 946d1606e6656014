"""Candidates and what is chosen of them: by hand, equal scores, everything kept, MMDetection 3.3.0."""

import pytest
import torch
from reference import arguments, assert_same, cases

from detkit.models.dense_heads.prediction.postprocess import (
    Candidates,
    DenseTestCfg,
    _best,
    _best_above,
    _logit_below,
    _top,
    detections,
    filter_scores_and_topk,
    select_candidates,
)
from detkit.ops import batched_nms
from detkit.registry import building
from detkit.structures.boxes import scale_boxes

SCORES = torch.tensor([[0.1, 0.9], [0.6, 0.6], [0.3, 0.0]])


@pytest.mark.parametrize("case", cases("boxes/filter_scores_and_topk"))
def test_reference(case):
    assert_same(filter_scores_and_topk(**arguments(case["inputs"])), case["outputs"]["out"], 1e-5, 1e-5)


def test_best_first_and_of_equal_scores_the_first():
    scores, labels, index, results = filter_scores_and_topk(SCORES, 0.2, 3, [torch.arange(3), SCORES])
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.6, 0.6]))
    assert labels.tolist() == [1, 0, 1]
    assert index.tolist() == results[0].tolist() == [0, 1, 1]
    assert filter_scores_and_topk(SCORES, 0.2, 1, torch.arange(3))[3].tolist() == [0]


@pytest.mark.parametrize("topk", [-1, None, 100])
def test_no_limit_keeps_all(topk):
    """With -1, MMDetection drops the lowest."""
    scores, *_, results = filter_scores_and_topk(SCORES, 0.2, topk)
    assert scores.tolist() == pytest.approx([0.9, 0.6, 0.6, 0.3])
    assert results is None


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"scores have shape \(3,\), expected \(A, C\)"):
        filter_scores_and_topk(SCORES[:, 0], 0.2, 3)
    with pytest.raises(TypeError, match="results must be a tensor, dict or list, got tuple"):
        filter_scores_and_topk(SCORES, 0.2, 3, (SCORES,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_best_of_a_level_and_of_equal_scores_the_first(dtype):
    scores = torch.tensor([[0.5, 1.0, 0.25, 1.0, 1.0, 0.5], [0.0] * 6], dtype=dtype)
    value, index = _top(scores, 4)
    assert index.tolist() == [[1, 3, 4, 0], [0, 1, 2, 3]]
    assert torch.equal(value, scores.gather(1, index))


def test_class_scores_choose_and_factors_only_multiply():
    """The best two by class score stay although a third has a better product; the threshold is on class scores too."""
    scores = torch.tensor([[[0.9], [0.8], [0.7]]])
    factors = torch.tensor([[0.1, 0.5, 1.0]])
    priors = torch.arange(6.0).view(3, 2)
    found = select_candidates(
        [scores, scores[:, :1] / 10],
        [torch.zeros(1, 3, 5), torch.zeros(1, 1, 5)],
        [priors, priors[:1]],
        lambda chosen, predictions: torch.cat([chosen, predictions[..., :2]], dim=-1),
        DenseTestCfg(nms_pre=2, score_thr=0.2),
        [factors, factors[:, 2:]],
    )
    torch.testing.assert_close(found.scores[found.kept], torch.tensor([0.09, 0.4]))
    assert found.boxes[found.kept][:, :2].tolist() == [[0, 1], [2, 3]]


def decode(priors, offsets):
    return priors + offsets


def random_levels(seed, sizes=(40, 12), batch_size=3, num_classes=5, scale=3.0):
    draw = torch.Generator().manual_seed(seed)
    priors = [torch.rand(size, 4, generator=draw) * 50 + torch.tensor([0.0, 0, 60, 60]) for size in sizes]
    logits = [torch.randn(batch_size, size, num_classes, generator=draw) * scale for size in sizes]
    offsets = [torch.randn(batch_size, size, 4, generator=draw) for size in sizes]
    factors = [torch.randn(batch_size, size, generator=draw) for size in sizes]
    return logits, offsets, priors, factors


@pytest.mark.parametrize("nms_pre", [None, 7, 1000])
@pytest.mark.parametrize("score_thr", [0.0, 0.3, 0.9, 1.0])
def test_the_few_above_the_threshold_are_those_of_all(nms_pre, score_thr):
    """With saturated scores and an image of which nothing is above; the other way needs no count of them."""
    cfg = DenseTestCfg(nms_pre=nms_pre, score_thr=score_thr)
    scores = random_levels(0, scale=20.0)[0][0]
    scores[1] -= 100
    few, index = _best_above(scores, cfg, True)
    every, of_all = _best(scores, cfg, True)
    for image in range(3):
        wanted = every[image] > score_thr
        assert torch.equal(index[image][few[image] > score_thr], of_all[image][wanted])
        assert torch.equal(few[image][few[image] > score_thr], every[image][wanted])
    of_scores = _best_above(scores.sigmoid(), cfg, False)[0]
    assert torch.equal(of_scores[of_scores > score_thr], few[few > score_thr])


@pytest.mark.parametrize("score", [1e-6, 0.05, 0.3, 0.5, 0.9, 0.999, 0.99999])
def test_a_logit_below_the_threshold_is_close_to_it(score):
    around = torch.linspace(-20, 20, 400001)
    assert around[around.sigmoid() > score].min() > _logit_below(score)
    assert torch.tensor(_logit_below(min(score, 0.999))).sigmoid().item() == pytest.approx(min(score, 0.999), rel=2e-3)


@pytest.mark.parametrize(
    "nms", [{"iou_threshold": 0.3}, {"type": "soft_nms"}, {"iou_threshold": 1, "max_num": 4}, None]
)
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_a_batch_gives_what_each_image_gives(nms, class_agnostic):
    """One image of three has nothing above the threshold; image facts differ."""
    nms = nms and {**nms, "class_agnostic": class_agnostic}
    cfg = DenseTestCfg(nms_pre=30, score_thr=0.6, min_bbox_size=1, nms=nms, max_per_img=9)
    logits, offsets, priors, factors = random_levels(1)
    for level in logits:
        level[1] -= 100
    metas = [{"scale_factor": (0.5, 2.0)}, {}, {"scale_factor": (1.5, 1.0)}]
    together = detections(select_candidates(logits, offsets, priors, decode, cfg, factors, True), metas, cfg, True)
    counts = [len(found.scores) for found in together]
    assert counts[1] == 0
    assert 0 < min(counts[0], counts[2]) <= (4 if nms and "max_num" in nms else 9)
    for image, meta in enumerate(metas):
        own = [[level[image : image + 1] for level in levels] for levels in (logits, offsets, factors)]
        scores, fits = ([level.sigmoid() for level in levels] for levels in (own[0], own[2]))
        candidates = select_candidates(scores, own[1], priors, decode, cfg, fits)
        assert_same(together[image], detections(candidates, [meta], cfg, True)[0].to_dict(), 0, 0)
        kept = candidates.kept[0]
        boxes = scale_boxes(candidates.boxes[0][kept], [1 / factor for factor in meta.get("scale_factor", (1.0, 1.0))])
        dets, keep = batched_nms(boxes, candidates.scores[0][kept], candidates.labels[0][kept], nms)
        torch.testing.assert_close(together[image].bboxes, dets[:9, :4])
        torch.testing.assert_close(together[image].scores, dets[:9, 4])
        assert torch.equal(together[image].labels, candidates.labels[0][kept][keep][:9])


def test_boxes_of_the_least_size_go():
    boxes = torch.tensor([[[0.0, 0, 4, 9], [0, 0, 9, 4], [0, 0, 5, 5]]])
    ones = torch.ones(1, 3)
    candidates = Candidates(ones, ones.long(), boxes, ones.bool())
    found = detections(candidates, [{}], DenseTestCfg(min_bbox_size=4), rescale=False)
    assert found[0].bboxes.tolist() == [[0, 0, 5, 5]]
    # In the frame of the original image all are large.
    found = detections(candidates, [{"scale_factor": (0.5, 0.5)}], DenseTestCfg(min_bbox_size=4), rescale=True)
    assert len(found[0].bboxes) == 3


@pytest.mark.parametrize(
    ("cfg", "error", "message"),
    [
        ({"nms_pre": 0}, ValueError, r"test_cfg\.nms_pre is 0, which keeps nothing; -1 keeps all"),
        ({"nms_pre": 1000.0}, TypeError, r"test_cfg\.nms_pre must be a whole number, got 1000\.0"),
        ({"max_per_img": None}, TypeError, r"test_cfg\.max_per_img must be a whole number, got None"),
        ({"score_thr": 5}, ValueError, r"test_cfg\.score_thr must be in \[0, 1\], got 5"),
        ({"score_thr": "0.05"}, TypeError, r"test_cfg\.score_thr must be a number, got '0\.05'"),
        ({"min_bbox_size": True}, TypeError, r"test_cfg\.min_bbox_size must be a number, got True"),
        ({"nms": {"type": "soft_nsm"}}, ValueError, r"test_cfg\.nms\.type: unknown .* did you mean 'soft_nms'"),
        ({"nms": {"type": "nms"}}, TypeError, r"test_cfg\.nms: 'iou_threshold' is missing"),
        ({"nms": {"iou_threshold": 1.5}}, ValueError, r"test_cfg\.nms\.iou_threshold must be in \[0, 1\], got 1\.5"),
        ({"nms_thr": 0.5}, KeyError, r"test_cfg\.nms_thr: unknown key"),
    ],
)
def test_wrong_values_are_refused_when_a_head_is_built(cfg, error, message):
    with building("model.bbox_head", {}), pytest.raises(error, match=r"model\.bbox_head\." + message):
        DenseTestCfg.of(cfg)
