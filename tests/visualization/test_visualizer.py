import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from PIL import Image

from detkit.registry import VISUALIZERS
from detkit.structures import BitmapMasks, DetDataSample
from detkit.structures.masks.run_lengths import encode_window
from detkit.visualization import DetLocalVisualizer

IMAGE = np.full((128, 128, 3), 128, np.uint8)
RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def sample():
    sample = DetDataSample()
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[20.0, 20, 60, 60]]),
        labels=torch.tensor([0]),
        masks=BitmapMasks(np.ones((1, 128, 128), np.uint8), 128, 128),
    )
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([[70.0, 70, 110, 110], [20, 20, 60, 60]]),
        labels=torch.tensor([1, 1]),
        scores=torch.tensor([0.9, 0.1]),
    )
    return sample


def visualizer(**arguments):
    made = DetLocalVisualizer(bbox_color=[RED, BLUE], **arguments)
    made.dataset_meta = {"classes": ("cat", "dog")}
    return made


def has(picture, colour):
    return (picture == colour).all(axis=2).any()


def test_ground_truth_stands_beside_predictions(tmp_path, sample):
    file = tmp_path / "new" / "folder" / "a.png"
    visualizer(alpha=0).add_datasample("a", IMAGE, sample, out_file=file)
    picture = np.asarray(Image.open(file))
    assert picture.shape[1] == 2 * 512 + 8
    left, right = picture[:, :512], picture[:, 520:]
    assert has(left, RED)
    assert not has(left, BLUE)
    assert has(right, BLUE)
    assert not has(right, RED)


def test_scores_below_the_threshold_are_left_out(tmp_path, sample):
    file = tmp_path / "a.png"
    visualizer().add_datasample("a", IMAGE, sample, draw_gt=False, out_file=file, pred_score_thr=0.95)
    assert (np.asarray(Image.open(file)) == 128).all()
    visualizer().add_datasample("a", IMAGE, sample, draw_gt=False, out_file=file, pred_score_thr=0.5)
    picture = np.asarray(Image.open(file))
    assert has(picture[270:], BLUE)
    assert not has(picture[:250], BLUE)  # the other one, of score 0.1


def test_masks_of_ground_truth_are_tinted(tmp_path, sample):
    file = tmp_path / "a.png"
    visualizer(mask_color=(28, 128, 228), alpha=0.5).add_datasample("a", IMAGE, sample, draw_pred=False, out_file=file)
    assert tuple(np.asarray(Image.open(file))[500, 500]) == (78, 128, 178)


def test_masks_that_were_predicted_as_run_lengths_are_tinted(tmp_path, sample):
    file = tmp_path / "a.png"
    sample.pred_instances.masks = [encode_window(np.ones((10, 128), bool), top, 0, (128, 128)) for top in (118, 0)]
    drawer = visualizer(mask_color=(28, 128, 228), alpha=0.5)
    drawer.add_datasample("a", IMAGE, sample, draw_gt=False, out_file=file, pred_score_thr=0.5)
    picture = np.asarray(Image.open(file))
    assert tuple(picture[500, 100]) == (78, 128, 178)
    assert tuple(picture[10, 100]) == (128, 128, 128)  # the other one, of score 0.1


def test_without_a_file_the_picture_goes_to_the_backends(tmp_path, sample):
    backends = [{"type": "LocalVisBackend"}]
    made = visualizer(vis_backends=backends, save_dir=str(tmp_path))
    assert backends == [{"type": "LocalVisBackend"}]  # a config stays as it was written
    made.add_datasample("val", IMAGE, sample, step=7)
    assert (tmp_path / "vis_data" / "vis_image" / "val_7.png").is_file()


def test_an_image_alone(tmp_path):
    file = tmp_path / "a.png"
    visualizer().add_datasample("a", IMAGE, out_file=file)
    assert (np.asarray(Image.open(file)) == IMAGE).all()


def test_colours_of_the_data_set(tmp_path, sample):
    made = DetLocalVisualizer()
    made.dataset_meta = {"classes": ("cat", "dog"), "palette": [[1, 2, 3], [10, 200, 30]]}
    made.add_datasample("a", IMAGE, sample, draw_gt=False, out_file=tmp_path / "a.png")
    assert has(np.asarray(Image.open(tmp_path / "a.png")), (10, 200, 30))


def test_is_found_in_the_registry():
    assert isinstance(VISUALIZERS.build({"type": "DetLocalVisualizer", "name": "built"}), DetLocalVisualizer)


@pytest.mark.parametrize("colour", ["red", (1, 2), [(1, 2, 3), (1, 2, 300)]])
def test_a_colour_that_is_none(colour):
    with pytest.raises(ValueError, match="bbox_color: RGB"):
        DetLocalVisualizer(bbox_color=colour)
