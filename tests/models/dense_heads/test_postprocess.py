"""Candidates and what is chosen of them: by hand, equal scores, everything kept, MMDetection 3.3.0."""

import pytest
import torch
from reference import arguments, assert_same, cases

from detkit.models.dense_heads.postprocess import DenseTestCfg, _top, filter_scores_and_topk, select_candidates

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
    torch.testing.assert_close(found.scores, torch.tensor([[0.09, 0.4, 0.09]]))
    assert found.kept.tolist() == [[True, True, False]]
    assert found.boxes[..., :2].tolist() == [[[0, 1], [2, 3], [0, 1]]]
