"""Accuracy against MMDetection 3.3.0 and by hand."""

import pytest
import torch
from no_sync import NoSync
from reference import assert_same, cases

from detkit.losses import Accuracy, accuracy
from detkit.losses.accuracy import foreground_accuracy


@pytest.mark.parametrize("case", cases("losses/accuracy"))
def test_reference(case):
    inputs = dict(case["inputs"])
    if isinstance(inputs.get("topk"), list) and case["name"] != "list":
        inputs["topk"] = tuple(inputs["topk"])  # the file keeps tuples as lists
    if "error" in case:
        with pytest.raises((TypeError, ValueError), match="accuracy: topk"):
            accuracy(**inputs)
        return
    assert_same(accuracy(**inputs), case["outputs"]["out"], rtol=1e-5, atol=1e-5)


def test_by_hand():
    scores = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.3, 0.4, 0.3], [0.6, 0.3, 0.1]])
    labels = torch.tensor([2, 1, 2, 0])  # hit; second; no or third; hit
    torch.testing.assert_close(Accuracy(topk=1)(scores, labels), torch.tensor([50.0]))
    torch.testing.assert_close(Accuracy(topk=(1, 3))(scores, labels), [torch.tensor([50.0]), torch.tensor([100.0])])
    torch.testing.assert_close(Accuracy(topk=1, thresh=0.65)(scores, labels), torch.tensor([25.0]))


def test_a_score_at_the_threshold_is_not_above_it():
    scores = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    torch.testing.assert_close(accuracy(scores, torch.tensor([1, 0]), thresh=0.5), torch.tensor([50.0]))


@pytest.mark.parametrize("topk", [0, (), (1, -1)])
def test_no_class_is_not_asked_for(topk):
    with pytest.raises(ValueError, match="accuracy: topk is one number or several, each >= 1, got"):
        accuracy(torch.eye(2), torch.arange(2), topk=topk)


def test_one_number_in_a_tuple_gives_a_list():
    assert len(Accuracy()(torch.eye(2), torch.arange(2))) == 1


@pytest.mark.parametrize(("shape", "num"), [((3,), 3), ((3, 2), 4)])
def test_shapes_that_do_not_fit_are_refused(shape, num):
    with pytest.raises(ValueError, match=rf"accuracy: scores \(N, C\) and labels \(N,\).*\({num},\)"):
        accuracy(torch.zeros(shape), torch.zeros(num, dtype=torch.int64))


def test_only_samples_with_a_class_count():
    scores = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    labels = torch.tensor([0, 1, 2, -1])  # hit, miss, background, ignored
    torch.testing.assert_close(foreground_accuracy(scores, labels), torch.tensor([50.0]))
    torch.testing.assert_close(foreground_accuracy(scores, torch.full((4,), 2)), torch.tensor([0.0]))
    torch.testing.assert_close(foreground_accuracy(scores[:0], labels[:0]), torch.tensor([0.0]))


def test_nothing_waits_for_the_device():
    with NoSync():
        accuracy(torch.eye(3), torch.arange(3), topk=(1, 2), thresh=0.5)
        foreground_accuracy(torch.eye(3), torch.arange(3))
