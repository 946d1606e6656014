"""PAA, ResNet-50 FPN, 18 epochs on COCO, the schedule of its authors. https://arxiv.org/abs/2007.08103

    python tools/train.py configs/paa/paa_r50_fpn_1.5x_coco.py

8 GPUs x 2 images. Not trained here yet; state dict and losses equal MMDetection's (tests/configs, tests/models).
"""

_base_ = "paa_r50_fpn_1x_coco.py"
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=18, by_epoch=True, milestones=[12, 16], gamma=0.1),
]
train_cfg = dict(max_epochs=18)
