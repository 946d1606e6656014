import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.structures import InstanceData
from no_sync import NoSync
from reference import arguments, assert_same, cases
from torch.nn.utils.rnn import pad_sequence

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import HorizontalBoxes
from detkit.task_modules.match_costs import (
    BBoxL1Cost,
    BinaryFocalLossCost,
    ClassificationCost,
    CrossEntropyLossCost,
    DiceCost,
    FocalLossCost,
    IoUCost,
    costs_of_batch,
)

NAMES = ["BBoxL1Cost", "BinaryFocalLossCost", "ClassificationCost", "CrossEntropyLossCost", "DiceCost", "FocalLossCost",
         "IoUCost"]  # fmt: skip
COSTS = [
    BBoxL1Cost(weight=5.0),
    BBoxL1Cost(box_format="xywh"),
    IoUCost(),
    IoUCost("iou", 2.0),
    ClassificationCost(weight=2.0),
    FocalLossCost(weight=2.0),
    FocalLossCost(binary_input=True),
    BinaryFocalLossCost(),
    DiceCost(pred_act=True),
    DiceCost(pred_act=True, naive_dice=False, eps=1.0),
    CrossEntropyLossCost(weight=5.0),
]


def name_of(cost):
    return type(cost).__name__ + "".join(f"-{value}" for value in vars(cost).values())


every_cost = pytest.mark.parametrize("cost", COSTS, ids=name_of)


def image(count, seed, num_predictions=6):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    def boxes(number):
        corner = draw(number, 2) * 20 + 40
        return torch.cat([corner, corner + 5 + draw(number, 2).abs() * 20], dim=1)

    pred = InstanceData(
        bboxes=boxes(num_predictions), scores=draw(num_predictions, 8), masks=draw(num_predictions, 5, 6)
    )
    gt = InstanceData(
        bboxes=boxes(count),
        labels=torch.arange(count) % 8,
        masks=draw(count, 5, 6) > 0,
        positive_maps=(draw(count, 8) > 0).float(),
        text_token_mask=(torch.arange(8) < 6).repeat(count, 1),
    )
    return pred, gt, {"img_shape": (90, 120)}


CASES = [pytest.param(*one.values, id=f"{name}-{one.id}") for name in NAMES for one in cases(f"boxes/{name}")]


@pytest.mark.parametrize("case", CASES)
def test_reference(case):
    if "error" in case:
        with pytest.raises(NotImplementedError, match="CrossEntropyLossCost: use_sigmoid=False has no definition"):
            TASK_UTILS.build(case["config"])
        return
    out = TASK_UTILS.build(case["config"])(**arguments(case["inputs"]))
    assert_same(out, case["outputs"]["out"], rtol=1e-5, atol=1e-5)


def pair(pred, gt):
    pred, gt = ({name: torch.tensor(value) for name, value in side.items()} for side in (pred, gt))
    return InstanceData(**pred), InstanceData(**gt), {"img_shape": (50, 100)}


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (BBoxL1Cost(), 5 / 100 + 10 / 50),
        (BBoxL1Cost(weight=2.0), 2 * (5 / 100 + 10 / 50)),
        # the centre moves by half of it, the size changes by all of it
        (BBoxL1Cost(box_format="xywh"), (2.5 + 5) / 100 + (5 + 10) / 50),
        (IoUCost("iou"), -5 * 10 / (10 * 20)),
        (IoUCost("giou", 2.0), -2 * 5 * 10 / (10 * 20)),
    ],
    ids=lambda value: name_of(value) if not isinstance(value, float) else "",
)
def test_boxes_by_hand(cost, expected):
    inputs = pair({"bboxes": [[0.0, 0, 10, 20]]}, {"bboxes": [[5.0, 0, 10, 10]]})
    torch.testing.assert_close(cost(*inputs), torch.tensor([[expected]]))


def test_an_image_shape_may_have_channels():
    pred, gt, _ = pair({"bboxes": [[0.0, 0, 10, 20]]}, {"bboxes": [[5.0, 0, 10, 10]]})
    expected = torch.tensor([[5 / 100 + 10 / 50]])
    torch.testing.assert_close(BBoxL1Cost()(pred, gt, {"img_shape": (50, 100, 3)}), expected)


def test_classes_by_hand():
    inputs = pair({"scores": [[0.0, math.log(3)]]}, {"labels": [1, 0]})
    torch.testing.assert_close(ClassificationCost()(*inputs), torch.tensor([[-0.75, -0.25]]))
    # p = 1/2: ln 2 / 4 as positive and as negative, weighing alpha and 1 - alpha
    halves = pair({"scores": [[0.0, 0]]}, {"labels": [1]})
    torch.testing.assert_close(FocalLossCost()(*halves), torch.tensor([[(0.25 - 0.75) * math.log(2) / 4]]))
    torch.testing.assert_close(FocalLossCost(gamma=0, alpha=0.75)(*halves), torch.tensor([[0.5 * math.log(2)]]))


def test_masks_by_hand():
    inputs = pair({"masks": [[1.0, 1, 0, 0]]}, {"masks": [[1.0, 0, 0, 0], [0, 0, 0, 0]]})
    torch.testing.assert_close(DiceCost(eps=0.0)(*inputs)[0, 0], torch.tensor(1 - 2 / 3))
    torch.testing.assert_close(DiceCost(eps=1.0)(*inputs), torch.tensor([[1 - 3 / 4, 1 - 1 / 3]]))
    halves = pair({"masks": [[0.5, 0.5]]}, {"masks": [[1.0, 0]]})
    torch.testing.assert_close(DiceCost(eps=0.0, naive_dice=False)(*halves), torch.tensor([[1 - 1 / 1.5]]))
    torch.testing.assert_close(DiceCost(eps=0.0, naive_dice=True)(*halves), torch.tensor([[0.5]]))
    logits = pair({"masks": [[0.0, math.log(3)]]}, {"masks": [[1.0, 1], [0, 0]]})
    expected = torch.tensor([[math.log(2) + math.log(4 / 3), math.log(2) + math.log(4)]]) / 2
    torch.testing.assert_close(CrossEntropyLossCost()(*logits), expected)
    # gamma = 0 is half of cross entropy
    torch.testing.assert_close(FocalLossCost(gamma=0, alpha=0.5, binary_input=True)(*logits), expected / 2)


