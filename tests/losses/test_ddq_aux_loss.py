"""The auxiliary loss of DDQ against its definition image by image and object by object."""

import pytest
import torch

from detkit.losses import DDQAuxLoss, GIoULoss, QualityFocalLoss
from detkit.losses.ddq_aux_loss import aligned_quality
from detkit.registry import MODELS, TASK_UTILS
from detkit.task_modules import TopkHungarianAssigner

NUM_CLASSES = 3
ASSIGNER = {"type": "TopkHungarianAssigner", "topk": 3}
META = {"img_shape": (100, 100)}


def batch(*counts, num_preds=20, noise=3.0, seed=0):
    """Scores, boxes, objects and facts of images with so many objects each; predictions lie near the objects."""
    generator = torch.Generator().manual_seed(seed)

    def boxes(num):
        corner = torch.rand(num, 2, generator=generator) * 60
        return torch.cat([corner, corner + 15 + torch.rand(num, 2, generator=generator) * 20], dim=1)

    gt_bboxes = [boxes(count) for count in counts]
    gt_labels = [torch.randint(0, NUM_CLASSES, (count,), generator=generator) for count in counts]
    near = [own[torch.arange(num_preds) % len(own)] if len(own) else boxes(num_preds) for own in gt_bboxes]
    preds = torch.stack(near) + torch.randn(len(counts), num_preds, 4, generator=generator) * noise
    scores = torch.rand(len(counts), num_preds, NUM_CLASSES, generator=generator) * 0.8 + 0.1
    return scores.requires_grad_(), preds.requires_grad_(), gt_bboxes, gt_labels, [META] * len(counts)


def loss_by_loops(scores, preds, gt_bboxes, gt_labels, img_metas, alpha, beta):
    """Quality of each object's predictions, then both losses over all images, divided by the sum of qualities."""
    assigner = TASK_UTILS.build(ASSIGNER)
    loss_cls = loss_bbox = total = 0.0
    for image, (boxes, labels) in enumerate(zip(gt_bboxes, gt_labels, strict=True)):
        if len(boxes) == 0:
            continue
        result = assigner.assign(scores[image], preds[image], boxes, labels, img_metas[image], alpha, beta)
        positive = result.gt_inds.nonzero().squeeze(1)
        quality = torch.zeros(scores.shape[1])
        for gt in range(len(boxes)):
            own = result.gt_inds[positive] == gt + 1
            metric, iou = result.assign_metrics[own], result.max_overlaps[own]
            quality[positive[own]] = metric / (metric.max() + 1e-7) * iou.max()
        target = torch.full((scores.shape[1],), NUM_CLASSES)
        target[positive] = labels[result.gt_inds[positive] - 1]
        loss_cls += QualityFocalLoss(activated=True, reduction="sum")(scores[image], (target, quality))
        own_boxes = boxes[result.gt_inds[positive] - 1]
        loss_bbox += GIoULoss(reduction="sum", loss_weight=2.0)(preds[image][positive], own_boxes, quality[positive])
        total += quality.sum()
    divisor = max(float(total), 1.0)
    return {"aux_loss_cls": loss_cls / divisor, "aux_loss_bbox": loss_bbox / divisor}


@pytest.mark.parametrize(
    ("counts", "alpha", "beta", "noise"),
    [
        ((2, 4), 1, 6, 3.0),
        ((3, 0, 1), 1, 6, 3.0),
        ((1, 5, 2), 0.5, 2, 3.0),
        ((8,), 1, 6, 3.0),
        ((1,), 1, 6, 30.0),  # qualities below 1 in sum
    ],
)
def test_against_loops(counts, alpha, beta, noise):
    data = batch(*counts, noise=noise)
    loss = DDQAuxLoss(train_cfg={"assigner": ASSIGNER, "alpha": alpha, "beta": beta})
    found, expected = loss.loss(*data), loss_by_loops(*data, alpha, beta)
    torch.testing.assert_close(found, expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            torch.autograd.grad(found[name], data[:2], allow_unused=True, materialize_grads=True, retain_graph=True),
            torch.autograd.grad(value, data[:2], allow_unused=True, materialize_grads=True, retain_graph=True),
        )


def test_quality_by_hand():
    # Object 1 has metrics .2 and .4 with IoUs .9 and .5: its best IoU, and half of it.
    quality = aligned_quality(
        torch.tensor([[0.2, 0.0, 0.4, 0.1]]), torch.tensor([[0.9, 0.0, 0.5, 0.3]]), torch.tensor([[1, 0, 1, 2]]), 2
    )
    torch.testing.assert_close(quality, torch.tensor([[0.45, 0.0, 0.9, 0.3]]), rtol=1e-5, atol=1e-5)


