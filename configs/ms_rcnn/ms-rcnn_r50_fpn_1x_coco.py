"""Mask Scoring R-CNN, ResNet-50 FPN, 12 epochs on COCO. https://arxiv.org/abs/1903.00241

    python tools/train.py configs/ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py

8 GPUs x 2 images. Not trained here yet; state dict and losses equal MMDetection's.
"""

_base_ = "../mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"

model = dict(
    type="MaskScoringRCNN",
    roi_head=dict(
        type="MaskScoringRoIHead",
        mask_iou_head=dict(
            type="MaskIoUHead",
            num_convs=4,
            num_fcs=2,
            roi_feat_size=14,
            in_channels=256,
            conv_out_channels=256,
            fc_out_channels=1024,
            num_classes=80,
        ),
    ),
    train_cfg=dict(rcnn=dict(mask_thr_binary=0.5)),
)
