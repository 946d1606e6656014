"""PointRend, half-width ResNet-18 FPN, on the embedded example data. https://arxiv.org/abs/1912.08193

python tools/train.py configs/point_rend/point-rend_r18_fpn_shapes.py

bbox mAP 0.52, segm mAP 0.54 on the 250 validation images (docs/methods.md).
"""

_base_ = ["../_base_/datasets/shapes_instance.py", "../_base_/schedules/schedule_shapes.py"]
# A step takes longer than most; these fit into the time of the others.
max_epochs = 13
# Anchors have the sides 3 strides: here 12, 24 and 48 pixels. For larger objects add strides (32, 64).
strides = [4, 8, 16]

model = dict(
    type="PointRend",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_mask=True,
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
        num_outs=len(strides),
        norm_cfg=dict(type="BN", requires_grad=True),
    ),
    rpn_head=dict(
        type="RPNHead",
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(type="AnchorGenerator", scales=[3], ratios=[0.5, 1.0, 2.0], strides=strides),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0]),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0),
    ),
    roi_head=dict(
        type="PointRendRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=2),
            out_channels=64,
            featmap_strides=strides,
            finest_scale=14,
        ),
        bbox_head=dict(
            type="Shared2FCBBoxHead",
            in_channels=64,
            fc_out_channels=256,
            roi_feat_size=7,
            num_classes=len(_base_.classes),
            bbox_coder=dict(
                type="DeltaXYWHBBoxCoder", target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.1, 0.1, 0.2, 0.2]
            ),
            reg_class_agnostic=True,
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
        mask_roi_extractor=dict(
            type="GenericRoIExtractor",
            aggregation="concat",
            roi_layer=dict(type="SimpleRoIAlign", output_size=14),
            out_channels=64,
            featmap_strides=[4],
        ),
        mask_head=dict(
            type="CoarseMaskHead",
            num_fcs=1,
            in_channels=64,
            conv_out_channels=32,
            fc_out_channels=128,
            num_classes=len(_base_.classes),
            loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
        ),
        point_head=dict(
            type="MaskPointHead",
            num_fcs=2,
            in_channels=64,
            fc_channels=32,
            num_classes=len(_base_.classes),
            coarse_pred_each_layer=True,
            loss_point=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=0.7,
                neg_iou_thr=0.3,
                min_pos_iou=0.3,
                match_low_quality=True,
                ignore_iof_thr=-1,
            ),
            sampler=dict(type="RandomSampler", num=128, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(nms_pre=300, max_per_img=150, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=False,
                ignore_iof_thr=-1,
            ),
            sampler=dict(type="RandomSampler", num=64, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
            mask_size=7,
            num_points=8 * 8,
            oversample_ratio=3,
            importance_sample_ratio=0.75,
            pos_weight=-1,
            debug=False,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=300, max_per_img=150, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        # Masks of 7, then 14, 28 and 56 cells; the 14 x 14 least certain are decided anew.
        rcnn=dict(
            score_thr=0.02,
            nms=dict(type="nms", iou_threshold=0.5),
            max_per_img=100,
            mask_thr_binary=0.5,
            subdivision_steps=3,
            subdivision_num_points=14 * 14,
            scale_factor=2,
        ),
    ),
)
