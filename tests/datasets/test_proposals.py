"""Proposals from a metric's file through a dataset and a pipeline into a sample."""

import pickle

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from transforms.squares import BOXES, assert_boxes_lie_on_squares, squares

from detkit.datasets import BaseDetDataset
from detkit.evaluation import DumpProposals
from detkit.structures import DetDataSample
from detkit.transforms import LoadProposals, PackDetInputs, ProposalBroadcaster


class InFolder(BaseDetDataset):
    """Six images of a folder, without objects. None of the files exist."""

    def load_data_list(self):
        facts = {"width": 10, "height": 12, "instances": []}
        return [{"img_path": f"mem://val/{i}.png", "img_id": i, **facts} for i in range(6)]


def predicted(index, boxes, scores):
    sample = DetDataSample(metainfo={"img_id": index, "img_path": f"mem://val/{index}.png"})
    sample.pred_instances = InstanceData(bboxes=torch.tensor(boxes).reshape(-1, 4), scores=torch.tensor(scores))
    return sample


@pytest.fixture
def file(tmp_path):
    """As DumpProposals writes it: the best two of each image."""
    metric = DumpProposals(str(tmp_path), "rpn.pkl", num_max_proposals=2)
    boxes = [[0.0, 0, 1, 1], [2.0, 2, 8, 8], [1.0, 1, 4, 4]]
    metric.process({}, [predicted(0, [], [])])
    metric.process({}, [predicted(index, boxes, [0.1, 0.5, 0.9]).to_dict() for index in range(1, 6)])
    assert metric.evaluate(6) == {}
    return tmp_path / "rpn.pkl"


def test_what_was_dumped_is_loaded_best_first(file):
    dataset = InFolder(data_root=str(file.parent), proposal_file="rpn.pkl", pipeline=[LoadProposals()])
    np.testing.assert_array_equal(dataset[1]["proposals"], [[1, 1, 4, 4], [2, 2, 8, 8]])
    np.testing.assert_allclose(dataset[1]["proposals_scores"], [0.9, 0.5])
    assert dataset[0]["proposals"].shape == (0, 4)
    best = InFolder(proposal_file=str(file), pipeline=[LoadProposals(num_max_proposals=1)])
    np.testing.assert_array_equal(best[5]["proposals"], [[1, 1, 4, 4]])


def test_instance_data_of_mmdetection_is_read(tmp_path):
    boxes = np.array([[0, 0, 5, 6]], dtype=np.float32)
    content = {f"val/{i}.png": InstanceData(bboxes=boxes, scores=np.float32([0.3])) for i in range(6)}
    content["val/more.png"] = {"bboxes": np.zeros(0)}
    (tmp_path / "rpn.pkl").write_bytes(pickle.dumps(content))
    dataset = InFolder(data_root=str(tmp_path), proposal_file="rpn.pkl", pipeline=[LoadProposals()])
    np.testing.assert_array_equal(dataset[3]["proposals"], boxes)
    np.testing.assert_allclose(dataset[3]["proposals_scores"], [0.3])


class Evil:
    def __reduce__(self):
        return eval, ("open('evil', 'w').close()",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"val/0.png": Evil()}, r"rpn\.pkl: GLOBAL builtins\.eval is not plain data; it was not loaded"),
        ([np.zeros((3, 5))], r"rpn\.pkl: a dict .* found a list; files of MMDetection 2 hold lists"),
        ({"val/00.png": {"bboxes": []}}, r"none for 'val/0\.png' \(image 0\); did you mean 'val/00\.png'"),
        ({"val/0.png": np.zeros(4)}, r"val/0\.png: 'bboxes' and 'scores' were expected"),
        ({"val/0.png": {"bboxes": np.zeros((2, 5))}}, r"val/0\.png: finite bboxes \(P, 4\) .* got shape \(2, 5\)"),
        ({"val/0.png": {"bboxes": np.full((1, 4), np.nan)}}, r"finite bboxes"),
        ({"val/0.png": {"bboxes": np.zeros((2, 4)), "scores": np.zeros(3)}}, r"2 bboxes, but scores of shape \(3,\)"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rpn.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        InFolder(data_root=str(tmp_path), proposal_file="rpn.pkl")
    assert not (tmp_path / "evil").exists()


def test_a_missing_or_cut_file_is_named(tmp_path, file):
    with pytest.raises(FileNotFoundError, match=r"proposal_file /.*none\.pkl does not exist"):
        InFolder(data_root=str(tmp_path), proposal_file="none.pkl")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"rpn\.pkl: not a pickle, or cut off"):
        InFolder(proposal_file=str(file))


