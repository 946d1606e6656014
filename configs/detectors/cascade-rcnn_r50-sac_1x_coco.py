"""Cascade R-CNN with switchable atrous convolutions, ResNet-50, 12 epochs on COCO. https://arxiv.org/abs/2006.02334

    python tools/train.py configs/detectors/cascade-rcnn_r50-sac_1x_coco.py

8 GPUs x 2 images. Not trained here yet; state dict equals MMDetection's (tests/configs).
"""

_base_ = "../cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py"
model = dict(
    backbone=dict(
        type="DetectoRS_ResNet",
        conv_cfg=dict(type="ConvAWS"),
        sac=dict(type="SAC", use_deform=True),
        stage_with_sac=(False, True, True, True),
    )
)
