"""Heads of queries (DETR, Deformable DETR, DINO), beyond the reference cases of tests/models/test_parity.py."""

from __future__ import annotations

import pytest
import torch
from host_reads import HostReads
from mmengine.structures import InstanceData
from reference import arguments, case_named, load_weights
from torch.testing import assert_close
from two_processes import assert_mean_of_both, losses_of_two_processes

from detkit.models.dense_heads.losses import query_loss
from detkit.models.dense_heads.losses.query_loss import build_label_loss
from detkit.models.dense_heads.prediction.queries import inverse_sigmoid, query_detections
from detkit.models.dense_heads.targets.query_targets import denoising_targets, matched_targets
from detkit.registry import MODELS
from detkit.structures import DetDataSample
from detkit.structures.boxes import bbox_cxcywh_to_xyxy, bbox_overlaps
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import HungarianAssigner

NAMES = ["DETRHead", "DeformableDETRHead", "DeformableDETRHeadTwoStage", "DINOHead"]
METAS = [{"img_shape": (50, 100)}, {"img_shape": (80, 40), "scale_factor": (0.5, 2.0)}]


def reference(name, method="loss", **changes):
    """The reference's head and arguments."""
    case = case_named(f"dense_heads/{name}", method)
    head = MODELS.build({**case["config"], **changes})
    load_weights(head, case)
    return head, arguments(case["inputs"])


def truth(*counts):
    """Objects of images of METAS."""
    torch.manual_seed(3)
    images = []
    for count in counts:
        corner = torch.rand(count, 2) * 20
        boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2) * 10], dim=1)
        images.append(InstanceData(bboxes=boxes, labels=torch.arange(count) % 3))
    return images


@pytest.mark.parametrize("name", NAMES)
def test_the_host_waits_for_the_matching_of_all_layers_at_once(name):
    head, inputs = reference(name)
    with HostReads() as reads:
        head.loss(**inputs)
    # Proposals of the encoder are matched apart.
    assert reads.counts["cpu"] == (2 if "enc_outputs_class" in inputs and name != "DeformableDETRHead" else 1)
    assert not reads.counts.keys() - {"cpu", "numpy", "to"}


def test_names_of_losses_come_in_mmdetections_order():
    head, inputs = reference("DINOHead")
    assert list(head.loss(**inputs)) == list(case_named("dense_heads/DINOHead", "loss")["outputs"]["losses"])


@pytest.mark.parametrize("name", NAMES)
def test_images_are_predicted_as_alone(name):
    head, inputs = reference(name, "predict")
    together = head.eval().predict(**inputs)
    for index in range(2):
        (alone,) = head.predict(**of_image(inputs, index))
        for field in ("bboxes", "scores", "labels"):
            assert_close(alone[field], together[index][field])


@pytest.mark.parametrize("name", NAMES)
def test_under_autocast_losses_are_float32_and_finite(name):
    head, inputs = reference(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = head.loss(**inputs)
    sum(losses.values()).backward()
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["DETRHead", "DINOHead"])
def test_queries_learn_their_objects(name):
    """Free queries: every object is found, with its class, and nothing else."""
    torch.manual_seed(0)
    config = {"type": name, "num_classes": 3, "embed_dims": 16}
    head = MODELS.build(config if name == "DETRHead" else {**config, "num_pred_layer": 2})
    if name == "DINOHead":
        head.init_weights()
    queries = torch.randn(2, 2, 6, 16, requires_grad=True)
    samples = [DetDataSample(gt_instances=one, metainfo=meta) for one, meta in zip(truth(3, 2), METAS, strict=True)]
    references = [torch.rand(2, 6, 2) for _ in range(2)]
    given = [queries] if name == "DETRHead" else [queries, references]
    nothing = [] if name == "DETRHead" else [None, None]
    optimizer = torch.optim.Adam([queries, *head.parameters()], lr=0.03)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=300)
    for _ in range(300):
        losses = head.loss(*given, *nothing, samples, *([None] if name == "DINOHead" else []))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        decay.step()
    with torch.no_grad():
        found = head.predict(*given, samples, rescale=False)
    for sample, own in zip(samples, found, strict=True):
        wanted = sample.gt_instances
        own = own[own.scores > 0.5]
        assert len(own) == len(wanted)
        overlap, index = bbox_overlaps(wanted.bboxes, own.bboxes).max(dim=1)
        assert (overlap > 0.8).all()
        assert_close(own.labels[index], wanted.labels)


