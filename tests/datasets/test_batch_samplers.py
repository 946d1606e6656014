"""Batches of one orientation."""

import pytest
from mmengine.dataset import ConcatDataset, DefaultSampler, RepeatDataset
from torch.utils.data import RandomSampler, SequentialSampler

from detkit.datasets import AspectRatioBatchSampler, BaseDetDataset
from detkit.registry import DATA_SAMPLERS

# Widths of images 10 high; a square counts as wide.
WIDTHS = (20, 5, 10, 6, 30, 7, 40)
WIDE = {0, 2, 4, 6}


class Sized(BaseDetDataset):
    def load_data_list(self):
        return [
            {"img_path": f"mem://{i}", "img_id": i, "width": width, "height": 10, "instances": []}
            for i, width in enumerate(WIDTHS)
        ]


def test_full_batches_first_then_what_is_left():
    sampler = AspectRatioBatchSampler(SequentialSampler(Sized()), 2)
    # 0 and 2 fill the wide group, 1 and 3 the high one, 4 and 6 the wide one; 5 is left.
    assert list(sampler) == [[0, 2], [1, 3], [4, 6], [5]]
    assert list(sampler) == [[0, 2], [1, 3], [4, 6], [5]]
    assert len(sampler) == 4


def test_what_is_left_is_joined_and_the_high_ones_come_first():
    assert list(AspectRatioBatchSampler(SequentialSampler(Sized()), 4)) == [[0, 2, 4, 6], [1, 3, 5]]
    assert list(AspectRatioBatchSampler(SequentialSampler(Sized()), 5)) == [[1, 3, 5, 0, 2], [4, 6]]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7, 8])
@pytest.mark.parametrize("drop_last", [True, False])
def test_length_and_images(batch_size, drop_last):
    sampler = AspectRatioBatchSampler(DefaultSampler(Sized(), shuffle=True, seed=1), batch_size, drop_last)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    images = [i for batch in batches for i in batch]
    assert len(images) == len(set(images)) == (7 // batch_size * batch_size if drop_last else 7)
    assert all(len(batch) == batch_size for batch in batches[: 7 // batch_size])


def test_an_abandoned_epoch_leaves_nothing_behind():
    sampler = AspectRatioBatchSampler(SequentialSampler(Sized()), 3)
    next(iter(sampler))
    assert sorted(i for batch in sampler for i in batch) == list(range(7))


def test_concatenated_and_repeated_datasets():
    joined = ConcatDataset([Sized(indices=3), Sized()])
    wide = AspectRatioBatchSampler(SequentialSampler(joined), 2).is_wide
    assert wide == [i in WIDE for i in (*range(3), *range(7))]
    repeated = RepeatDataset(Sized(), times=2)
    assert AspectRatioBatchSampler(SequentialSampler(repeated), 2).is_wide == [i in WIDE for i in range(7)] * 2


class Foreign:
    """A dataset that keeps no sizes."""

    def __len__(self):
        return 2

    def get_data_info(self, idx):
        return {"width": 10 + idx, "height": 11}


def test_a_dataset_without_sizes_is_asked_image_by_image():
    assert AspectRatioBatchSampler(RandomSampler(Foreign()), 2).is_wide == [False, True]


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"sampler: a torch Sampler was expected, got \[0, 1\]"):
        AspectRatioBatchSampler([0, 1], 2)
    with pytest.raises(ValueError, match="batch_size"):
        DATA_SAMPLERS.build({"type": "AspectRatioBatchSampler", "sampler": SequentialSampler(Sized()), "batch_size": 0})
