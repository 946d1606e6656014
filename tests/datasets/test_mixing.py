"""Samples mixed of several images: the same whoever makes them, in whatever order."""

import copy
import pickle

import numpy as np
import pytest
import torch
from transforms.squares import assert_boxes_lie_on_squares, squares

from detkit.config import check
from detkit.datasets import AspectRatioBatchSampler, BaseDetDataset, MultiImageMixDataset
from detkit.engine.data.dataloader import build_dataloader
from detkit.engine.data.seeding import SampleKey, SeededDataset
from detkit.registry import DATASETS, TRANSFORMS


@DATASETS.register_module()
class SquarePictures(BaseDetDataset):
    """Twenty pictures of squares, each with its own shade of background; picture i has i % 5 objects."""

    def load_data_list(self):
        self._metainfo["classes"] = tuple("rgbcy")
        objects = [{"bbox": [0, 0, 5, 5], "bbox_label": 0, "ignore_flag": 0}]
        return [
            {"img_path": f"mem://{i}.png", "img_id": i, "width": 96, "height": 64, "instances": objects * (i % 5)}
            for i in range(20)
        ]


@TRANSFORMS.register_module()
class DrawSquares:
    """Stands for loading; counts how often."""

    count = 0

    def __call__(self, results):
        type(self).count += 1
        drawn = squares(min(results["img_id"] % 5, 4))
        drawn["img"][(drawn["img"] == 0).all(axis=-1)] = results["img_id"]
        return {**results, **drawn, "img_path": results["img_path"]}


DRAW = {"type": "DrawSquares"}
MIXED = [
    {"type": "Mosaic", "img_scale": (96, 64), "pad_val": 0},
    {"type": "RandomAffine", "scaling_ratio_range": (0.5, 1.5), "border": (-48, -32), "border_val": (0, 0, 0)},
    {"type": "MixUp", "img_scale": (96, 64)},
    {"type": "YOLOXHSVRandomAug"},
    {"type": "RandomFlip", "prob": 0.5},
    {"type": "PackDetInputs", "meta_keys": ("img_id",)},
]
CACHED = [
    DRAW,
    {"type": "CachedMosaic", "img_scale": (96, 64), "max_cached_images": 6},
    {"type": "RandomResize", "scale": (192, 128), "ratio_range": (0.5, 1.0), "keep_ratio": True},
    {"type": "RandomCrop", "crop_size": (90, 60), "allow_negative_crop": True},
    {"type": "CachedMixUp", "img_scale": (90, 60), "max_cached_images": 4, "random_pop": False},
    {"type": "PackDetInputs", "meta_keys": ("img_id",)},
]


def make(kind, **options):
    if kind == "cached":
        return DATASETS.build({"type": "SquarePictures", "pipeline": CACHED, **options})
    inner = {"type": "SquarePictures", "pipeline": [DRAW]}
    return DATASETS.build({"type": "MultiImageMixDataset", "dataset": inner, "pipeline": MIXED, **options})


def passes(kind, epochs=2, **options):
    """Images and boxes of two passes over the data."""
    sampler = {"type": "DefaultSampler", "shuffle": True}
    loader = build_dataloader({"dataset": make(kind), "sampler": sampler, "batch_size": 4, **options}, seed=3)
    found = []
    for epoch in range(epochs):
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            found += [(epoch, s.img_id, i, s.gt_instances.bboxes) for i, s in zip(*batch.values(), strict=True)]
    return found


def same(one, two):
    return one[:2] == two[:2] and torch.equal(one[2], two[2]) and torch.equal(one[3], two[3])


@pytest.mark.parametrize("kind", ["mixed", "cached"])
def test_the_number_of_workers_does_not_matter(kind):
    alone = passes(kind)
    assert len(alone) == 40
    for options in ({"num_workers": 2}, {"num_workers": 3, "persistent_workers": True}):
        others = passes(kind, **options)
        assert all(same(one, two) for one, two in zip(alone, others, strict=True))
    ids = [[image for epoch, image, *_ in alone if epoch == wanted] for wanted in (0, 1)]
    assert sorted(ids[0]) == sorted(ids[1]) == list(range(20))
    for first in alone[:20]:
        again = alone[20 + ids[1].index(first[1])]
        assert not torch.equal(first[2], again[2])  # another picture in another pass