def test_labels_with_qualities_learn_the_overlap():
    head, inputs = reference("DeformableDETRHead", loss_cls={"type": "QualityFocalLoss", "loss_weight": 2.0})
    seen = []
    original = head.loss_cls.forward
    head.loss_cls.forward = lambda *args, **kwargs: seen.append(args) or original(*args, **kwargs)
    losses = head.loss(**inputs)
    labels, quality = seen[0][1]  # of the last layer
    positive = labels < 4
    assert positive.sum() == 6
    logits, boxes = head(inputs["hidden_states"], inputs["references"])
    corners = bbox_cxcywh_to_xyxy(boxes[-1].detach()).flatten(0, 1)
    samples = inputs["batch_data_samples"]
    metas = [sample.metainfo for sample in samples]
    targets = matched_targets(head.assigner, GroundTruth.from_samples(samples), metas, logits, boxes, 4)
    wanted = bbox_cxcywh_to_xyxy(targets.boxes[-1]).flatten(0, 1)
    overlap = bbox_overlaps(corners, wanted, is_aligned=True)[positive]
    assert overlap.max() > 0.01
    assert_close(quality[positive], overlap)
    assert all(loss.isfinite() for loss in losses.values())


def test_the_background_has_its_own_weight():
    loss, background = build_label_loss(
        {"type": "CrossEntropyLoss", "class_weight": 2.0, "bg_cls_weight": 0.5}, 3, "DETRHead"
    )
    assert (loss.class_weight.tolist(), background) == ([2, 2, 2, 0.5], 0.5)
    loss, background = build_label_loss({"type": "CrossEntropyLoss", "class_weight": 2.0}, 3, "DETRHead")
    assert (loss.class_weight.tolist(), background) == ([2, 2, 2, 2], 2)
    weights = [1.0, 1.0, 1.0, 0.25]
    assert build_label_loss({"type": "CrossEntropyLoss", "class_weight": weights}, 3, "DETRHead")[1] == 0.25
    assert build_label_loss({"type": "CrossEntropyLoss"}, 3, "DETRHead")[1] == 0
    assert build_label_loss({"type": "FocalLoss"}, 3, "DETRHead")[1] == 0
    sigmoid = {"type": "CrossEntropyLoss", "use_sigmoid": True, "class_weight": 2.0}
    loss, background = build_label_loss(sigmoid, 3, "DETRHead")
    assert (loss.class_weight.tolist(), background) == ([2, 2, 2], 0)


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        ({"bg_cls_weight": 0.1}, ValueError, "bg_cls_weight goes with a softmax and one number for class_weight, got"),
        ({"bg_cls_weight": 0.1, "class_weight": 1.0, "use_sigmoid": True}, ValueError, "use_sigmoid=True"),
        ({"bg_cls_weight": -1, "class_weight": 1.0}, ValueError, "DETRHead: loss_cls.bg_cls_weight must be >= 0"),
        ({"bg_cls_weight": "a", "class_weight": 1.0}, TypeError, "DETRHead: loss_cls.bg_cls_weight must be a number"),
    ],
)
def test_a_background_weight_that_does_not_fit_is_refused(part, error, message):
    with pytest.raises(error, match=message):
        build_label_loss({"type": "CrossEntropyLoss", **part}, 3, "DETRHead")


def of_image(inputs, index):
    """The arguments of one image alone."""
    one = slice(index, index + 1)
    own = {"hidden_states": inputs["hidden_states"][:, one], "batch_data_samples": inputs["batch_data_samples"][one]}
    if "references" in inputs:
        own["references"] = [reference[one] for reference in inputs["references"]]
    for name in ("enc_outputs_class", "enc_outputs_coord"):
        own |= {name: None if inputs[name] is None else inputs[name][one]} if name in inputs else {}
    return {**inputs, **own}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["loss", "loss_one_without_gt", "loss_no_gt"])
