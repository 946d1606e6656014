"""Mask R-CNN with the weights of torchvision: its boxes, and its masks. https://arxiv.org/abs/1703.06870

    python tools/test.py configs/mask_rcnn/mask-rcnn_r50_fpn_torchvision.py torchvision://maskrcnn_resnet50_fpn

As faster-rcnn_r50_fpn_torchvision.py. Masks are pasted at the very boxes, torchvision's at whole pixels
(tests/checkpoints/test_torchvision.py).
"""

_base_ = "mask-rcnn_r50_fpn_1x_coco.py"
load_from = "torchvision://maskrcnn_resnet50_fpn"
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
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=2, aligned=False)),
        mask_roi_extractor=dict(roi_layer=dict(sampling_ratio=2, aligned=False)),
    ),
)