@pytest.mark.parametrize("kind", ["mixed", "cached"])
def test_a_sample_does_not_depend_on_those_before_it(kind):
    """What resuming needs: the first sample asked for may be any."""
    keys = [SampleKey(0, position, position % 20) for position in range(0, 90, 7)]
    forward, backward = SeededDataset(make(kind), 1), SeededDataset(make(kind), 1)
    first = [forward[key]["inputs"] for key in keys]
    last = [backward[key]["inputs"] for key in reversed(keys)][::-1]
    assert all(map(torch.equal, first, last))
    copied = SeededDataset(pickle.loads(pickle.dumps(forward.dataset)), 1)
    assert torch.equal(copied[keys[5]]["inputs"], first[5])
    assert not torch.equal(SeededDataset(make(kind), 2)[keys[5]]["inputs"], first[5])


def test_pools_save_loading():
    dataset = SeededDataset(make("cached"), 0)
    DrawSquares.count = 0
    for position in range(64):
        dataset[SampleKey(0, position, position % 20)]
    # 64 themselves; of Mosaic two pools of 6, of MixUp two of 4. Without pools it would be 8 each.
    assert 64 < DrawSquares.count <= 64 + 2 * 6 + 2 * 4
    pools = dataset.dataset._partners._pools
    dataset[SampleKey(5, 10_000, 0)]
    assert len(pools) <= 4


def test_pools_change_and_hold_several_images():
    step = {"type": "CachedMosaic", "img_scale": (96, 64), "max_cached_images": 6}
    dataset = SeededDataset(DATASETS.build({"type": "SquarePictures", "pipeline": [DRAW, step]}), 0)
    shades = []
    for epoch, begin in ((0, 0), (0, 48), (1, 0)):  # a stretch is eight pools long
        images = [dataset[SampleKey(epoch, begin + i, 0)]["img"] for i in range(48)]
        shades.append({int(shade) for image in images for shade in np.unique(image) if shade < 20})
    assert all(3 < len(one) <= 7 for one in shades)
    assert shades[1] != shades[0] != shades[2]


def test_what_a_pool_holds_cannot_be_written_into():
    class Spoiling:
        pool_size = 3

        def get_indexes(self, pool):
            return [0, len(pool) - 1]

        def __call__(self, results):
            results["mix_results"][0]["img"][:] = 0
            return results

    dataset = DATASETS.build({"type": "SquarePictures", "pipeline": [DRAW]})
    dataset.pipeline.transforms.append(Spoiling())
    with pytest.raises(RuntimeError, match=r"mem://1\.png \(index 1\): the pipeline failed: .*read-only"):
        dataset[1]


def test_outside_a_run_samples_are_drawn_by_the_generators():
    for kind in ("mixed", "cached"):
        dataset = make(kind)
        drawn = []
        for seed in (0, 0, 1):
            np.random.seed(seed)
            drawn.append(dataset[4]["inputs"])
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])


def test_boxes_of_a_mosaic_lie_on_their_objects():
    pipeline = [MIXED[0]]
    dataset = make("mixed", pipeline=pipeline)
    np.random.seed(0)
    for index in range(20):
        results = dataset[index]
        assert "mix_results" not in results
        counts = np.bincount(results["gt_bboxes_labels"], minlength=4)
        if counts.max() <= 1:
            assert_boxes_lie_on_squares(results, tolerance=1.6)


def test_a_subset_mixes_its_own_images_only():
    step = {"type": "CachedMosaic", "img_scale": (96, 64), "max_cached_images": 6}
    dataset = DATASETS.build({"type": "SquarePictures", "pipeline": [DRAW, step]})
    dataset[0]
    subset = dataset.get_subset([3, 8])
    np.random.seed(0)
    for _ in range(10):
        shades = {int(shade) for shade in np.unique(subset[0]["img"]) if shade < 20 and shade}
        assert shades <= {3, 8}


