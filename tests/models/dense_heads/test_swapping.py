"""Parts of RetinaNet, ATSS and FCOS are swapped by config: what fits trains, what does not is refused when built."""

import itertools

import pytest
import torch
from mmengine.structures import InstanceData

import detkit.losses
import detkit.task_modules
from detkit.registry import MODELS, TASK_UTILS
from detkit.structures import DetDataSample

STRIDES = [8, 16]
SIZES = [(6, 6), (3, 3)]
MAX_IOU = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0, "ignore_iof_thr": -1}
FOCAL, L1, GIOU = {"type": "FocalLoss"}, {"type": "L1Loss"}, {"type": "GIoULoss"}
DELTA = {"type": "DeltaXYWHBBoxCoder", "target_stds": [0.1, 0.1, 0.2, 0.2]}
POINTS = {"type": "DistancePointBBoxCoder"}
PSEUDO = {"type": "PseudoSampler"}
QUOTA = {"num": 16, "pos_fraction": 0.5, "add_gt_as_proposals": False}

ASSIGNERS = {
    "MaxIoUAssigner": MAX_IOU,
    "ATSSAssigner": {"type": "ATSSAssigner", "topk": 4},
    "ATSSAssigner with alpha": {"type": "ATSSAssigner", "topk": 4, "alpha": 0.8},
    "TaskAlignedAssigner": {"type": "TaskAlignedAssigner", "topk": 4},
    "CenterRegionAssigner": {"type": "CenterRegionAssigner", "pos_scale": 0.5, "neg_scale": 0.5},
    "FCOSAssigner": {"type": "FCOSAssigner", "regress_ranges": [(-1, 24), (24, 1e8)]},
    "PointAssigner": {"type": "PointAssigner"},
    "SimOTAAssigner": {"type": "SimOTAAssigner"},
    "DynamicSoftLabelAssigner": {"type": "DynamicSoftLabelAssigner"},
    "FoveaAssigner": {"type": "FoveaAssigner", "scale_ranges": [(1, 32), (16, 64)]},
    "ApproxMaxIoUAssigner": {**MAX_IOU, "type": "ApproxMaxIoUAssigner"},
    "GridAssigner": {"type": "GridAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5},
    "UniformAssigner": {"type": "UniformAssigner", "pos_ignore_thr": 0.15, "neg_ignore_thr": 0.7},
    "RegionAssigner": {"type": "RegionAssigner"},
    "HungarianAssigner": {"type": "HungarianAssigner", "match_costs": [{"type": "IoUCost"}]},
    "TopkHungarianAssigner": {"type": "TopkHungarianAssigner", "topk": 4},
    "MultiInstanceAssigner": {"type": "MultiInstanceAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5},
}
OF_BOXES = {"MaxIoUAssigner", "ATSSAssigner", "ATSSAssigner with alpha", "TaskAlignedAssigner", "CenterRegionAssigner"}
OF_POINTS = {"FCOSAssigner", "PointAssigner", "SimOTAAssigner", "DynamicSoftLabelAssigner"}

SAMPLERS = {
    "PseudoSampler": PSEUDO,
    "RandomSampler": {"type": "RandomSampler", **QUOTA},
    "RandomSampler with objects": {"type": "RandomSampler", **QUOTA, "add_gt_as_proposals": True},
    "InstanceBalancedPosSampler": {"type": "InstanceBalancedPosSampler", **QUOTA},
    "IoUBalancedNegSampler": {"type": "IoUBalancedNegSampler", **QUOTA},
    "CombinedSampler": {
        "type": "CombinedSampler",
        "pos_sampler": {"type": "InstanceBalancedPosSampler"},
        "neg_sampler": {"type": "RandomSampler"},
        **QUOTA,
    },
    "CombinedSampler of OHEM": {
        "type": "CombinedSampler",
        "pos_sampler": {"type": "OHEMSampler"},
        "neg_sampler": {"type": "RandomSampler"},
        **QUOTA,
    },
    "OHEMSampler": {"type": "OHEMSampler", **QUOTA},
    "ScoreHLRSampler": {"type": "ScoreHLRSampler", **QUOTA},
    "MultiInsRandomSampler": {"type": "MultiInsRandomSampler", **QUOTA},
    "MaskPseudoSampler": {"type": "MaskPseudoSampler"},
}
FIT_SAMPLERS = {
    "PseudoSampler",
    "RandomSampler",
    "InstanceBalancedPosSampler",
    "IoUBalancedNegSampler",
    "CombinedSampler",
}

CODERS = {
    "DeltaXYWHBBoxCoder": DELTA,
    "DeltaXYWHBBoxCoderForGLIP": {"type": "DeltaXYWHBBoxCoderForGLIP"},
    "LegacyDeltaXYWHBBoxCoder": {"type": "LegacyDeltaXYWHBBoxCoder"},
    "TBLRBBoxCoder": {"type": "TBLRBBoxCoder"},
    "PseudoBBoxCoder": {"type": "PseudoBBoxCoder"},
    "DistancePointBBoxCoder": POINTS,
    "YOLOBBoxCoder": {"type": "YOLOBBoxCoder"},
    "BucketingBBoxCoder": {"type": "BucketingBBoxCoder", "num_buckets": 14, "scale_factor": 3.0},
    "DeltaXYWHTRBBoxCoder": {"type": "DeltaXYWHTRBBoxCoder"},
}
OF_ANCHORS = set(list(CODERS)[:5])

BOX_LOSSES = {
    name: {"type": name}
    for name in (
        *("L1Loss", "SmoothL1Loss", "BalancedL1Loss", "MSELoss", "GHMR"),
        *("IoULoss", "GIoULoss", "DIoULoss", "CIoULoss", "EIoULoss", "SIoULoss", "BoundedIoULoss"),
        *("DistributionFocalLoss", "FocalLoss", "L2Loss", "TripletLoss"),
    )
}
ON_COORDINATES = set(list(BOX_LOSSES)[:5])
ON_BOXES = set(list(BOX_LOSSES)[:12])
CLASS_LOSSES = {
    "FocalLoss": FOCAL,
    "CrossEntropyLoss": {"type": "CrossEntropyLoss", "use_sigmoid": True},
    "GHMC": {"type": "GHMC"},
    "FocalCustomLoss": {"type": "FocalCustomLoss", "num_classes": 3},
    "mask CrossEntropyLoss": {"type": "CrossEntropyLoss", "use_mask": True},
    "QualityFocalLoss": {"type": "QualityFocalLoss"},
    "VarifocalLoss": {"type": "VarifocalLoss"},
    "GaussianFocalLoss": {"type": "GaussianFocalLoss"},
    "SeesawLoss": {"type": "SeesawLoss", "num_classes": 3},
    "EQLV2Loss": {"type": "EQLV2Loss", "num_classes": 3},
    "L1Loss": L1,
}
FIT_CLASS_LOSSES = set(list(CLASS_LOSSES)[:4])

HEADS = {
    "RetinaHead": {
        "anchor_generator": {
            "type": "AnchorGenerator",
            "octave_base_scale": 2,
            "scales_per_octave": 2,
            "ratios": [1.0],
            "strides": STRIDES,
        }
    },
    "ATSSHead": {
        "anchor_generator": {"type": "AnchorGenerator", "ratios": [1.0], "scales": [3], "strides": STRIDES},
        "norm_cfg": {"type": "GN", "num_groups": 2},
    },
    "FCOSHead": {
        "strides": STRIDES,
        "regress_ranges": [(-1, 24), (24, 1e8)],
        "norm_cfg": {"type": "GN", "num_groups": 2},
    },
}


def batch():
    """Two images of 48 x 48, one with two objects and an ignored region, one with none."""
    made = []
    for boxes in ([[2.0, 2, 20, 22], [10, 12, 44, 46]], []):
        facts = {"img_shape": (48, 48), "pad_shape": (48, 48), "batch_input_shape": (48, 48)}
        sample = DetDataSample(metainfo=facts)
        labels = torch.arange(len(boxes)) % 3
        sample.gt_instances = InstanceData(bboxes=torch.tensor(boxes).view(-1, 4), labels=labels)
        sample.ignored_instances = InstanceData(bboxes=torch.tensor([[30.0, 0, 48, 12]]), labels=torch.zeros(1).long())
        made.append(sample)
    return made


def build(head, assigner, sampler, coder, loss_bbox, loss_cls):
    """The head of a config that names these parts."""
    config = {
        "type": head,
        "num_classes": 3,
        "in_channels": 4,
        "feat_channels": 4,
        "stacked_convs": 1,
        **HEADS[head],
        "bbox_coder": coder,
        "loss_bbox": loss_bbox,
        "loss_cls": loss_cls,
        "train_cfg": {"assigner": assigner, "sampler": sampler},
    }
    if head != "FCOSHead":
        config["reg_decoded_bbox"] = loss_bbox["type"] not in ON_COORDINATES
    return MODELS.build(config)


def train(head):
    """Two steps: the losses are finite and the weights move."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 4, *size, generator=generator) for size in SIZES]
    head.train()
    optimizer = torch.optim.SGD(head.parameters(), lr=1e-4)
    before = [p.detach().clone() for p in head.parameters()]
    for _ in range(2):
        losses = head.loss(features, batch())
        assert all(torch.isfinite(value).all() for value in losses.values())
        optimizer.zero_grad()
        sum(value for name, value in losses.items() if "loss" in name).backward()
        assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)
        optimizer.step()
    assert any(not torch.equal(old, new) for old, new in zip(before, head.parameters(), strict=True))


def fits(head, assigner, sampler, coder, loss_bbox, loss_cls):
    """Whether parts of these names fit together; a table of its own, not the code's."""
    if head == "FCOSHead":
        fit = assigner in OF_BOXES | OF_POINTS and coder == "DistancePointBBoxCoder"
    else:
        fit = assigner in OF_BOXES and coder in OF_ANCHORS
    return fit and sampler in FIT_SAMPLERS and loss_bbox in ON_BOXES and loss_cls in FIT_CLASS_LOSSES


def check(head, *names):
    """Train what fits; what does not is refused with the reason, when it is built."""
    tables = (ASSIGNERS, SAMPLERS, CODERS, BOX_LOSSES, CLASS_LOSSES)
    parts = [table[name] for table, name in zip(tables, names, strict=True)]
    if fits(head, *names):
        train(build(head, *parts))
        return True
    with pytest.raises(
        ValueError, match=rf"{head}: (train_cfg\.assigner|train_cfg\.sampler[.\w]*|bbox_coder|loss_\w+): "
    ):
        build(head, *parts)
    return False


SMALL = (
    ("MaxIoUAssigner", "ATSSAssigner", "TaskAlignedAssigner", "SimOTAAssigner"),
    ("PseudoSampler", "RandomSampler", "OHEMSampler"),
    ("DeltaXYWHBBoxCoder", "TBLRBBoxCoder", "DistancePointBBoxCoder"),
    ("L1Loss", "GIoULoss"),
    ("FocalLoss", "CrossEntropyLoss", "QualityFocalLoss"),
)


@pytest.mark.parametrize("head", HEADS)
def test_the_grid_of_parts(head):
    trained = sum(check(head, *names) for names in itertools.product(*SMALL))
    # Assigners x samplers x coders x box losses x class losses that fit
    assert (
        trained == {"RetinaHead": 3 * 2 * 2 * 2 * 2, "ATSSHead": 3 * 2 * 2 * 2 * 2, "FCOSHead": 4 * 2 * 1 * 2 * 2}[head]
    )


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("position", range(5), ids=["assigner", "sampler", "coder", "box loss", "class loss"])
def test_every_part_alone(head, position):
    usual = ["MaxIoUAssigner", "PseudoSampler", "DeltaXYWHBBoxCoder", "GIoULoss", "FocalLoss"]
    usual[2] = "DistancePointBBoxCoder" if head == "FCOSHead" else usual[2]
    names = (ASSIGNERS, SAMPLERS, CODERS, BOX_LOSSES, CLASS_LOSSES)[position]
    outcomes = [check(head, *usual[:position], name, *usual[position + 1 :]) for name in names]
    assert any(outcomes)
    assert not all(outcomes)


def test_the_tables_are_complete():
    """A new assigner, sampler, coder or loss has to say what it fits."""

    def registered(registry, module):
        return {name for name, cls in registry.module_dict.items() if cls.__module__.startswith(module)}

    for module, table in (("assigners", ASSIGNERS), ("samplers", SAMPLERS), ("coders", CODERS)):
        named = {part["type"] for part in table.values()}
        assert registered(TASK_UTILS, f"{detkit.task_modules.__name__}.{module}") == named, module
    losses = registered(MODELS, detkit.losses.__name__)
    assert all(getattr(MODELS.module_dict[name], "learns", None) for name in losses)


def test_softmax_scores():
    for head in ("RetinaHead", "ATSSHead"):
        train(build(head, MAX_IOU, PSEUDO, DELTA, L1, {"type": "CrossEntropyLoss", "use_sigmoid": False}))


def test_a_box_loss_on_encodings_says_how_to_compare_boxes():
    with pytest.raises(ValueError, match="GIoULoss learns boxes; here are coordinates; reg_decoded_bbox=True compares"):
        MODELS.build({"type": "RetinaHead", "num_classes": 3, "in_channels": 4, "loss_bbox": GIOU})
