"""Hybrid Task Cascade, ResNet-50 FPN, 20 epochs on COCO and its stuff maps. https://arxiv.org/abs/1901.07518

    python tools/train.py configs/htc/htc_r50_fpn_20e_coco.py

8 GPUs x 2 images. Not trained here yet; state dict and losses equal MMDetection's (tests/configs, tests/models).
"""

_base_ = "./htc_r50_fpn_1x_coco.py"

train_cfg = dict(max_epochs=20)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=20, by_epoch=True, milestones=[16, 19], gamma=0.1),
]
