"""Guided anchors on RetinaNet, half-width ResNet-18 FPN, on the embedded example data. https://arxiv.org/abs/1901.03278

python tools/train.py configs/guided_anchoring/ga-retinanet_r18_fpn_shapes.py

Not trained to the end yet.

bbox mAP 0.43 on the 250 validation images (docs/methods.md).
"""

_base_ = ["../_base_/datasets/shapes_detection.py", "../_base_/schedules/schedule_shapes.py"]
# Squares have the side of 2 strides.
strides = [8, 16, 32]
head_norm = dict(type="GN", num_groups=16)

model = dict(
    type="RetinaNet",
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
        type="GARetinaHead",
        num_classes=len(_base_.classes),
        in_channels=64,
        feat_channels=64,
        stacked_convs=1,
        norm_cfg=head_norm,
        approx_anchor_generator=dict(
            type="AnchorGenerator",
            octave_base_scale=2,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=strides,
        ),
        square_anchor_generator=dict(type="AnchorGenerator", ratios=[1.0], scales=[2], strides=strides),
        anchor_coder=dict(
            type="DeltaXYWHBBoxCoder", target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0]
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0]),
        loc_filter_thr=0.01,
        loss_loc=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_shape=dict(type="BoundedIoULoss", beta=0.2, loss_weight=1.0),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="SmoothL1Loss", beta=0.04, loss_weight=1.0),
    ),
    train_cfg=dict(
        ga_assigner=dict(
            type="ApproxMaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0.4, ignore_iof_thr=-1
        ),
        ga_sampler=dict(type="RandomSampler", num=256, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False),
        assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.0, ignore_iof_thr=-1),
        sampler=dict(type="PseudoSampler"),
        allowed_border=-1,
        pos_weight=-1,
        center_ratio=0.2,
        ignore_ratio=0.5,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.02, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100
    ),
)
