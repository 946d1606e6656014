"""DetTTAModel: boxes come back through flips and sizes, views are merged as one, and wrong configs are refused."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import nn

from detkit.engine.run.tta import default_tta_pipeline, use_tta
from detkit.models import DetTTAModel
from detkit.registry import MODELS, TRANSFORMS, building
from detkit.structures import DetDataSample
from detkit.structures.boxes import bbox_flip

BOXES = torch.tensor([[10.0, 20, 30, 60], [50, 5, 90, 25], [0, 0, 7, 100]])
ORI_SHAPE = (100, 120)
SCALE_FACTOR = (0.5, 2.0)


class BrightPixels(BaseModel):
    """Finds each pixel above 0 as a box of one pixel, scored by its brightness, in the frame of the original image."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs, data_samples=None, mode="tensor"):
        for image, sample in zip(inputs, data_samples, strict=True):
            y, x = image[0].nonzero(as_tuple=True)
            boxes = torch.stack([x, y, x + 1, y + 1], dim=1) / torch.tensor(sample.get("scale_factor", (1.0, 1.0)) * 2)
            scores = image[0][y, x].float() / 255
            sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=torch.zeros_like(y))
        return data_samples


def view_of(boxes, scores, direction=None):
    """A view in which a detector has found ``boxes`` of the original image."""
    sample = DetDataSample(
        metainfo={"ori_shape": ORI_SHAPE, "flip": direction is not None, "flip_direction": direction}
    )
    seen = boxes if direction is None else bbox_flip(boxes, ORI_SHAPE, direction)
    sample.pred_instances = InstanceData(bboxes=seen, scores=scores, labels=torch.arange(len(boxes)))
    return sample


