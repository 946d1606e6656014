"""CenterNet, half-width ResNet-18, on the embedded example data. https://arxiv.org/abs/1904.07850

python tools/train.py configs/centernet/centernet_r18_shapes.py

bbox mAP 0.33 on the 250 validation images, 0.49 with max_epochs=81 (docs/methods.md).
"""

_base_ = ["../_base_/datasets/shapes_detection.py", "../_base_/schedules/schedule_shapes.py"]

model = dict(
    type="CenterNet",
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
        # The neck leads back from stride 16 to 4.
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        zero_init_residual=False,
    ),
    neck=dict(
        type="CTResNetNeck",
        in_channels=128,
        num_deconv_filters=(64, 64),
        num_deconv_kernels=(4, 4),
        use_dcn=False,
    ),
    bbox_head=dict(
        type="CenterNetHead",
        num_classes=len(_base_.classes),
        in_channels=64,
        feat_channels=64,
        loss_center_heatmap=dict(type="GaussianFocalLoss", loss_weight=1.0),
        loss_wh=dict(type="L1Loss", loss_weight=0.1),
        loss_offset=dict(type="L1Loss", loss_weight=1.0),
    ),
    train_cfg=None,
    test_cfg=dict(topk=100, local_maximum_kernel=3, max_per_img=100),
)
