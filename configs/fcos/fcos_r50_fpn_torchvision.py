"""FCOS with the weights of torchvision: the same boxes and classes. https://arxiv.org/abs/2006.09214

    python tools/test.py configs/fcos/fcos_r50_fpn_torchvision.py torchvision://fcos_resnet50_fpn

Points at the corners of cells, which torchvision has. Scores are the squares of torchvision's, which are roots of
products (tests/checkpoints/test_torchvision.py).
"""

_base_ = "fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py"
load_from = "torchvision://fcos_resnet50_fpn"
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(style="pytorch", init_cfg=None),
    bbox_head=dict(prior_generator=dict(type="TorchvisionPointGenerator")),
    test_cfg=dict(score_thr=0.04),
)
