"""Faster R-CNN with online hard example mining, ResNet-50 FPN, 12 epochs on COCO. https://arxiv.org/abs/1604.03540

    python tools/train.py configs/faster_rcnn/faster-rcnn_r50_fpn_ohem_1x_coco.py

8 GPUs x 2 images. Not trained here yet; state dict equals MMDetection's (tests/configs).
"""

_base_ = "faster-rcnn_r50_fpn_1x_coco.py"
# The regions whose classification costs most, instead of any.
model = dict(train_cfg=dict(rcnn=dict(sampler=dict(type="OHEMSampler"))))
