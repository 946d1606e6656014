"""Mask R-CNN with Seesaw loss, ResNet-101 FPN, 24 epochs on LVIS v1, masks by a normed layer. https://arxiv.org/abs/2008.10032

    python tools/train.py configs/seesaw_loss/mask-rcnn_r101_fpn_seesaw-loss-normed-mask_random-ms-2x_lvis-v1.py

8 GPUs x 2 images. Not trained here yet; state dict equals MMDetection's (tests/configs).
"""

_base_ = "mask-rcnn_r50_fpn_seesaw-loss-normed-mask_random-ms-2x_lvis-v1.py"
model = dict(backbone=dict(depth=101, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet101")))
