"""ISR-P and the CARL loss against the loops of the paper's text."""

from types import SimpleNamespace

import pytest
import torch
from no_sync import NoSync

from detkit.losses import CrossEntropyLoss, IoULoss, SmoothL1Loss, carl_loss, isr_p
from detkit.losses.pisa_loss import iou_hierarchical_local_rank
from detkit.structures.boxes import bbox_overlaps
from detkit.task_modules import DeltaXYWHBBoxCoder

NUM_CLASSES = 3


def hierarchical_rank_by_loops(ious, objects, labels):
    """Section 4.1: take the best of every object, sorted; then every second best, sorted; and so on."""
    rank = [0] * len(ious)
    for label in set(labels):
        queues = {}
        for sample in sorted(range(len(ious)), key=lambda i: -ious[i]):
            if labels[sample] == label:
                queues.setdefault(objects[sample], []).append(sample)
        place = 0
        while any(queues.values()):
            for sample in sorted((queue.pop(0) for queue in queues.values() if queue), key=lambda i: -ious[i]):
                rank[sample] = place
                place += 1
    return rank


def test_rank_by_hand():
    # Object 0 has IoUs .9 .8 .1, object 1 .7 .6, all of one class; object 2 alone in another class.
    ious = torch.tensor([0.8, 0.7, 0.9, 0.5, 0.1, 0.6])
    objects = torch.tensor([0, 1, 0, 2, 0, 1])
    rank = iou_hierarchical_local_rank(ious, objects, torch.tensor([1, 1, 1, 0, 1, 1]))
    # First the best two (.9, .7), then the second best (.8, .6), then .1.
    torch.testing.assert_close(rank, torch.tensor([2, 1, 0, 0, 4, 3]))


@pytest.mark.parametrize("seed", range(5))
def test_rank_against_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    ious = torch.rand(40, generator=generator)
    objects = torch.randint(0, 9, (40,), generator=generator)
    labels = objects % NUM_CLASSES
    rank = iou_hierarchical_local_rank(ious, objects, labels)
    assert rank.tolist() == hierarchical_rank_by_loops(ious.tolist(), objects.tolist(), labels.tolist())


def batch(seed=0, per_class=False, counts=((5, 4), (0, 3), (7, 5), (4, 2))):
    """A batch of images with (positives, negatives) each, of which each image's objects start at index 0."""
    generator = torch.Generator().manual_seed(seed)
    labels, objects, results = [], [], []
    first = 0
    for num_pos, num_neg in counts:
        own = torch.randint(0, 3, (num_pos,), generator=generator)
        results.append(SimpleNamespace(num_gts=3, pos_assigned_gt_inds=own))
        objects += (own + first).tolist()
        labels += ((own + first) % NUM_CLASSES).tolist() + [NUM_CLASSES] * num_neg
        first += 3
    num = len(labels)
    corner = torch.rand(num, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + 10 + torch.rand(num, 2, generator=generator) * 30], dim=1)
    return SimpleNamespace(
        cls_score=torch.randn(num, NUM_CLASSES + 1, generator=generator),
        bbox_pred=torch.randn(num, 4 * NUM_CLASSES if per_class else 4, generator=generator) * 0.2,
        labels=torch.tensor(labels),
        label_weights=torch.rand(num, generator=generator) + 0.5,
        offsets=torch.randn(num, 4, generator=generator) * 0.2,
        offset_weights=torch.ones(num, 4),
        boxes=boxes,
        results=results,
        objects=objects,
    )


def reweigh(data, rois=None, **options):
    targets = data.labels, data.label_weights, data.offsets, data.offset_weights
    loss_cls, coder = options.pop("loss_cls", CrossEntropyLoss()), options.pop("coder", DeltaXYWHBBoxCoder())
    return isr_p(
        data.cls_score,
        data.bbox_pred,
        targets,
        data.boxes if rois is None else rois,
        data.results,
        loss_cls,
        coder,
        num_class=NUM_CLASSES,
        **options,
    )


