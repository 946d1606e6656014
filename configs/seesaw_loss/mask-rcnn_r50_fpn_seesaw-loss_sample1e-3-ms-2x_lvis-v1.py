"""Mask R-CNN with Seesaw loss, ResNet-50 FPN, 24 epochs on LVIS v1, rare classes more often. https://arxiv.org/abs/2008.10032

    python tools/train.py configs/seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_sample1e-3-ms-2x_lvis-v1.py

8 GPUs x 2 images. Not trained here yet; losses equal MMDetection's (tests/models).
"""

_base_ = "../lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py"
model = dict(
    roi_head=dict(
        bbox_head=dict(
            cls_predictor_cfg=dict(type="NormedLinear", tempearture=20),
            loss_cls=dict(_delete_=True, type="SeesawLoss", p=0.8, q=2.0, num_classes=1203, loss_weight=1.0),
        )
    )
)
# 24 epochs; the many classes take long to judge.
train_cfg = dict(max_epochs=24, val_interval=24)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=24, by_epoch=True, milestones=[16, 22], gamma=0.1),
]
