"""Mask R-CNN with GRoIE, ResNet-50 FPN, 12 epochs on COCO. https://arxiv.org/abs/2004.13665

    python tools/train.py configs/groie/mask-rcnn_r50_fpn_groie_1x_coco.py

8 GPUs x 2 images. Not trained here yet; state dict equals MMDetection's (tests/configs).
"""

_base_ = "../mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
model = dict(
    roi_head=dict(
        bbox_roi_extractor=dict(
            type="GenericRoIExtractor",
            aggregation="sum",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=2),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
            # Of the features from each level ...
            pre_cfg=dict(type="ConvModule", in_channels=256, out_channels=256, kernel_size=5, padding=2, inplace=False),
            # ... and of their sum.
            post_cfg=dict(
                type="GeneralizedAttention",
                in_channels=256,
                spatial_range=-1,
                num_heads=6,
                attention_type="0100",
                kv_stride=2,
            ),
        ),
        mask_roi_extractor=dict(
            type="GenericRoIExtractor",
            aggregation="sum",
            roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=2),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
            pre_cfg=dict(type="ConvModule", in_channels=256, out_channels=256, kernel_size=5, padding=2, inplace=False),
            post_cfg=dict(
                type="GeneralizedAttention",
                in_channels=256,
                spatial_range=-1,
                num_heads=6,
                attention_type="0100",
                kv_stride=2,
            ),
        ),
    ),
)
