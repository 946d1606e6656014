"""SSD: hard negatives by hand, what is refused, prediction."""

import pytest
import torch
from no_sync import NoSync
from reference import arguments, case_named, load_weights

from detkit.models import SSDHead
from detkit.models.dense_heads.ssd_head import hardest_negatives
from detkit.registry import MODELS


def test_hardest_negatives_by_hand():
    losses = torch.tensor([[5.0, 1, 4, 2], [3, 3, 1, 0]], requires_grad=True)
    negative = torch.tensor([[False, True, True, True], [True, True, True, False]])
    with NoSync():
        total = hardest_negatives(losses, negative, torch.tensor([2, 30]))
    # 4 and 2 of the first image, all of the second
    assert total.tolist() == [6, 7]
    total.sum().backward()
    assert losses.grad.tolist() == [[0, 0, 1, 1], [1, 1, 1, 0]]
    assert hardest_negatives(losses, negative, torch.tensor([0, 0])).tolist() == [0, 0]


def test_it_predicts_as_it_is_built():
    """MMDetection's own fails until its loss is set to None."""
    case, usual = case_named("dense_heads/SSDHead", "predict_as_released"), case_named("dense_heads/SSDHead", "predict")
    head = MODELS.build(case["config"]).eval()
    load_weights(head, usual)
    results = head.predict(**arguments(usual["inputs"]))
    expected = usual["outputs"]["predictions"]
    for actual, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(actual.scores, wanted["scores"], rtol=1e-3, atol=1e-4)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="anchors of 6 levels, but 2 in_channels"):
        SSDHead(in_channels=[8, 8])
    with pytest.raises(ValueError, match="must be one over a softmax"):
        SSDHead(loss_cls={"type": "CrossEntropyLoss", "use_sigmoid": True})


@pytest.mark.parametrize("change", [{"reg_decoded_bbox": True, "loss_bbox": {"type": "GIoULoss"}}])
def test_losses_may_be_others(change):
    case = case_named("dense_heads/SSDHead", "loss")
    inputs, values = arguments(case["inputs"]), []
    for config in (case["config"], {**case["config"], **change}):
        head = MODELS.build(config)
        load_weights(head, case)
        with NoSync():
            values.append(head.loss(inputs["x"], inputs["batch_data_samples"]))
    torch.testing.assert_close(values[0]["loss_cls"], values[1]["loss_cls"])
    assert values[0]["loss_bbox"] != values[1]["loss_bbox"]
    assert torch.isfinite(values[1]["loss_bbox"])
