"""SABL on Faster R-CNN, half-width ResNet-18 FPN, on the embedded example data. https://arxiv.org/abs/1912.04260

python tools/train.py configs/sabl/sabl-faster-rcnn_r18_fpn_shapes.py

bbox mAP 0.47 on the 250 validation images (docs/methods.md).
"""

_base_ = "../faster_rcnn/faster-rcnn_r18_fpn_shapes.py"
# A step takes longer than most; these fit into the time of the others.
max_epochs = 12

model = dict(
    roi_head=dict(
        bbox_head=dict(
            _delete_=True,
            type="SABLHead",
            num_classes=len(_base_.classes),
            cls_in_channels=64,
            reg_in_channels=64,
            roi_feat_size=7,
            cls_out_channels=256,
            # One convolution before the attention and none after it, which the example data does without.
            reg_pre_num=1,
            reg_post_num=0,
            reg_offset_out_channels=64,
            reg_cls_out_channels=64,
            bbox_coder=dict(type="BucketingBBoxCoder", num_buckets=14, scale_factor=1.7),
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
            loss_bbox_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
            loss_bbox_reg=dict(type="SmoothL1Loss", beta=0.1, loss_weight=1.0),
        )
    )
)
