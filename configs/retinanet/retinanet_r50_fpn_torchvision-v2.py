"""RetinaNet with the second version of torchvision's weights. https://arxiv.org/abs/1708.02002

    python tools/test.py configs/retinanet/retinanet_r50_fpn_torchvision-v2.py torchvision://retinanet_resnet50_fpn_v2

Group norms in the head, P6 from C5 (tests/checkpoints/test_torchvision.py).
"""

_base_ = "retinanet_r50_fpn_torchvision.py"
load_from = "torchvision://retinanet_resnet50_fpn_v2"
model = dict(
    backbone=dict(norm_cfg=dict(eps=1e-5)),
    neck=dict(add_extra_convs="on_input"),
    bbox_head=dict(norm_cfg=dict(type="GN", num_groups=32, requires_grad=True)),
)
