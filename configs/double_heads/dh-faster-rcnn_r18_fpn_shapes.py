"""Double-Head R-CNN, half-width ResNet-18 FPN, on the embedded example data. https://arxiv.org/abs/1904.06493

python tools/train.py configs/double_heads/dh-faster-rcnn_r18_fpn_shapes.py

bbox mAP 0.45 on the 250 validation images (docs/methods.md).
"""

_base_ = "../faster_rcnn/faster-rcnn_r18_fpn_shapes.py"
# A step takes longer than most; these fit into the time of the others.
max_epochs = 12

model = dict(
    roi_head=dict(
        type="DoubleHeadRoIHead",
        reg_roi_scale_factor=1.3,
        bbox_head=dict(
            _delete_=True,
            type="DoubleConvFCBBoxHead",
            num_convs=1,
            num_fcs=2,
            in_channels=64,
            conv_out_channels=64,
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
    )
)
