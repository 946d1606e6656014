"""RetinaNet with the weights of torchvision: predictions equal torchvision's. https://arxiv.org/abs/1708.02002

    python tools/test.py configs/retinanet/retinanet_r50_fpn_torchvision.py torchvision://retinanet_resnet50_fpn

Anchors of whole pixels, P6 from P5 and not from C5, batch norms without epsilon
(tests/checkpoints/test_torchvision.py).
"""

_base_ = "retinanet_r50_fpn_1x_coco.py"
load_from = "torchvision://retinanet_resnet50_fpn"
model = dict(
    backbone=dict(norm_cfg=dict(eps=0.0), init_cfg=None),
    neck=dict(add_extra_convs="on_output", relu_before_extra_convs=True),
    bbox_head=dict(
        anchor_generator=dict(
            _delete_=True,
            type="TorchvisionAnchorGenerator",
            strides=[8, 16, 32, 64, 128],
            sizes=[[32, 40, 50], [64, 80, 101], [128, 161, 203], [256, 322, 406], [512, 645, 812]],
        ),
    ),
    test_cfg=dict(max_per_img=300),
)
