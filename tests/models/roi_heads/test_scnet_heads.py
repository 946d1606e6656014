"""SCNet's heads: what of the image reaches a region, and what cannot be built."""

import math

import pytest
import torch
from mmengine.structures import InstanceData

from detkit.models import FeatureRelayHead, GlobalContextHead, SCNetMaskHead, SCNetRoIHead
from detkit.structures.ground_truth import GroundTruth

EXTRACTOR = {
    "type": "SingleRoIExtractor",
    "roi_layer": {"type": "RoIAlign", "output_size": 4, "sampling_ratio": 1},
    "out_channels": 2,
    "featmap_strides": [8],
}
BBOX_HEAD = {"type": "SCNetBBoxHead", "num_shared_fcs": 1, "in_channels": 2, "fc_out_channels": 4, "roi_feat_size": 4}
MASK_HEAD = {"type": "SCNetMaskHead", "num_convs": 2, "in_channels": 2, "conv_out_channels": 2}
CONTEXT = {"type": "GlobalContextHead", "num_convs": 0, "in_channels": 2, "conv_out_channels": 2}


def head(**arguments):
    parts = {
        "bbox_roi_extractor": EXTRACTOR,
        "bbox_head": BBOX_HEAD,
        "mask_roi_extractor": EXTRACTOR,
        "mask_head": MASK_HEAD,
    }
    return SCNetRoIHead(1, [1], **(parts | arguments))


def test_a_region_gets_the_context_of_its_own_image():
    built = head(glbctx_head=CONTEXT)
    levels = [torch.tensor([[1.0, 2.0], [30.0, 40.0]]).view(2, 2, 1, 1).expand(2, 2, 8, 8)]
    x, _ = built._with_image(levels)
    rois = torch.tensor([[1.0, 0, 0, 8, 8], [0.0, 0, 0, 8, 8]])
    fused = built._fused(torch.zeros(2, 2, 4, 4), x, rois)
    assert fused[:, :, 0, 0].tolist() == [[30.0, 40.0], [1.0, 2.0]]


def test_the_context_learns_which_classes_there_are_once_each():
    context = GlobalContextHead(num_convs=0, in_channels=2, conv_out_channels=2, num_classes=3, loss_weight=3.0)
    objects = [InstanceData(bboxes=torch.zeros(len(labels), 4), labels=torch.tensor(labels)) for labels in ([2, 2], [])]
    logits = torch.tensor([[-50.0, -50.0, 50.0], [0.0, 0.0, 0.0]], requires_grad=True)
    loss = context.loss(logits, GroundTruth.from_instances(objects))
    # The first image is right in all; of the second each class costs log 2: half of the mean over both.
    assert loss.item() == pytest.approx(3.0 * math.log(2) / 2)
    nothing = GroundTruth.from_instances([InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))] * 2)
    assert torch.isfinite(context.loss(logits, nothing))


def test_a_relayed_map_is_enlarged_corner_to_corner():
    relay = FeatureRelayHead(in_channels=2, out_conv_channels=1, roi_feat_size=2)
    with torch.no_grad():
        relay.fc.weight.copy_(torch.tensor([[0.0, 0], [3.0, 0], [0, 0], [3.0, 0]]))
        relay.fc.bias.zero_()
    assert torch.allclose(relay(torch.tensor([[1.0, 0.0]]))[0, 0, 0], torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert relay(torch.zeros(0, 2)).shape == (0, 1, 4, 4)


def test_a_residual_mask_head_starts_from_its_input():
    built = SCNetMaskHead(num_convs=4, in_channels=2, conv_out_channels=2)
    assert len(built.convs) == 2
    for block in built.convs:
        torch.nn.init.zeros_(block.conv2.weight)
        torch.nn.init.zeros_(block.conv2.bias)
    x = -torch.ones(1, 2, 4, 4)
    assert torch.equal(built.embed(x), x)
    normed = SCNetMaskHead(num_convs=2, in_channels=2, conv_out_channels=2, norm_cfg={"type": "BN"})
    assert {"convs.0.bn1.weight", "convs.0.bn2.weight"} <= normed.state_dict().keys()
    assert "convs.0.conv1.bias" not in normed.state_dict()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"bbox_head": {"type": "SABLHead", "num_classes": 3}}, "bbox_head: SABLHead has no embed.*use SCNetBBoxHead"),
        ({"semantic_roi_extractor": EXTRACTOR}, "semantic_head is missing"),
        ({"mask_head": {**MASK_HEAD, "in_channels": 4}}, "in_channels=4 and conv_out_channels=2 to be equal"),
        ({"mask_head": {**MASK_HEAD, "conv_kernel_size": 5}}, "conv_to_res needs conv_kernel_size=3, got 5"),
    ],
)
def test_parts_that_do_not_fit_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        head(**arguments)
