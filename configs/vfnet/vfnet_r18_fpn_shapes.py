"""VarifocalNet, half-width ResNet-18 FPN, on the embedded example data. https://arxiv.org/abs/2008.13367

python tools/train.py configs/vfnet/vfnet_r18_fpn_shapes.py

bbox mAP 0.61 on the 250 validation images (docs/methods.md).
"""

_base_ = ["../_base_/datasets/shapes_detection.py", "../_base_/schedules/schedule_shapes.py"]
strides = [8, 16, 32]

model = dict(
    type="VFNet",
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
        num_classes=len(_base_.classes),
        in_channels=64,
        feat_channels=64,
        norm_cfg=dict(type="GN", num_groups=16),
        type="VFNetHead",
        stacked_convs=2,
        strides=strides,
        # Objects reach from 16 to 70 pixels; the last is unlimited.
        regress_ranges=((-1, 32), (32, 64), (64, 1e8)),
        center_sampling=False,
        dcn_on_last_conv=False,
        use_atss=True,
        use_vfl=True,
        anchor_generator=dict(
            type="AnchorGenerator",
            ratios=[1.0],
            octave_base_scale=4,
            scales_per_octave=1,
            center_offset=0.0,
            strides=strides,
        ),
        loss_cls=dict(
            type="VarifocalLoss", use_sigmoid=True, alpha=0.75, gamma=2.0, iou_weighted=True, loss_weight=1.0
        ),
        loss_bbox=dict(type="GIoULoss", loss_weight=1.5),
        loss_bbox_refine=dict(type="GIoULoss", loss_weight=2.0),
    ),
    train_cfg=dict(
        assigner=dict(type="ATSSAssigner", topk=9),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.02, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100
    ),
)