class OneByOne:
    """A user's own assigner, which knows no batches."""

    def __init__(self):
        self.inner = TASK_UTILS.build(ASSIGNER)

    def assign(self, *args):
        assert not any(value.requires_grad for value in args[:2])
        return self.inner.assign(*args)


@pytest.mark.parametrize("counts", [(2, 0, 4), (0, 0)])
def test_an_assigner_that_knows_no_batches(counts):
    data = batch(*counts)
    loss = DDQAuxLoss(train_cfg={"assigner": ASSIGNER, "alpha": 0.5, "beta": 2})
    expected = loss.loss(*data)
    loss.assigner = OneByOne()
    torch.testing.assert_close(loss.loss(*data), expected)
    double = [value.detach().double() for value in data[:2]]
    boxes = [value.double() for value in data[2]]
    for found, value in zip(loss.loss(*double, boxes, *data[3:]).values(), expected.values(), strict=True):
        torch.testing.assert_close(found, value, check_dtype=False)


def test_an_override_of_assign_alone_is_called():
    class Mine(TopkHungarianAssigner):
        def assign(self, *args):
            calls.append(args)
            return super().assign(*args)

    calls, data = [], batch(2, 0, 4)
    loss = DDQAuxLoss(train_cfg={"assigner": ASSIGNER})
    expected = loss.loss(*data)
    loss.assigner = Mine(topk=3)
    torch.testing.assert_close(loss.loss(*data), expected)
    assert len(calls) == 3


def test_without_objects_it_is_a_zero_with_gradient():
    scores, preds, *rest = batch(0, 0)
    losses = DDQAuxLoss().loss(scores, preds, *rest)
    grads = torch.autograd.grad(sum(losses.values()), (scores, preds))
    assert not any(value.any() for value in losses.values())
    assert not any(grad.any() for grad in grads)


def test_half_precision_is_computed_in_float32():
    scores, preds, *rest = batch(2, 3)
    half = scores.detach().half(), preds.detach().half()
    losses = DDQAuxLoss().loss(*half, *rest)
    torch.testing.assert_close(losses, DDQAuxLoss().loss(half[0].float(), half[1].float(), *rest))


def test_built_from_a_config():
    loss = MODELS.build({"type": "DDQAuxLoss", "loss_bbox": {"type": "GIoULoss", "loss_weight": 1.0}})
    assert loss.loss_bbox.loss_weight == 1.0
    assert loss.assigner.topk == 8
    assert (loss.alpha, loss.beta) == (1, 6)


def test_train_cfg_is_read_strictly():
    with pytest.raises(KeyError, match=r"train_cfg\.aplha: unknown key; did you mean 'alpha'"):
        DDQAuxLoss(train_cfg={"assigner": ASSIGNER, "aplha": 1})
    with pytest.raises(ValueError, match=r"DDQAuxLoss: train_cfg needs an assigner, got {'alpha': 2}"):
        DDQAuxLoss(train_cfg={"alpha": 2})


def test_the_divisor_is_the_mean_over_processes(monkeypatch):
    data = batch(2, 4)
    loss = DDQAuxLoss()
    expected = loss.loss(*data)
    divisors = []

    def twice(value, least):
        divisors.append(value)
        return 2 * value

    monkeypatch.setattr("detkit.losses.ddq_aux_loss.reduce_mean", twice)
    torch.testing.assert_close(loss.loss(*data), {name: value / 2 for name, value in expected.items()})
    assert divisors[0] > 1
    assert not divisors[0].requires_grad


def test_what_does_not_fit_is_refused():
    scores, preds, gt_bboxes, gt_labels, metas = batch(2, 4)
    loss = DDQAuxLoss()
    with pytest.raises(ValueError, match=r"cls_scores \(2, 20, 3\) and bbox_preds \(2, 10, 4\); expected \(N, A, C\)"):
        loss.loss(scores, preds[:, :10], gt_bboxes, gt_labels, metas)
    with pytest.raises(ValueError, match="cls_scores of 2 images, but gt_bboxes, gt_labels and img_metas of 2, 1, 2"):
        loss.loss(scores, preds, gt_bboxes, gt_labels[:1], metas)


def test_an_empty_config_is_not_the_default():
    with pytest.raises(ValueError, match=r"DDQAuxLoss: train_cfg needs an assigner, got {}"):
        DDQAuxLoss(train_cfg={})
    for name in ("loss_cls", "loss_bbox"):
        with pytest.raises((KeyError, TypeError), match="type"):
            DDQAuxLoss(**{name: {}})
    with pytest.raises(ValueError, match=r"DDQAuxLoss: train_cfg\.beta must be >= 0, got -1"):
        DDQAuxLoss(train_cfg={"assigner": ASSIGNER, "beta": -1})
