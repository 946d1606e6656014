"""What is done to a whole batch."""

import pytest
import torch
from mmengine.structures import InstanceData, PixelData

from detkit.events import EventStorage
from detkit.models import BatchFixedSizePad, BatchSyncRandomResize, DetDataPreprocessor
from detkit.structures import BitmapMasks, DetDataSample


def batch(height=64, width=96):
    """One image, white in its only box, whose batch it fills."""
    image = torch.zeros(1, 3, height, width)
    image[..., 16:32, 24:72] = 1
    sample = DetDataSample(
        metainfo={"img_shape": (height, width), "pad_shape": (height, width), "batch_input_shape": (height, width)}
    )
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[24.0, 16.0, 72.0, 32.0]]), labels=torch.zeros(1).long())
    sample.gt_instances.masks = BitmapMasks((image[0, :1] > 0).numpy().astype("uint8"), height, width)
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    sample.gt_sem_seg = PixelData(sem_seg=(image[0, :1] > 0).byte())
    return image, [sample]


def run(step, seed=3):
    events = EventStorage(step)
    events.seed = seed
    return events


def sizes(steps, seed=3, shape=(640, 640), **options):
    augment = BatchSyncRandomResize((480, 800), **options)
    found = []
    for step in steps:
        with run(step, seed):
            found.append(augment.size(*shape))
    return found


def test_sizes_change_every_interval_and_only_then():
    drawn = sizes(range(1, 401))
    assert drawn[:10] == [(640, 640)] * 10
    assert all(len(set(drawn[begin : begin + 10])) == 1 for begin in range(0, 400, 10))
    assert {height for height, _ in drawn[10:]} == set(range(480, 801, 32))
    assert all(height == width for height, width in drawn)
    assert sizes(range(1, 401), interval=5)[5:10] == [sizes([11])[0]] * 5  # the first period


def test_a_size_follows_from_seed_and_iteration_alone():
    steps = [11, 57, 123, 399, 57]
    assert sizes(steps) == [sizes([step])[0] for step in steps]
    assert sizes(range(11, 200, 10), seed=4) != sizes(range(11, 200, 10))


def test_the_width_follows_the_batch():
    ((height, width),) = sizes([500], shape=(320, 640))
    assert width == 2 * height


def test_everything_is_resized_alike():
    augment = BatchSyncRandomResize((128, 128), interval=1, size_divisor=128)
    with run(2):
        image, (sample,) = augment(*batch())
    assert image.shape == (1, 3, 128, 128)  # the ratio is that of the multiples, 1.5 becomes 1
    assert sample.gt_instances.bboxes.tolist() == [pytest.approx([32, 32, 96, 64])]
    augment = BatchSyncRandomResize((128, 128), interval=1)
    with run(2):
        image, (sample,) = augment(*batch())
    assert image.shape == (1, 3, 128, 192)
    assert sample.img_shape == sample.pad_shape == sample.batch_input_shape == (128, 192)
    box = sample.gt_instances.bboxes[0]
    assert box.tolist() == [48, 32, 144, 64]
    rows, columns = torch.where(image[0, 0] > 0.5)
    assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box.tolist()
    assert sample.gt_instances.masks.masks[0, 32:64, 48:144].all()
    assert sample.gt_instances.masks.areas.tolist() == [32 * 96]
    assert sample.gt_sem_seg.sem_seg[0, 32:64, 48:144].all()
    assert sample.gt_sem_seg.sem_seg.sum() == 32 * 96
    assert sample.ignored_instances.bboxes.shape == (0, 4)


def test_outside_a_run_batches_stay_as_they_are():
    image, samples = batch()
    out, same = BatchSyncRandomResize((480, 800))(image, samples)
    assert out is image
    assert same is samples
    with EventStorage(50):  # of no run
        assert BatchSyncRandomResize((480, 800)).size(64, 96) == (64, 96)


