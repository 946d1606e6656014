"""CenterNet2's first stage, ResNet-50 FPN, mixed precision, large-scale jitter, 200 epochs on COCO.

    python tools/train.py configs/centernet/centernet-update_r50_fpn_8xb8-amp-lsj-200e_coco.py

https://arxiv.org/abs/2103.07461. 8 GPUs x 8 images. Not trained here yet; state dict equals MMDetection's
(tests/configs).
"""

_base_ = [
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/schedule_1x.py",
    "../_base_/default_runtime.py",
]
image_size = (1024, 1024)
model = dict(
    type="CenterNet",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        batch_augments=[dict(type="BatchFixedSizePad", size=image_size)],
    ),
    backbone=dict(
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=True,
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50"),
    ),
    neck=dict(
        type="FPN",
        in_channels=[256, 512, 1024, 2048],
        out_channels=256,
        start_level=1,
        add_extra_convs="on_output",
        num_outs=5,
        init_cfg=dict(type="Caffe2Xavier", layer="Conv2d"),
        relu_before_extra_convs=True,
    ),
    bbox_head=dict(
        type="CenterNetUpdateHead",
        num_classes=80,
        in_channels=256,
        stacked_convs=4,
        feat_channels=256,
        strides=[8, 16, 32, 64, 128],
        loss_cls=dict(type="GaussianFocalLoss", pos_weight=0.25, neg_weight=0.75, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
    ),
    train_cfg=None,
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type="nms", iou_threshold=0.6), max_per_img=100
    ),
)
train_pipeline = [
    dict(type="LoadImageFromFile", backend_args=_base_.backend_args),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomResize", scale=image_size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type="RandomCrop",
        crop_type="absolute_range",
        crop_size=image_size,
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
coco = _base_.train_dataloader.dataset
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    # Eight passes over the data are one epoch.
    dataset=dict(_delete_=True, type="RepeatDataset", times=8, dataset=dict(coco, pipeline=train_pipeline)),
)
max_epochs = 25
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.00025, by_epoch=False, begin=0, end=4000),
    dict(type="MultiStepLR", begin=0, end=max_epochs, by_epoch=True, milestones=[22, 24], gamma=0.1),
]
optim_wrapper = dict(
    type="AmpOptimWrapper",
    optimizer=dict(type="SGD", lr=0.04, momentum=0.9, weight_decay=0.00004),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
auto_scale_lr = dict(base_batch_size=64)
