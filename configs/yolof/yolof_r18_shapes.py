"""YOLOF, half-width ResNet-18, on the embedded example data. https://arxiv.org/abs/2103.09460

python tools/train.py configs/yolof/yolof_r18_shapes.py

bbox mAP 0.66 on the 250 validation images (docs/methods.md).
"""

_base_ = ["../_base_/datasets/shapes_detection.py", "../_base_/schedules/schedule_shapes.py"]

model = dict(
    type="YOLOF",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    # From scratch, so nothing is frozen and batch statistics are learnt.
    backbone=dict(
        type="ResNet",
        depth=18,
        base_channels=32,
        # Objects reach from 16 to 70 pixels: the one level has stride 8, and the encoder sees them whole.
        num_stages=2,
        strides=(1, 2),
        dilations=(1, 1),
        out_indices=(1,),
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        zero_init_residual=False,
    ),
    neck=dict(
        type="DilatedEncoder",
        in_channels=64,
        out_channels=64,
        block_mid_channels=32,
        num_residual_blocks=4,
        block_dilations=[1, 2, 3, 4],
    ),
    bbox_head=dict(
        type="YOLOFHead",
        num_classes=len(_base_.classes),
        in_channels=64,
        num_cls_convs=1,
        num_reg_convs=2,
        norm_cfg=dict(type="GN", num_groups=16),
        anchor_generator=dict(type="AnchorGenerator", ratios=[1.0], scales=[2, 4, 8], strides=[8]),
        bbox_coder=dict(
            type="DeltaXYWHBBoxCoder",
            target_means=[0.0, 0.0, 0.0, 0.0],
            # Offsets of a tenth of an anchor matter at once, as do those of classes.
            target_stds=[0.1, 0.1, 0.2, 0.2],
            add_ctr_clamp=True,
            ctr_clamp=16,
        ),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=1.0),
    ),
    train_cfg=dict(
        assigner=dict(type="UniformAssigner", pos_ignore_thr=0.15, neg_ignore_thr=0.7),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.02, nms=dict(type="nms", iou_threshold=0.6), max_per_img=100
    ),
)
