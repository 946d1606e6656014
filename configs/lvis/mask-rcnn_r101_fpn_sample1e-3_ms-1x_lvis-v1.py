"""Mask R-CNN, ResNet-101 FPN, 12 epochs on LVIS v1, rare classes more often. https://arxiv.org/abs/1908.03195

    python tools/train.py configs/lvis/mask-rcnn_r101_fpn_sample1e-3_ms-1x_lvis-v1.py

8 GPUs x 2 images. Not trained here yet; state dict equals MMDetection's (tests/configs).
"""

_base_ = "mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py"
model = dict(backbone=dict(depth=101, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet101")))