def test_tokens_by_hand():
    objects = {"positive_maps": [[1.0, 0, 1]], "text_token_mask": [[True, True, False]]}
    tokens = pair({"scores": [[0.0, 0, 50]]}, objects)
    torch.testing.assert_close(BinaryFocalLossCost(gamma=0)(*tokens), torch.tensor([[math.log(2)]]))


def test_scores_of_padded_tokens_are_minus_infinity():
    pred, gt, meta = image(3, 0)
    expected = BinaryFocalLossCost()(pred, gt, meta)
    pred.scores[:, 6:] = -math.inf
    torch.testing.assert_close(BinaryFocalLossCost()(pred, gt, meta), expected)


@every_cost
def test_no_objects_and_no_predictions(cost):
    """MMDetection's BinaryFocalLossCost raises an error without objects."""
    assert cost(*image(0, 0)).shape == (6, 0)
    assert cost(*image(2, 0, num_predictions=0)).shape == (0, 2)


def batch_of(images):
    predictions = {name: torch.stack([pred[name] for pred, _, _ in images]) for name in images[0][0].keys()}  # noqa: SIM118
    objects = {name: pad_sequence([gt[name] for _, gt, _ in images], True) for name in images[0][1].keys()}  # noqa: SIM118
    return predictions, objects, [meta for _, _, meta in images]


@every_cost
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_batch_is_its_images_one_by_one(cost, seed):
    images = [image(count, seed + index) for index, count in enumerate((3, 0, 2))]
    images[1][2]["img_shape"] = (100, 80)
    batch = cost.cost_batch(*batch_of(images))
    assert batch.shape == (3, 6, 3)
    for row, (pred, gt, meta) in zip(batch, images, strict=True):
        torch.testing.assert_close(row[:, : len(gt)], cost(pred, gt, meta))
    generic = costs_of_batch(lambda *inputs: cost(*inputs), *batch_of(images))
    torch.testing.assert_close(generic[0], batch[0])
    if not isinstance(cost, BBoxL1Cost):  # the one that reads facts of the image
        predictions, objects, _ = batch_of(images)
        assert torch.equal(costs_of_batch(lambda *inputs: cost(*inputs), predictions, objects), generic)


@every_cost
def test_permuting_objects_permutes_the_costs(cost):
    pred, gt, meta = image(4, 3)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(cost(pred, gt[order], meta), cost(pred, gt, meta)[:, order])


@every_cost
def test_no_sync_and_traceable(cost):
    inputs = batch_of([image(3, 0), image(0, 1)])
    with NoSync():
        eager = cost.cost_batch(*inputs)
    torch.compiler.reset()
    compiled = torch.compile(cost.cost_batch, fullgraph=True, backend="eager")(*inputs)
    torch.testing.assert_close(compiled, eager, rtol=0, atol=0)


@every_cost
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(cost, dtype):
    pred, gt, meta = image(3, 0)
    half = InstanceData(**{name: value.to(dtype) for name, value in pred.items()})
    whole = InstanceData(**{name: value.float() for name, value in half.items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cost(half, gt, meta)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, cost(whole, gt, meta), rtol=0, atol=0)


@every_cost
@pytest.mark.parametrize("scale", [100.0, -100.0])
def test_finite_at_large_logits(cost, scale):
    pred, gt, meta = image(3, 0)
    pred.scores, pred.masks = pred.scores * scale, pred.masks * scale
    assert cost(pred, gt, meta).isfinite().all()


def test_box_types_count_as_boxes():
    pred, gt, meta = image(3, 0)
    typed = InstanceData(bboxes=HorizontalBoxes(gt.bboxes), labels=gt.labels)
    assert torch.equal(BBoxL1Cost()(pred, typed, meta), BBoxL1Cost()(pred, gt, meta))


def test_a_label_without_class_costs_nan():
    pred, gt, meta = image(3, 0)
    gt.labels = torch.tensor([8, -1, 7])
    assert ClassificationCost()(pred, gt, meta).isnan().tolist() == [[True, True, False]] * 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BBoxL1Cost(box_format="cxcywh"), "BBoxL1Cost: box_format must be 'xyxy' or 'xywh', got 'cxcywh'"),
        (lambda: IoUCost(iou_mode="diou"), "IoUCost: iou_mode must be one of iou, iof, giou, got 'diou'"),
        (
            lambda: DiceCost()(InstanceData(scores=torch.zeros(1, 2)), InstanceData(labels=torch.zeros(1))),
            "DiceCost: the predictions need the field 'masks', but have scores",
        ),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_sizes_of_images_go_to_the_device_without_waiting(monkeypatch):
    """On a GPU ``new_tensor`` copies and waits; nothing else shows it on a CPU."""
    monkeypatch.setattr(torch.Tensor, "new_tensor", None)
    first, second = (InstanceData(bboxes=torch.tensor([[0.0, 0, 10, size]])) for size in (10, 20))
    assert BBoxL1Cost()(first, second, {"img_shape": (20, 10)}).tolist() == [[0.5]]
