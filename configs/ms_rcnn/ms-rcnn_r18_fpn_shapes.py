"""Mask Scoring R-CNN, half-width ResNet-18 FPN, on the embedded example data. https://arxiv.org/abs/1903.00241

python tools/train.py configs/ms_rcnn/ms-rcnn_r18_fpn_shapes.py

bbox mAP 0.53, segm mAP 0.49 on the 250 validation images (docs/methods.md).
"""

_base_ = "../mask_rcnn/mask-rcnn_r18_fpn_shapes.py"

model = dict(
    type="MaskScoringRCNN",
    roi_head=dict(
        type="MaskScoringRoIHead",
        mask_iou_head=dict(
            type="MaskIoUHead",
            num_convs=2,
            num_fcs=2,
            roi_feat_size=14,
            in_channels=64,
            conv_out_channels=32,
            fc_out_channels=128,
            num_classes=len(_base_.classes),
        ),
    ),
    train_cfg=dict(rcnn=dict(mask_thr_binary=0.5)),
)
