"""Mask R-CNN with the second version of torchvision's weights. https://arxiv.org/abs/2111.11429

    python tools/test.py configs/mask_rcnn/mask-rcnn_r50_fpn_torchvision-v2.py torchvision://maskrcnn_resnet50_fpn_v2

Batch norms in the FPN and both heads, two convolutions in the RPN, four in the box head
(tests/checkpoints/test_torchvision.py).
"""

_base_ = "mask-rcnn_r50_fpn_torchvision.py"
load_from = "torchvision://maskrcnn_resnet50_fpn_v2"
model = dict(
    backbone=dict(norm_cfg=dict(eps=1e-5)),
    neck=dict(norm_cfg=dict(type="BN", requires_grad=True)),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(
            type="Shared4Conv1FCBBoxHead", conv_out_channels=256, norm_cfg=dict(type="BN", requires_grad=True)
        ),
        mask_head=dict(norm_cfg=dict(type="BN", requires_grad=True)),
    ),
)