def test_two_processes_have_the_losses_of_one_with_all_images(name, which, monkeypatch):
    head, inputs = reference(name, which, sync_cls_avg_factor=True)
    together = head.loss(**inputs)
    alone = losses_of_two_processes(monkeypatch, lambda rank: head.loss(**of_image(inputs, rank)))
    assert_mean_of_both(alone, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_object_without_area_has_finite_losses_and_gradients(name):
    head, inputs = reference(name)
    for sample in inputs["batch_data_samples"]:
        boxes = sample.gt_instances.bboxes
        boxes[::2, 2] = boxes[::2, 0]
        boxes[1::2, 3] = boxes[1::2, 1]
    total = sum(head.loss(**inputs).values())
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("shared", [False, True])
def test_losses_are_divided_by_the_mean_of_all_processes(shared, monkeypatch):
    head, inputs = reference("DeformableDETRHead", sync_cls_avg_factor=shared)
    alone = head.loss(**inputs)
    monkeypatch.setattr(query_loss, "reduce_mean", lambda value, least: 2 * value.clamp(min=least))
    losses = head.loss(**inputs)
    for name, loss in losses.items():
        half = shared or not name.endswith("cls")
        assert_close(loss, alone[name] / 2 if half else alone[name])


@pytest.mark.parametrize("loss_iou", ["GIoULoss", "BoundedIoULoss", "IoULoss", "DIoULoss", "CIoULoss", "L1Loss"])
def test_every_loss_of_boxes_learns_the_overlap(loss_iou):
    head, inputs = reference("DETRHead", loss_iou={"type": loss_iou})
    sum(head.loss(**inputs).values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_an_assigner_of_ones_own_matches_image_by_image():
    class Mine(HungarianAssigner):
        def assign(self, pred_instances, gt_instances, img_meta=None, **kwargs):
            seen.append((len(pred_instances), len(gt_instances), img_meta["img_id"]))
            return super().assign(pred_instances, gt_instances, img_meta)

    seen = []
    head, inputs = reference("DETRHead")
    expected = head.loss(**inputs)
    costs = case_named("dense_heads/DETRHead", "loss")["config"]["train_cfg"]["assigner"]["match_costs"]
    head.assigner = Mine(costs)
    assert_close(head.loss(**inputs), expected)
    assert seen == [(10, 4, 0), (10, 2, 1)] * 2


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("DINOHead", lambda i: {"references": i["references"][:1]}, "2 decoder layers, but num_pred_layer=3 and 1 ref"),
        ("DINOHead", lambda i: {"hidden_states": torch.zeros(4, 2, 26, 16)}, "4 decoder layers, but num_pred_layer=3"),
        ("DINOHead", lambda i: {"references": [torch.zeros(2, 26, 3)] * 3}, r"boxes \(N, Q, 4\), got \(2, 26, 3\), "),
        ("DINOHead", lambda i: {"enc_outputs_coord": None}, "go together, got enc_outputs_class"),
        ("DeformableDETRHeadTwoStage", lambda i: {"enc_outputs_class": None}, "go together, got enc_outputs_coord"),
        ("DINOHead", lambda i: {"dn_meta": {"num_denoising_queries": 16}}, "must have .* num_denoising_groups.*got {"),
        (
            "DINOHead",
            lambda i: {"dn_meta": {"num_denoising_queries": 26, "num_denoising_groups": 2}},
            "leave some of the 26 queries to be matched",
        ),
        (
            "DETRHead",
            lambda i: {"batch_data_samples": i["batch_data_samples"][:1]},
            "data_samples: 1 img_metas for 2 images",
        ),
        (
            "DETRHead",
            lambda i: {"batch_data_samples": [DetDataSample(gt_instances=one) for one in truth(1, 1)]},
            "data_samples: image 0 needs img_meta with 'img_shape', got {}",
        ),
    ],
)
def test_inputs_that_do_not_fit_each_other_are_refused(name, change, message):
    head, inputs = reference(name)
    with pytest.raises(ValueError, match=message):
        head.loss(**{**inputs, **change(inputs)})


def test_denoising_targets_by_hand():
    found = denoising_targets(GroundTruth.from_instances(truth(2, 1)), METAS, 3, 8, 2, 7)
    assert found.labels.shape == (3, 2, 8)
    assert found.labels[2].tolist() == [[0, 1, 7, 7] * 2, [0, 7, 7, 7] * 2]
    assert found.positive[0].tolist() == [[True, True, False, False] * 2, [True, False, False, False] * 2]
    assert found.negative[1].tolist() == [[False, False, True, True] * 2, [False, False, True, False] * 2]
    first = truth(2, 1)[1].bboxes[0]
    expected = torch.stack([first[[0, 2]].mean() / 40, first[[1, 3]].mean() / 80])
    assert_close(found.boxes[0, 1, 4, :2], expected)
    assert_close(found.boxes[0, 1, 0, 2:], (first[2:] - first[:2]) / torch.tensor([40.0, 80.0]))
    assert found.boxes[~found.positive].abs().sum() == 0


def test_denoising_without_objects_or_queries():
    nothing = GroundTruth.from_instances(truth(0, 0))
    found = denoising_targets(nothing, METAS, 1, 4, 2, 7)
    assert found.labels.eq(7).all()
    assert not found.positive.any()
    assert not found.negative.any()
    assert denoising_targets(nothing, METAS, 2, 0, 1, 7).boxes.shape == (2, 2, 0, 4)


@pytest.mark.parametrize(("queries", "groups"), [(6, 2), (9, 2), (8, 0)])
def test_groups_that_do_not_hold_the_objects_are_refused(queries, groups):
    with pytest.raises(ValueError, match=f"dn_meta: {queries} queries in {groups} groups do not hold 2 objects twice"):
        denoising_targets(GroundTruth.from_instances(truth(2, 1)), METAS, 1, queries, groups, 7)


