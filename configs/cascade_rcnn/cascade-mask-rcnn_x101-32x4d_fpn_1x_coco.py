"""Cascade Mask R-CNN, ResNeXt-101 32x4d FPN, 12 epochs on COCO. https://arxiv.org/abs/1906.09756

    python tools/train.py configs/cascade_rcnn/cascade-mask-rcnn_x101-32x4d_fpn_1x_coco.py

8 GPUs x 2 images. Not trained here yet; state dict and losses equal MMDetection's (tests/configs, tests/models).
"""

_base_ = "./cascade-mask-rcnn_r50_fpn_1x_coco.py"

model = dict(
    backbone=dict(
        type="ResNeXt",
        depth=101,
        groups=32,
        base_width=4,
        init_cfg=dict(checkpoint="open-mmlab://resnext101_32x4d"),
    ),
)