def test_steps_are_skipped_by_type():
    dataset = make("mixed", skip_type_keys=("Mosaic", "RandomAffine", "MixUp"))
    assert dataset[3]["inputs"].shape == (3, 64, 96)
    assert dataset[3]["data_samples"].img_id == 3
    dataset.update_skip_type_keys(["RandomAffine", "MixUp"])
    assert dataset[3]["inputs"].shape == (3, 128, 192)
    # There may be none of a type, as of MixUp in YOLOX-tiny's pipeline.
    dataset.update_skip_type_keys(["mmdet.Mosaic", "RandomAffine", "MixUp", "CachedMixUp"])
    assert dataset[3]["inputs"].shape == (3, 64, 96)
    with pytest.raises(ValueError, match="skip_type_keys: there is no step 'Mosiac'; did you mean 'Mosaic'"):
        dataset.update_skip_type_keys(["Mosiac"])


def test_none_takes_another_image_and_at_last_fails():
    crop = {"type": "RandomCrop", "crop_size": (96, 64)}
    dataset = make("mixed", pipeline=[crop, {"type": "PackDetInputs", "meta_keys": ("img_id",)}])
    np.random.seed(0)
    assert dataset[0]["data_samples"].img_id % 5 > 0  # picture 0 has no object
    dataset = make("mixed", pipeline=[{"type": "FilterAnnotations", "min_gt_bbox_wh": (999, 999)}], max_refetch=4)
    with pytest.raises(RuntimeError, match=r"None for image 2 and for 4 other images \(max_refetch\)"):
        dataset[2]


def test_a_failing_step_names_the_image():
    dataset = make("mixed", pipeline=[{"type": "MixUp"}, {"type": "Normalize", "mean": [0, 0], "std": [1, 1]}])
    with pytest.raises(RuntimeError, match=r"mem://7\.png \(index 7\): the pipeline failed"):
        dataset[7]


def test_what_samplers_and_wrappers_ask_for():
    dataset = make("mixed")
    assert dataset.metainfo["classes"] == tuple("rgbcy")
    assert dataset.get_cat_ids(3) == [0, 0, 0]
    assert dataset.image_sizes.shape == (20, 2)
    inner = {"type": "SquarePictures", "pipeline": [DRAW]}
    cfg = {"type": "MultiImageMixDataset", "dataset": inner, "pipeline": MIXED}
    for wrapper in (
        {"type": "RepeatDataset", "dataset": cfg, "times": 2},
        {"type": "ConcatDataset", "datasets": [cfg] * 2},
    ):
        wrapped = DATASETS.build(wrapper)
        assert len(wrapped) == 40
        assert wrapped[33]["data_samples"].img_id == 13
        batches = AspectRatioBatchSampler(torch.utils.data.SequentialSampler(wrapped), 8)
        assert len(list(batches)) == 5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"max_refetc": 3}, TypeError, "train_dataloader.dataset.*max_refetc.*max_refetch"),
        ({"pipeline": [{"type": "Mosiac"}]}, KeyError, r"train_dataloader\.dataset\.pipeline\.0\.type.*Mosaic"),
        ({"pipeline": [{"type": "Mosaic", "img_scal": 3}]}, TypeError, r"pipeline\.0.*img_scal.*img_scale"),
    ],
)
def test_the_config_is_checked_within(change, error, message):
    dataset = {"type": "MultiImageMixDataset", "dataset": {"type": "SquarePictures"}, "pipeline": MIXED, **change}
    with pytest.raises(error, match=message):
        check({"train_dataloader": {"dataset": dataset}})


def test_a_step_must_be_a_config():
    with pytest.raises(TypeError, match="pipeline: steps as dicts with a 'type' were expected, got <"):
        MultiImageMixDataset(DATASETS.build({"type": "SquarePictures"}), [DrawSquares()])
    with pytest.raises(TypeError, match="dataset: a dataset or its config was expected, got 3"):
        MultiImageMixDataset(3, [])


@pytest.mark.parametrize("kind", ["mixed", "cached"])
def test_a_copy_draws_from_its_own_images(kind, monkeypatch):
    whole = make(kind)
    whole[0]
    part = copy.deepcopy(whole)
    getattr(part, "dataset", part).get_subset_(2)
    draw, drawn = DrawSquares.__call__, []
    monkeypatch.setattr(DrawSquares, "__call__", lambda self, info: drawn.append(info["img_id"]) or draw(self, info))
    for position in range(4):
        SeededDataset(part, 0)[SampleKey(0, position, 0)]
    assert set(drawn) == {0, 1}
    SeededDataset(whole, 0)[SampleKey(0, 0, 0)]
    assert max(drawn) > 1
