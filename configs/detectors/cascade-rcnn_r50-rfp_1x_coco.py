"""Cascade R-CNN with a recursive feature pyramid, ResNet-50, 12 epochs on COCO. https://arxiv.org/abs/2006.02334

    python tools/train.py configs/detectors/cascade-rcnn_r50-rfp_1x_coco.py

8 GPUs x 2 images. Not trained here yet; its parts equal MMDetection's (tests/models).
"""

_base_ = "../cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py"
model = dict(
    backbone=dict(type="DetectoRS_ResNet", conv_cfg=dict(type="ConvAWS"), output_img=True),
    neck=dict(
        type="RFP",
        rfp_steps=2,
        aspp_out_channels=64,
        aspp_dilations=(1, 3, 6, 1),
        # Of the second time; it takes the feedback.
        rfp_backbone=dict(
            rfp_inplanes=256,
            type="DetectoRS_ResNet",
            depth=50,
            num_stages=4,
            out_indices=(0, 1, 2, 3),
            frozen_stages=1,
            norm_cfg=dict(type="BN", requires_grad=True),
            norm_eval=True,
            conv_cfg=dict(type="ConvAWS"),
            pretrained="torchvision://resnet50",
            style="pytorch",
        ),
    ),
)