def test_proposals_that_nobody_loads_are_told(file):
    dataset = InFolder(proposal_file=str(file), pipeline=[PackDetInputs()])
    with pytest.raises(ValueError, match=r"val/2\.png: the dataset has a proposal_file, and the pipeline no LoadProp"):
        dataset[2]
    with pytest.raises(ValueError, match="set proposal_file of the dataset"):
        LoadProposals()(squares())
    with pytest.raises(ValueError, match="put LoadProposals before ProposalBroadcaster"):
        ProposalBroadcaster([])(squares())
    with pytest.raises(ValueError, match=r"num_max_proposals: .* got 0"):
        LoadProposals(0)


STEPS = {
    "plain": [{"type": "Resize", "scale": (192, 100)}, {"type": "RandomFlip", "prob": 0.5}],
    "drawn": [
        {"type": "RandomResize", "scale": (96, 64), "ratio_range": (0.6, 2.0), "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": (0.6, 0.6), "crop_type": "relative_range"},
        {"type": "RandomShift", "prob": 0.7},
    ],
}


@pytest.mark.parametrize("name", STEPS)
def test_proposals_move_as_objects_do(name):
    step = ProposalBroadcaster(STEPS[name])
    seen = 0
    for seed in range(20):
        np.random.seed(seed)
        results = squares(masks=True)
        # The proposals are the objects of the picture, in another order; the scores tell which.
        order = np.array([3, 1, 0, 2])
        scores = order.astype(np.float32)
        results.update(proposals=BOXES[order], proposals_scores=scores)
        moved = step(results)
        if moved is None:
            continue
        assert_boxes_lie_on_squares(moved, tolerance=1.6)
        kept = moved["proposals_scores"].astype(int)
        assert sorted(kept) == sorted(moved["gt_bboxes_labels"])
        for label, box in zip(kept, moved["proposals"], strict=True):
            np.testing.assert_array_equal(box, moved["gt_bboxes"][moved["gt_bboxes_labels"] == label][0])
        packed = PackDetInputs()(moved)["data_samples"]
        assert torch.equal(packed.proposals.bboxes, torch.from_numpy(moved["proposals"]))
        assert packed.proposals.scores.dtype == torch.float32
        seen += len(kept)
    assert seen > 30


def test_where_no_proposal_is_left_the_objects_stay():
    results = squares(1)
    results.update(proposals=np.float32([[90, 60, 95, 63]]), proposals_scores=np.float32([0.5]))
    step = ProposalBroadcaster([{"type": "RandomCrop", "crop_size": (30, 30)}])
    step.transforms.transforms[0]._draw_offset = lambda *margins: (0, 0)
    step.transforms.transforms[0]._methods_with_randomness = []
    moved = step(results)
    assert len(moved["gt_bboxes"]) == 1
    assert moved["proposals"].shape == (0, 4)
    assert moved["proposals_scores"].shape == (0,)


def test_names_that_a_file_cannot_tell_apart(tmp_path):
    metric = DumpProposals(str(tmp_path))
    metric.process({}, [predicted(1, [], []), predicted(1, [], [])])
    with pytest.raises(ValueError, match=r"two images are named 'val/1\.png'"):
        metric.evaluate(2)
    with pytest.raises(ValueError, match=r"ends in \.pkl or \.pickle was expected, got 'a\.json'"):
        DumpProposals(proposals_file="a.json")
    with pytest.raises(ValueError, match="put it into meta_keys"):
        metric.process({}, [DetDataSample(pred_instances=InstanceData())])
