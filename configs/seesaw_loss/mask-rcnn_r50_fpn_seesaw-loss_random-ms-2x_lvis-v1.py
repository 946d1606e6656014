"""Mask R-CNN with Seesaw loss, ResNet-50 FPN, 24 epochs on LVIS v1. https://arxiv.org/abs/2008.10032

    python tools/train.py configs/seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1.py

8 GPUs x 2 images. Not trained here yet; state dict equals MMDetection's (tests/configs).
"""

_base_ = "mask-rcnn_r50_fpn_seesaw-loss_sample1e-3-ms-2x_lvis-v1.py"
# Every image once, however rare its classes.
train_dataloader = dict(dataset=dict(_delete_=True, **_base_.train_dataset))
