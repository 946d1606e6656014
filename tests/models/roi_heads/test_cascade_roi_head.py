"""CascadeRoIHead: stages one after the other, each with parts, sampler and losses of its own."""

import pytest
import torch
from mmengine.structures import InstanceData

from detkit.models import CascadeRoIHead
from detkit.models.roi_heads.sampling import SampledRoIs
from detkit.structures import DetDataSample
from detkit.structures.proposals import Proposals

EXTRACTOR = {
    "type": "SingleRoIExtractor",
    "roi_layer": {"type": "RoIAlign", "output_size": 3, "sampling_ratio": 2},
    "out_channels": 2,
    "featmap_strides": [8],
}
BBOX_HEAD = {
    "type": "Shared2FCBBoxHead",
    "in_channels": 2,
    "fc_out_channels": 4,
    "roi_feat_size": 3,
    "num_classes": 3,
    "reg_class_agnostic": True,
}


def stage(iou=0.5, sampler="RandomSampler", num=6):
    assigner = {"type": "MaxIoUAssigner", "pos_iou_thr": iou, "neg_iou_thr": iou, "min_pos_iou": iou}
    return {"assigner": assigner, "sampler": {"type": sampler, "num": num, "pos_fraction": 0.5}}


def head(**arguments):
    torch.manual_seed(0)
    arguments = {"train_cfg": [stage(0.5), stage(0.6)], "bbox_head": BBOX_HEAD, **arguments}
    built = CascadeRoIHead(2, [1, 0.5], EXTRACTOR, **arguments)
    built.init_weights()
    return built.train()


def batch(objects=((4.0, 4.0, 20.0, 20.0),)):
    generator = torch.Generator().manual_seed(1)
    feats = [torch.randn(1, 2, 8, 8, generator=generator)]
    corners = torch.rand(9, 2, generator=generator) * 40
    sample = DetDataSample(metainfo={"img_shape": (64, 64), "scale_factor": (1.0, 1.0)})
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor(objects).view(-1, 4), labels=torch.zeros(len(objects)).long()
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
    return feats, [InstanceData(bboxes=torch.cat([corners, corners + 16], dim=1))], [sample]


def test_the_second_stage_learns_from_the_boxes_of_the_first_and_not_from_added_objects():
    built = head()
    seen = []
    for number, train_cfg in enumerate(built.train_cfg):

        def sample(proposals, *others, number=number, train_cfg=train_cfg):
            sampled = type(train_cfg).sample(train_cfg, proposals, *others)
            seen.append((number, proposals, sampled))
            return sampled

        object.__setattr__(train_cfg, "sample", sample)
    with torch.no_grad():
        built.bbox_head[0].fc_reg.weight.zero_()
        built.bbox_head[0].fc_reg.bias.copy_(torch.tensor([1.0, 0, 0, 0]))  # a tenth of its width to the right
    built.loss(*batch())
    (_, _, first), (number, second, _) = seen
    assert number == 1
    assert first.is_gt.sum() == 1  # the object itself was sampled
    assert second.valid.sum() == first.valid.sum() - 1
    assert torch.equal(second.valid, first.valid & ~first.is_gt)
    moved = first.boxes + torch.tensor([1.6, 0, 1.6, 0])
    assert torch.allclose(second.boxes[second.valid], moved[second.valid].clamp(max=64))


def test_a_sampler_runs_the_head_of_its_own_stage():
    built = head(train_cfg=[stage(0.5, "OHEMSampler"), stage(0.6, "OHEMSampler")])
    stages = []
    forward = built._bbox_forward
    built._bbox_forward = lambda number, x, rois: stages.append((number, len(rois))) or forward(number, x, rois)
    built.loss(*batch())
    # 9 proposals and the object; then the 6 that were sampled without the object, at most 6 of them there, and it.
    assert stages == [(0, 10), (0, 6), (1, 7), (1, 6)]
    assert [cfg.sampler.bbox_head for cfg in built.train_cfg] == list(built.bbox_head)


def test_losses_of_a_stage_have_its_weight_and_accuracies_have_none():
    built, whole = head(), head()
    whole.stage_loss_weights = [1, 1]
    torch.manual_seed(1)
    found = built.loss(*batch())
    torch.manual_seed(1)
    expected = whole.loss(*batch())
    assert found.keys() == {f"s{number}.{name}" for number in (0, 1) for name in ("loss_cls", "loss_bbox", "acc")}
    for name, value in expected.items():
        assert torch.allclose(found[name], value * (0.5 if name.startswith("s1.loss") else 1)), name


def test_without_objects_every_stage_learns_the_background_alone():
    built = head()
    losses = built.loss(*batch(()))
    assert losses["s0.loss_bbox"] == losses["s1.loss_bbox"] == 0
    assert losses["s1.loss_cls"] > 0
    sum(value for name, value in losses.items() if "loss" in name).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in built.parameters())


def test_without_proposals_nothing_is_found_and_the_losses_are_finite():
    built = head()
    feats, _, samples = batch(())
    nothing = [InstanceData(bboxes=torch.zeros(0, 4))]
    losses = built.loss(feats, nothing, samples)
    assert all(torch.isfinite(value).all() for value in losses.values())
    assert len(built.eval().predict(feats, nothing, samples)[0]) == 0


def test_raw_outputs_are_of_every_proposal():
    cls_score, bbox_pred = head()(*batch())
    assert (cls_score.shape, bbox_pred.shape) == ((9, 4), (9, 4))


def test_proposals_of_which_no_object_is_known_move_by_their_best_class():
    built = head(bbox_head={**BBOX_HEAD, "reg_class_agnostic": False}).bbox_head[0]
    boxes = torch.tensor([[[8.0, 8.0, 24.0, 24.0], [0.0, 0.0, 0.0, 0.0]]])
    proposals = Proposals(boxes, torch.zeros(1, 2), torch.tensor([[True, False]]))
    regions = SampledRoIs.without_objects(proposals, 3)
    logits = torch.tensor([[0.0, 1.0, -200.0, 300.0], [0.0, 0.0, 0.0, 0.0]])  # the background is no class
    moves = torch.zeros(2, 12)
    moves[:, 4] = 2.0  # class 1, by 0.2 of the width
    refined = built.refine(regions, logits, moves, [{"img_shape": (64, 64)}])
    assert torch.allclose(refined.boxes[0, 0], torch.tensor([11.2, 8.0, 27.2, 24.0]))
    assert refined.valid.tolist() == [[True, False]]
    assert refined.boxes[0, 1].tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"train_cfg": stage()}, TypeError, "list with a dict for each of num_stages=2 stages.*assigner, sampler"),
        ({"train_cfg": [stage()]}, ValueError, "train_cfg must have one entry.*num_stages=2 stages, got 1"),
        ({"train_cfg": [stage(), {**stage(), "mask_sise": 2}]}, KeyError, r"train_cfg\[1\].mask_sise.*'mask_size'"),
        ({"bbox_head": [BBOX_HEAD] * 3}, ValueError, "bbox_head must have one entry.*num_stages=2 stages, got 3"),
    ],
)
def test_what_does_not_fit_the_stages_is_named(arguments, error, match):
    with pytest.raises(error, match=match):
        head(**arguments)
    with pytest.raises(ValueError, match=r"stage_loss_weights must have one entry.*num_stages=2 stages, got 1"):
        CascadeRoIHead(2, [1], EXTRACTOR, BBOX_HEAD)


def test_every_stage_is_initialised():
    built = head()
    for one in built.bbox_head:
        assert one.fc_reg.weight.std() < 0.002
        assert one.fc_reg.bias.abs().max() == 0
