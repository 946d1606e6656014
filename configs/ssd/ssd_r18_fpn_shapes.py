"""SSD, half-width ResNet-18 FPN, on the embedded example data. https://arxiv.org/abs/1512.02325

python tools/train.py configs/ssd/ssd_r18_fpn_shapes.py

bbox mAP 0.55 on the 250 validation images (docs/methods.md).
"""

_base_ = ["../_base_/datasets/shapes_detection.py", "../_base_/schedules/schedule_shapes.py"]
# Levels of one width with a convolution of their own before the predictions, as the finest level sees little.
strides = [8, 16, 32]

model = dict(
    type="SingleStageDetector",
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
        # Objects reach from 16 to 70 pixels; a stage of stride 32 would see them as four cells at most.
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        zero_init_residual=False,
    ),
    neck=dict(
        type="FPN",
        in_channels=[32, 64, 128],
        out_channels=64,
        start_level=1,
        add_extra_convs="on_output",
        num_outs=len(strides),
        norm_cfg=dict(type="BN", requires_grad=True),
    ),
    bbox_head=dict(
        type="SSDHead",
        num_classes=len(_base_.classes),
        in_channels=[64] * len(strides),
        stacked_convs=1,
        feat_channels=64,
        norm_cfg=dict(type="BN"),
        act_cfg=dict(type="ReLU"),
        # As SSDLite, which is trained from scratch too: scores start even.
        init_cfg=dict(type="Normal", layer="Conv2d", std=0.01),
        anchor_generator=dict(
            type="SSDAnchorGenerator",
            scale_major=False,
            strides=strides,
            ratios=[[2], [2], [2]],
            min_sizes=[16, 32, 56],
            max_sizes=[32, 56, 80],
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.1, 0.1, 0.2, 0.2]),
    ),
    train_cfg=dict(
        assigner=dict(
            type="MaxIoUAssigner",
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.0,
            ignore_iof_thr=-1,
            gt_max_assign_all=False,
        ),
        sampler=dict(type="PseudoSampler"),
        smoothl1_beta=1.0,
        allowed_border=-1,
        pos_weight=-1,
        neg_pos_ratio=3,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.02, nms=dict(type="nms", iou_threshold=0.45), max_per_img=100
    ),
)