def packed(image, transforms):
    steps = [*transforms, [{"type": "PackDetInputs"}]]
    results = {"img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}
    return TRANSFORMS.build({"type": "TestTimeAug", "transforms": steps})(results)


def merged(views, **tta_cfg):
    model = DetTTAModel(tta_cfg or None, module=BrightPixels())
    return [sample.pred_instances for sample in model.merge_preds(views)]


@pytest.mark.parametrize("direction", ["horizontal", "vertical", "diagonal"])
def test_views_that_agree_give_the_plain_result(direction):
    scores = torch.tensor([0.9, 0.8, 0.7])
    (found,) = merged([[view_of(BOXES, scores), view_of(BOXES, scores, direction)]])
    torch.testing.assert_close(found.bboxes, BOXES)
    assert torch.equal(found.scores, scores)
    assert found.labels.tolist() == [0, 1, 2]


def test_each_image_is_merged_by_itself_and_the_first_view_is_returned():
    low, high = torch.full((3,), 0.3), torch.full((3,), 0.6)
    views = [
        [view_of(BOXES, low), view_of(BOXES[:0], low[:0], "horizontal")],
        [view_of(BOXES + 1, low), view_of(BOXES, high, "vertical")],
        [view_of(BOXES[:0], low[:0]), view_of(BOXES[:0], low[:0], "horizontal")],
    ]
    model = DetTTAModel({"nms": {"type": "nms", "iou_threshold": 0.6}, "max_per_img": 2}, module=BrightPixels())
    firsts = model.merge_preds(views)
    assert all(first is samples[0] for first, samples in zip(firsts, views, strict=True))
    assert [len(first.pred_instances.scores) for first in firsts] == [2, 2, 0]
    torch.testing.assert_close(firsts[1].pred_instances.bboxes, BOXES[:2])
    assert firsts[1].pred_instances.scores.tolist() == pytest.approx([0.6, 0.6])


def test_through_flips_and_sizes_every_pixel_comes_back_to_its_place():
    """Two sizes and three views of each; a pixel of the original is a block of the doubled image."""
    draw = torch.Generator().manual_seed(0)
    image = torch.zeros(6, 9, 3, dtype=torch.uint8)
    places = torch.randperm(54, generator=draw)[:8]
    image.view(-1, 3)[places] = torch.arange(100, 180, 10, dtype=torch.uint8)[:, None]
    sizes = [
        {"type": "Resize", "scale_factor": 1.0},
        {"type": "Resize", "scale_factor": 2.0, "interpolation": "nearest"},
    ]
    flips = [{"type": "RandomFlip", "prob": 0.0}] + [
        {"type": "RandomFlip", "prob": 1.0, "direction": name} for name in ("horizontal", "vertical", "diagonal")
    ]
    views = packed(image.numpy(), [sizes, flips])
    assert len(views["inputs"]) == len(views["data_samples"]) == 8
    model = DetTTAModel({"nms": {"iou_threshold": 0.2}}, module=BrightPixels())
    batch = {"inputs": [[view, view] for view in views["inputs"]]}
    batch["data_samples"] = [[sample, sample.clone()] for sample in views["data_samples"]]
    for found in model.test_step(batch):
        expected = [[p % 9, p // 9, p % 9 + 1, p // 9 + 1] for p in places.tolist()]
        # A pixel of the doubled image is a quarter of the box.
        assert sorted(found.pred_instances.bboxes.tolist()) == sorted(expected)
    for view in views["data_samples"][4:]:
        assert view.scale_factor == (2.0, 2.0)


def test_the_model_of_a_config_is_built_inside():
    MODELS.register_module(name="BrightPixels", module=BrightPixels, force=True)
    try:
        model = MODELS.build({"type": "DetTTAModel", "module": {"type": "BrightPixels"}})
    finally:
        MODELS.module_dict.pop("BrightPixels")
    assert set(model.state_dict()) == {"module.weight"}
    assert model.max_per_img == 100


def test_wrong_configs_are_refused_with_their_path():
    with building("model", {}):
        with pytest.raises(ValueError, match="module is missing"):
            DetTTAModel()
        with pytest.raises(KeyError, match=r"model\.tta_cfg\.max_per_image: unknown key; did you mean 'max_per_img'"):
            DetTTAModel({"max_per_image": 3}, BrightPixels())
        with pytest.raises(ValueError, match=r"model\.tta_cfg\.nms\.type: unknown kind 'soft'"):
            DetTTAModel({"nms": {"type": "soft"}}, BrightPixels())
        with pytest.raises(ValueError, match=r"model\.tta_cfg\.max_per_img is 0"):
            DetTTAModel({"max_per_img": 0}, BrightPixels())
    view = view_of(BOXES, torch.ones(3))
    view.pred_instances.masks = torch.zeros(3, 2, 2)
    with pytest.raises(ValueError, match="with masks cannot be merged"):
        merged([[view]])


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([{"type": "Resize", "scale": 8}], r"transforms\[0\] must be a list of variants"),
        ([[]], r"transforms\[0\] must be a list of variants"),
        (
            [[{"type": "Pad", "size": (8, 8)}], [{"type": "RandomFlip", "prob": 1.0}]],
            "RandomFlip comes after Pad",
        ),
        (
            [[{"type": "RandomFlip", "prob": 1.0}], [{"type": "PackDetInputs", "meta_keys": ("img_id", "flip")}]],
            r"meta_keys lacks \['flip_direction', 'ori_shape'\]",
        ),
    ],
)
def test_views_that_could_not_be_mapped_back_are_refused(transforms, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build({"type": "TestTimeAug", "transforms": transforms})


def test_a_config_without_views_gets_a_flip_before_padding_and_ground_truth():
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": (8, 8)},
        {"type": "Pad", "size": (8, 8)},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "PackDetInputs", "meta_keys": ("img_id", "scale_factor")},
    ]
    first, second, views = default_tta_pipeline(pipeline)
    assert [first, second] == pipeline[:2]
    assert [[step["type"] for step in steps] for steps in views["transforms"]] == [
        ["RandomFlip", "RandomFlip"],
        ["Pad"],
        ["LoadAnnotations"],
        ["PackDetInputs"],
    ]
    assert views["transforms"][3][0]["meta_keys"] == ("img_id", "scale_factor", "ori_shape", "flip", "flip_direction")
    assert pipeline[4]["meta_keys"] == ("img_id", "scale_factor")
    TRANSFORMS.build(views)


def test_a_config_s_own_model_and_pipeline_are_taken():
    own = [{"type": "TestTimeAug", "transforms": []}]
    cfg = {"type": "D", "pipeline": [{"type": "LoadImageFromFile"}]}

    class Config(dict):
        __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__

    run = Config(
        model={"type": "RetinaNet"},
        tta_model={"type": "Mine", "tta_cfg": {}},
        tta_pipeline=own,
        test_dataloader=[{"dataset": cfg}, {"dataset": {"type": "RepeatDataset", "dataset": dict(cfg)}}],
    )
    use_tta(run)
    assert run.model == {"type": "Mine", "tta_cfg": {}, "module": {"type": "RetinaNet"}}
    assert run.test_dataloader[0]["dataset"]["pipeline"] == own
    assert run.test_dataloader[1]["dataset"]["dataset"]["pipeline"] == own
    with pytest.raises(ValueError, match="needs a test_dataloader"):
        use_tta(Config(model={}))