def reweigh_by_loops(data, k, bias, loss):
    """Eq. 2 to 4, sample by sample; ``loss`` (N,)."""
    coder = DeltaXYWHBBoxCoder()
    positive = [i for i, label in enumerate(data.labels.tolist()) if label < NUM_CLASSES]
    labels = [data.labels[i].item() for i in positive]
    ious = []
    for i in positive:
        pred = data.bbox_pred[i].view(-1, 4)
        pred = pred[data.labels[i]] if len(pred) > 1 else pred[0]
        boxes = [coder.decode(data.boxes[i : i + 1], offsets[None]) for offsets in (pred, data.offsets[i])]
        ious.append(bbox_overlaps(*boxes).item())
    rank = hierarchical_rank_by_loops(ious, data.objects, labels)
    largest = max(labels.count(label) for label in labels)
    weights = data.label_weights.clone()
    for place, i in zip(rank, positive, strict=True):
        importance = data.label_weights[i] * (largest - place) / largest
        weights[i] = ((1 - bias) * importance + bias) ** k
    old = sum(loss[i] * data.label_weights[i] for i in positive)
    new = sum(loss[i] * weights[i] for i in positive)
    weights[positive] = weights[positive] * old / new
    return weights


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize(("k", "bias"), [(2, 0), (1.5, 0.3), (0, 0)])
def test_isr_p_against_loops(per_class, k, bias):
    """Over four images: in MMDetection the objects of the fourth may be taken for those of the third."""
    data = batch(per_class=per_class)
    loss = CrossEntropyLoss(reduction="none")(data.cls_score, data.labels)
    labels, weights, offsets, offset_weights = reweigh(data, k=k, bias=bias)
    torch.testing.assert_close(weights, reweigh_by_loops(data, k, bias, loss))
    assert labels is data.labels
    assert offsets is data.offsets
    assert offset_weights is data.offset_weights


def test_isr_p_with_sigmoids():
    data = batch()
    data.cls_score = data.cls_score[:, :NUM_CLASSES]
    loss = CrossEntropyLoss(use_sigmoid=True, reduction="none")(data.cls_score, data.labels).sum(dim=1)
    _, weights, _, _ = reweigh(data, loss_cls=CrossEntropyLoss(use_sigmoid=True))
    torch.testing.assert_close(weights, reweigh_by_loops(data, 2, 0, loss))


def test_isr_p_keeps_the_loss_and_the_given_weights():
    data = batch(seed=1)
    before = data.label_weights.clone()
    loss = CrossEntropyLoss(reduction="none")(data.cls_score, data.labels)
    _, weights, _, _ = reweigh(data)
    torch.testing.assert_close((loss * weights).sum(), (loss * before).sum())
    # MMDetection writes the new weights into the given ones.
    torch.testing.assert_close(data.label_weights, before, rtol=0, atol=0)


def test_isr_p_takes_rois():
    """The image comes first. Clamped shifts tell the boxes apart; else IoU knows neither place nor size."""
    data = batch()
    data.offsets = data.offsets * 10
    rois = torch.cat([torch.zeros(len(data.boxes), 1), data.boxes], dim=1)
    coder = DeltaXYWHBBoxCoder(add_ctr_clamp=True, ctr_clamp=5)
    torch.testing.assert_close(reweigh(data, rois, coder=coder)[1], reweigh(data, coder=coder)[1])


def test_isr_p_of_no_positives_is_what_was_given():
    data = batch(counts=((0, 3), (0, 0)))
    _, weights, _, _ = reweigh(data)
    assert weights is data.label_weights


def test_isr_p_of_zero_weights_is_no_nan():
    data = batch()
    data.label_weights = torch.zeros_like(data.label_weights)
    assert not reweigh(data)[1].any()


def test_isr_p_refuses_labels_of_other_positives():
    data = batch()
    data.labels = torch.full_like(data.labels, NUM_CLASSES)
    with pytest.raises(RuntimeError, match="isr_p: labels do not have the 16 positives of sampling_results"):
        reweigh(data)


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize(("k", "bias", "avg_factor"), [(1, 0.2, None), (2, 0.0, 7.0)])
def test_carl_against_loops(per_class, sigmoid, k, bias, avg_factor):
    """Section 4.3, eq. 5 and 6: weights are powers of the scores with mean 1."""
    data = batch(per_class=per_class)
    weights, losses = [], []
    for i, label in enumerate(data.labels.tolist()):
        if label < NUM_CLASSES:
            logits = data.cls_score[i]
            score = (logits.sigmoid() if sigmoid else logits.softmax(0))[label]
            weights.append((bias + (1 - bias) * score) ** k)
            pred = data.bbox_pred[i].view(-1, 4)
            pred = pred[label] if per_class else pred[0]
            losses.append(SmoothL1Loss(reduction="sum")(pred, data.offsets[i]))
    mean = sum(weights) / len(weights)
    expected = sum(w / mean * x for w, x in zip(weights, losses, strict=True)) / (avg_factor or len(data.labels))
    found = carl_loss(
        data.cls_score,
        data.labels,
        data.bbox_pred,
        data.offsets,
        SmoothL1Loss(),
        k,
        bias,
        avg_factor,
        sigmoid,
        NUM_CLASSES,
    )
    torch.testing.assert_close(found, {"loss_carl": expected[None]})


