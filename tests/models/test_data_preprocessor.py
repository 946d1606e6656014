"""DetDataPreprocessor: normalisation, padding, batches of different sizes."""

import pytest
import torch
from mmengine.structures import InstanceData

from detkit.models import DetDataPreprocessor
from detkit.structures import DetDataSample


def samples(count):
    found = []
    for _ in range(count):
        sample = DetDataSample()
        sample.gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
        found.append(sample)
    return found


def test_by_hand():
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1).expand(3, 2, 3)
    preprocessor = DetDataPreprocessor(
        mean=[30.0, 20.0, 0.0], std=[2.0, 4.0, 10.0], bgr_to_rgb=True, pad_size_divisor=4, pad_value=-7
    )
    data = preprocessor({"inputs": [image], "data_samples": samples(1)})
    inside = data["inputs"][0, :, :2, :3]
    # BGR (10, 20, 30) is RGB (30, 20, 10): (30 - 30) / 2, (20 - 20) / 4, (10 - 0) / 10
    assert inside.flatten(1).unique(dim=1).flatten().tolist() == [0.0, 0.0, 1.0]
    assert data["inputs"].shape == (1, 3, 4, 4)
    assert (data["inputs"][0, :, 2:] == -7).all()
    assert (data["inputs"][0, :, :, 3:] == -7).all()


def test_a_batch_of_different_sizes_is_its_images_one_by_one():
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), generator=generator).byte() for size in [(30, 50), (40, 20), (64, 64)]]
    preprocessor = DetDataPreprocessor(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], pad_size_divisor=32)
    data = preprocessor({"inputs": images, "data_samples": samples(3)})
    assert data["inputs"].shape == (3, 3, 64, 64)
    for row, image, sample in zip(data["inputs"], images, data["data_samples"], strict=True):
        alone = preprocessor({"inputs": [image], "data_samples": samples(1)})
        height, width = image.shape[1:]
        assert torch.equal(row[:, :height, :width], alone["inputs"][0, :, :height, :width])
        assert not row[:, height:].any()
        assert not row[:, :, width:].any()
        assert sample.pad_shape == alone["data_samples"][0].pad_shape == alone["inputs"].shape[2:]
        assert sample.batch_input_shape == (64, 64)


@pytest.mark.parametrize("first", [0, 1])
def test_a_batch_of_bytes_and_floats_keeps_the_floats(first):
    images = [torch.full((3, 2, 2), 7, dtype=torch.uint8), torch.full((3, 2, 2), 261.5)]
    data = DetDataPreprocessor()({"inputs": [images[first], images[1 - first]], "data_samples": samples(2)})
    assert data["inputs"][:, 0, 0, 0].tolist() == ([7.0, 261.5] if first == 0 else [261.5, 7.0])


def test_images_of_other_channels_are_refused():
    with pytest.raises(ValueError, match="images of 3 and of 1 channels cannot be one batch"):
        DetDataPreprocessor()({"inputs": [torch.zeros(3, 2, 2), torch.zeros(1, 2, 2)], "data_samples": samples(2)})


def test_semantic_maps_are_padded_in_training_only():
    from mmengine.structures import PixelData

    for training, size in ((True, (32, 32)), (False, (20, 30))):
        (sample,) = samples(1)
        sample.gt_sem_seg = PixelData(sem_seg=torch.zeros(1, 20, 30))
        preprocessor = DetDataPreprocessor(pad_size_divisor=32, pad_seg=True, seg_pad_value=9)
        data = preprocessor({"inputs": [torch.zeros(3, 20, 30)], "data_samples": [sample]}, training)
        seg = data["data_samples"][0].gt_sem_seg.sem_seg
        assert tuple(seg.shape[-2:]) == size
        assert seg.sum() == (9 * (32 * 32 - 20 * 30) if training else 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": [1.0]}, "both mean and std"),
        ({"bgr_to_rgb": True, "rgb_to_bgr": True}, "exclude each other"),
        ({"mean": [1.0, 2.0], "std": [1.0, 2.0]}, "mean needs 1 or 3 numbers"),
    ],
)
def test_contradictions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DetDataPreprocessor(**arguments)