def test_the_preprocessor_augments_in_training_only():
    augment = {"type": "BatchSyncRandomResize", "random_size_range": (128, 128), "interval": 1}
    preprocessor = DetDataPreprocessor(batch_augments=[augment])
    for training, height in ((True, 128), (False, 64)):
        image, samples = batch()
        boxes = samples[0].gt_instances.bboxes
        with run(2):
            data = preprocessor({"inputs": list(image), "data_samples": samples}, training)
        assert data["inputs"].shape[2] == height
        assert boxes.tolist() == [[24, 16, 72, 32]]  # the loader's batch is its own


def test_the_step_of_a_run_is_known_to_models(tmp_path):
    """What the hook of a run notes is what the draw reads."""
    from types import SimpleNamespace

    from detkit.engine import RuntimeInfoHook

    hub = SimpleNamespace(update_info=lambda *args: None, runtime_info={})
    runner = SimpleNamespace(seed=9, experiment_name="x", events=EventStorage(), message_hub=hub, iter=20)
    hook = RuntimeInfoHook()
    hook.before_run(runner)
    hook.before_train_iter(runner, 0)
    with runner.events:  # the 21st iteration is the first of the third period
        assert BatchSyncRandomResize((480, 800)).size(640, 640) == sizes([21], seed=9)[0]


def test_padding_to_one_size():
    image, samples = batch()
    augment = BatchFixedSizePad((80, 128), img_pad_value=7, pad_mask=True, pad_seg=True, seg_pad_value=5)
    padded, (sample,) = augment(image, samples)
    assert padded.shape == (1, 3, 80, 128)
    assert torch.equal(padded[..., :64, :96], image)
    assert (padded[..., 64:, :] == 7).all()
    assert sample.pad_shape == sample.batch_input_shape == (80, 128)
    assert sample.img_shape == (64, 96)
    assert sample.gt_instances.masks.masks.shape == (1, 80, 128)
    assert (sample.gt_sem_seg.sem_seg[:, :, 96:] == 5).all()
    image, samples = batch()
    assert BatchFixedSizePad((80, 32))(image, samples)[0].shape == (1, 3, 80, 96)
    assert samples[0].batch_input_shape == (80, 96)
    assert BatchFixedSizePad((64, 96))(image, None)[0] is image


def test_what_a_sample_does_not_have_is_not_padded():
    image, samples = batch()
    del samples[0].gt_sem_seg, samples[0].gt_instances.masks
    augment = BatchFixedSizePad((80, 128), pad_mask=True, pad_seg=True)
    assert augment(image, samples)[0].shape == (1, 3, 80, 128)


def test_semantic_maps_keep_their_facts():
    """Such as the label that does not count."""
    image, (sample,) = batch()
    sample.gt_sem_seg.set_metainfo({"ignore_index": 9})
    image, (sample,) = BatchFixedSizePad((80, 128), pad_seg=True)(image, [sample])
    assert sample.gt_sem_seg.ignore_index == 9
    with run(25):
        _, (sample,) = BatchSyncRandomResize((480, 800))(image, [sample])
    assert sample.gt_sem_seg.ignore_index == 9
    preprocessor = DetDataPreprocessor(pad_seg=True, pad_size_divisor=64)
    data = preprocessor({"inputs": [torch.zeros(3, *sample.gt_sem_seg.shape)], "data_samples": [sample]}, True)
    assert data["data_samples"][0].gt_sem_seg.ignore_index == 9


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (BatchSyncRandomResize, {"random_size_range": (800, 480)}, r"random_size_range: .* got \(800, 480\)"),
        (BatchSyncRandomResize, {"random_size_range": (5, 480)}, "at least 32"),
        (BatchSyncRandomResize, {"random_size_range": (480, 800), "interval": 0}, "interval=0"),
        (BatchFixedSizePad, {"size": (64,)}, "size: "),
    ],
)
def test_wrong_arguments(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)