def test_carl_of_a_loss_per_box():
    # MMDetection multiplies every box's loss with every box's weight.
    data = batch()
    pred, target = data.boxes + torch.rand(data.boxes.shape, generator=torch.Generator().manual_seed(3)), data.boxes
    equal = carl_loss(data.cls_score, data.labels, pred, target, IoULoss(), bias=1.0, num_class=NUM_CLASSES)
    positive = data.labels < NUM_CLASSES
    expected = IoULoss(reduction="sum")(pred[positive], target[positive]) / len(pred)
    torch.testing.assert_close(equal["loss_carl"], expected[None])


def test_carl_gradients():
    data = batch(counts=((3, 2),))

    def loss(cls_score, bbox_pred):
        return carl_loss(
            cls_score, data.labels, bbox_pred, data.offsets.double(), SmoothL1Loss(), num_class=NUM_CLASSES
        )["loss_carl"]

    inputs = data.cls_score.double().requires_grad_(), data.bbox_pred.double().requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("counts", [((0, 4),), ((0, 0),)])
@pytest.mark.parametrize("k", [0.5, 1])
def test_carl_without_positives_is_a_zero_with_gradient(counts, k):
    data = batch(counts=counts)
    data.cls_score[:, 0] = -200  # a score of 0, where a root is steep
    cls_score = data.cls_score.requires_grad_()
    # Of negatives nothing is read.
    bbox_pred = torch.full_like(data.bbox_pred, torch.inf, requires_grad=True)
    targets = torch.full_like(data.offsets, torch.nan)
    found = carl_loss(cls_score, data.labels, bbox_pred, targets, SmoothL1Loss(), k, bias=0.0, num_class=NUM_CLASSES)
    grads = torch.autograd.grad(found["loss_carl"], (cls_score, bbox_pred))
    torch.testing.assert_close(found["loss_carl"], torch.zeros(1), check_dtype=True)
    assert not any(grad.any() for grad in grads)


def test_nothing_waits_for_the_device():
    data = batch(per_class=True)
    with NoSync():
        reweigh(data)
        carl_loss(data.cls_score, data.labels, data.bbox_pred, data.offsets, SmoothL1Loss(), num_class=NUM_CLASSES)


def test_traces_into_one_graph():
    data = batch()
    torch._dynamo.reset()
    arguments = data.cls_score, data.labels, data.bbox_pred, data.offsets, SmoothL1Loss()
    found = torch.compile(carl_loss, backend="eager", fullgraph=True)(*arguments, num_class=NUM_CLASSES)
    torch.testing.assert_close(found, carl_loss(*arguments, num_class=NUM_CLASSES))
    found = torch.compile(reweigh, backend="eager", fullgraph=True)(data)
    torch.testing.assert_close(found, reweigh(data))


def test_isr_p_gives_constants():
    data = batch()
    data.cls_score.requires_grad_()
    data.bbox_pred.requires_grad_()
    assert not reweigh(data)[1].requires_grad


def test_isr_p_of_half_precision_is_computed_in_float32():
    data = batch()
    data.cls_score, data.bbox_pred = data.cls_score.half(), data.bbox_pred.half()
    seen = []

    def loss_cls(cls_score, labels, reduction_override):
        seen.append(cls_score.dtype)
        return CrossEntropyLoss()(cls_score, labels, reduction_override=reduction_override)

    class Coder(DeltaXYWHBBoxCoder):
        def decode(self, bboxes, deltas):
            seen.append(deltas.dtype)
            return super().decode(bboxes, deltas)

    reweigh(data, loss_cls=loss_cls, coder=Coder())
    assert set(seen) == {torch.float32}


def test_carl_of_one_positive_is_its_loss_whatever_its_score():
    data = batch(counts=((1, 0),))
    data.cls_score[:] = torch.where(torch.arange(NUM_CLASSES + 1) == data.labels, -3.0, 0.0)  # a weight below 1
    found = carl_loss(
        data.cls_score, data.labels, data.bbox_pred, data.offsets, SmoothL1Loss(), bias=0.0, num_class=NUM_CLASSES
    )
    expected = SmoothL1Loss(reduction="sum")(data.bbox_pred, data.offsets)
    torch.testing.assert_close(found["loss_carl"], expected[None])