def test_without_denoising_dino_matches_all_queries():
    head, inputs = reference("DINOHead")
    losses = head.loss(**{**inputs, "dn_meta": None, "enc_outputs_class": None, "enc_outputs_coord": None})
    assert set(losses) == {f"{layer}loss_{part}" for layer in ("", "d0.") for part in ("cls", "bbox", "iou")}


def test_detections_by_hand():
    logits = torch.tensor([[[0.0, 2.0, -9.0], [1.0, -3.0, 9.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.9, 0.5, 0.4, 0.2]]])
    (found,) = query_detections(logits, boxes, METAS[1:], False, 3, rescale=False)
    assert found.labels.tolist() == [2, 1, 0]
    assert_close(found.scores, torch.tensor([9.0, 2.0, 1.0]).sigmoid())
    assert_close(found.bboxes[0], torch.tensor([28.0, 32, 40, 48]))  # cut off at the image's 40 pixels
    (found,) = query_detections(logits, boxes, METAS[1:], False, None, rescale=False)
    assert len(found) == 2  # as many as queries
    (found,) = query_detections(logits, boxes, METAS[1:], False, -1, rescale=False)
    assert len(found) == 6
    (found,) = query_detections(logits, boxes, METAS[1:], True, 9, rescale=True)
    assert found.labels.tolist() == [1, 0]  # the last channel is the background
    assert_close(found.bboxes[0], torch.tensor([10.0, 20, 30, 60]) / torch.tensor([0.5, 2, 0.5, 2]))


def test_inverse_sigmoid():
    x = torch.tensor([-1.0, 0.0, 0.3, 1.0, 2.0])
    end = torch.tensor(1e-5).log()
    assert_close(inverse_sigmoid(x), torch.stack([end, end, torch.tensor(0.3 / 0.7).log(), -end, -end]))


@pytest.mark.parametrize("two_stage", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_boxes_begin_as_their_references(two_stage, share):
    config = {"type": "DeformableDETRHead", "num_classes": 3, "embed_dims": 8}
    head = MODELS.build({**config, "as_two_stage": two_stage, "share_pred_layer": share})
    head.init_weights()
    reference = torch.rand(2, 5, 4 if two_stage else 2) * 0.8 + 0.1
    logits, boxes = head(torch.zeros(6, 2, 5, 8), [reference] * 6)
    assert_close(logits.sigmoid(), torch.full_like(logits, 0.01))
    if two_stage:
        assert_close(boxes, reference.expand(6, 2, 5, 4))
    else:
        assert_close(boxes[..., :2], reference.expand(6, 2, 5, 2))
        sizes = torch.tensor([-2.0] + [-2.0 if share else 0.0] * 5).sigmoid().view(6, 1, 1, 1)
        assert_close(boxes[..., 2:], sizes.expand(6, 2, 5, 2))


def test_all_layers_may_have_the_same_layers():
    head = MODELS.build({"type": "DINOHead", "num_classes": 3, "embed_dims": 8, "share_pred_layer": True})
    assert head.reg_branches[0] is head.reg_branches[5]
    assert len(list(head.parameters())) == 8
    apart = MODELS.build({"type": "DINOHead", "num_classes": 3, "embed_dims": 8})
    assert apart.state_dict().keys() == head.state_dict().keys()
    assert len(list(apart.parameters())) == 48


@pytest.mark.parametrize("name", ["DETRHead", "DeformableDETRHead", "DINOHead"])
@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        ({"loss_cls": {"type": "L1Loss"}}, ValueError, "loss_cls: L1Loss learns coordinates"),
        ({"loss_bbox": {"type": "GIoULoss"}}, ValueError, "loss_bbox: GIoULoss learns boxes"),
        ({"loss_iou": {"type": "FocalLoss"}}, ValueError, "loss_iou: FocalLoss learns labels"),
        ({"train_cfg": {"assigner": {"type": "ATSSAssigner", "topk": 9}}}, ValueError, "ATSSAssigner assigns boxes"),
        ({"train_cfg": {"sampler": {"type": "PseudoSampler"}}}, KeyError, "train_cfg.*sampler"),
        ({"test_cfg": {"max_per_image": 100}}, KeyError, "max_per_img"),
        ({"test_cfg": {"max_per_img": 0}}, ValueError, "max_per_img"),
        ({"num_classes": 0}, ValueError, "num_classes.* must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused_when_the_head_is_built(name, part, error, message):
    with pytest.raises(error, match=message):
        MODELS.build({"type": name, "num_classes": 3, "embed_dims": 8, **part})
