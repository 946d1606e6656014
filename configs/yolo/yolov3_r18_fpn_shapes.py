"""YOLOv3, half-width ResNet-18 FPN, on the embedded example data. https://arxiv.org/abs/1804.02767

python tools/train.py configs/yolo/yolov3_r18_fpn_shapes.py

bbox mAP 0.53 on the 250 validation images (docs/methods.md).
"""

_base_ = ["../_base_/datasets/shapes_detection.py", "../_base_/schedules/schedule_shapes.py"]
strides = [8, 16, 32]

model = dict(
    type="YOLOV3",
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
        type="YOLOV3Head",
        num_classes=len(_base_.classes),
        in_channels=[64, 64, 64],
        out_channels=[64, 64, 64],
        anchor_generator=dict(
            type="YOLOAnchorGenerator",
            base_sizes=[[(14, 14), (20, 20), (26, 26)], [(32, 32), (40, 40), (48, 48)], [(56, 56), (64, 64), (76, 76)]],
            strides=strides,
        ),
        bbox_coder=dict(type="YOLOBBoxCoder"),
        featmap_strides=strides,
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0, reduction="sum"),
        loss_conf=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0, reduction="sum"),
        loss_xy=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=2.0, reduction="sum"),
        loss_wh=dict(type="MSELoss", loss_weight=2.0, reduction="sum"),
    ),
    train_cfg=dict(assigner=dict(type="GridAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0)),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        conf_thr=0.005,
        nms=dict(type="nms", iou_threshold=0.45),
        max_per_img=100,
    ),
)
