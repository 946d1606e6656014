"""What all datasets share, on a dataset in memory."""

import numpy as np
import pytest

from detkit.datasets import BaseDetDataset
from detkit.registry import DATASETS


@DATASETS.register_module(force=True)
class InMemory(BaseDetDataset):
    """Images of growing width; image i has i objects. None of the files exist."""

    def load_data_list(self):
        self._metainfo["classes"] = ("thing",)
        objects = [{"bbox": [0, 0, 5, 5], "bbox_label": 0, "ignore_flag": 0}]
        return [
            {"img_path": f"mem://{i}.png", "img_id": i, "width": 10 + i, "height": 12, "instances": objects * i}
            for i in range(6)
        ]


def ids(dataset):
    return [dataset[i]["img_id"] for i in range(len(dataset))]


@pytest.mark.parametrize("serialize_data", [True, False])
def test_sizes_follow_the_images(serialize_data):
    dataset = InMemory(serialize_data=serialize_data, filter_cfg={"filter_empty_gt": True}, indices=4)
    assert ids(dataset) == [1, 2, 3, 4]
    np.testing.assert_array_equal(dataset.image_sizes, [(11, 12), (12, 12), (13, 12), (14, 12)])
    subset = dataset.get_subset([3, 0])
    assert ids(subset) == [4, 1]
    np.testing.assert_array_equal(subset.image_sizes, [(14, 12), (11, 12)])
    assert len(dataset) == len(dataset.image_sizes) == 4
    dataset.get_subset_(-3)
    assert ids(dataset) == [2, 3, 4]
    np.testing.assert_array_equal(dataset.image_sizes[:, 0], [12, 13, 14])
    dataset.get_subset_(1)
    np.testing.assert_array_equal(dataset.image_sizes[:, 0], [12])


def test_lazy_datasets_read_on_first_access():
    dataset = InMemory(lazy_init=True)
    assert len(dataset.image_sizes) == 0
    assert dataset[2]["img_id"] == 2
    assert len(dataset.image_sizes) == 6


def test_labels_of_an_image():
    assert [InMemory().get_cat_ids(i) for i in range(3)] == [[], [0], [0, 0]]


def drop_odd(results):
    return None if results["img_id"] % 2 else results


def test_none_from_the_pipeline_takes_another_image():
    np.random.seed(0)
    dataset = InMemory(pipeline=[drop_odd])
    assert all(i % 2 == 0 for i in ids(dataset))


def test_none_is_an_error_in_test_mode_and_when_nothing_works():
    with pytest.raises(RuntimeError, match="the pipeline returned None for image 1 in test_mode"):
        InMemory(pipeline=[drop_odd], test_mode=True)[1]
    with pytest.raises(RuntimeError, match=r"None for image 0 and for 2 other images \(max_refetch\)"):
        InMemory(pipeline=[lambda results: None], max_refetch=2)[0]


def test_a_failing_transform_names_the_image():
    def fail(results):
        raise KeyError("scale")

    with pytest.raises(RuntimeError, match=r"mem://3\.png \(index 3\): the pipeline failed: KeyError: 'scale'"):
        InMemory(pipeline=[fail])[3]


def test_an_error_that_names_the_image_passes_on():
    def fail(results):
        raise FileNotFoundError(f"{results['img_path']}: gone")

    with pytest.raises(FileNotFoundError, match=r"^mem://3\.png: gone$"):
        InMemory(pipeline=[fail])[3]


def test_the_pipeline_is_built_strictly():
    with pytest.raises(TypeError, match=r"pipeline\.1\.prop: RandomFlip has no argument 'prop'; did you mean 'prob'"):
        DATASETS.build(
            {"type": "InMemory", "pipeline": [{"type": "LoadAnnotations"}, {"type": "RandomFlip", "prop": 0.5}]}
        )


def test_a_subclass_may_have_metainfo_of_its_own():
    class Named(InMemory):
        pass

    with pytest.raises(KeyError, match=r"metainfo\.klasses: unknown key; did you mean 'classes'"):
        Named(metainfo={"klasses": ("a",)})
    Named.METAINFO = {"klasses": ("b",)}
    assert Named(metainfo={"klasses": ("a",)}).metainfo["klasses"] == ("a",)
