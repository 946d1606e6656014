"""SABL on Faster R-CNN, ResNet-50 FPN, 12 epochs on COCO. https://arxiv.org/abs/1912.04260

    python tools/train.py configs/sabl/sabl-faster-rcnn_r50_fpn_1x_coco.py

8 GPUs x 2 images. Not trained here yet; state dict and losses equal MMDetection's (tests/configs, tests/models).
"""

_base_ = "../faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
model = dict(
    roi_head=dict(
        bbox_head=dict(
            _delete_=True,
            type="SABLHead",
            num_classes=80,
            cls_in_channels=256,
            reg_in_channels=256,
            roi_feat_size=7,
            # Two buckets for each column and row of a region's features.
            reg_feat_up_ratio=2,
            reg_pre_kernel=3,
            reg_post_kernel=3,
            reg_pre_num=2,
            reg_post_num=1,
            cls_out_channels=1024,
            reg_offset_out_channels=256,
            reg_cls_out_channels=256,
            num_cls_fcs=1,
            num_reg_fcs=0,
            reg_class_agnostic=True,
            norm_cfg=None,
            bbox_coder=dict(type="BucketingBBoxCoder", num_buckets=14, scale_factor=1.7),
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
            loss_bbox_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
            loss_bbox_reg=dict(type="SmoothL1Loss", beta=0.1, loss_weight=1.0),
        )
    )
)
