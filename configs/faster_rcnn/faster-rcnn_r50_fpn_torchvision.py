"""Faster R-CNN with the weights of torchvision: predictions equal torchvision's. https://arxiv.org/abs/1506.01497

    python tools/test.py configs/faster_rcnn/faster-rcnn_r50_fpn_torchvision.py torchvision://fasterrcnn_resnet50_fpn

Anchors of whole pixels, RoIAlign with 2 x 2 samples and without the half pixel, batch norms without epsilon
(tests/checkpoints/test_torchvision.py).
"""

_base_ = "faster-rcnn_r50_fpn_1x_coco.py"
load_from = "torchvision://fasterrcnn_resnet50_fpn"
model = dict(
    backbone=dict(norm_cfg=dict(eps=0.0), init_cfg=None),
    rpn_head=dict(
        anchor_generator=dict(
            _delete_=True,
            type="TorchvisionAnchorGenerator",
            strides=[4, 8, 16, 32, 64],
            sizes=[[32], [64], [128], [256], [512]],
        ),
    ),
    roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=2, aligned=False))),
)
