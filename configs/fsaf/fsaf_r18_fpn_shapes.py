"""FSAF, half-width ResNet-18 FPN, on the embedded example data. https://arxiv.org/abs/1903.00621

python tools/train.py configs/fsaf/fsaf_r18_fpn_shapes.py

bbox mAP 0.60 on the 250 validation images (docs/methods.md).
"""

_base_ = ["../_base_/datasets/shapes_detection.py", "../_base_/schedules/schedule_shapes.py"]
strides = [8, 16, 32]
head_norm = dict(type="GN", num_groups=16)

model = dict(
    type="FSAF",
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
        type="FSAFHead",
        num_classes=len(_base_.classes),
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=head_norm,
        reg_decoded_bbox=True,
        anchor_generator=dict(
            type="AnchorGenerator", octave_base_scale=1, scales_per_octave=1, ratios=[1.0], strides=strides
        ),
        bbox_coder=dict(type="TBLRBBoxCoder", normalizer=4.0),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0, reduction="none"),
        loss_bbox=dict(type="IoULoss", eps=1e-6, loss_weight=1.0, reduction="none"),
    ),
    train_cfg=dict(
        # The example's objects are small: a larger middle has cells on more levels to choose from.
        assigner=dict(type="CenterRegionAssigner", pos_scale=0.4, neg_scale=0.4, min_pos_iof=0.01),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.02, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100
    ),
)
