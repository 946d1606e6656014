"""RetinaNet with a feature pyramid grid of 128 channels, ResNet-50, 640 x 640, 50 epochs on COCO.
https://arxiv.org/abs/2004.03580

    python tools/train.py configs/fpg/retinanet_r50_fpg-chn128_crop640_50e_coco.py

8 GPUs x 8 images. Not trained here yet; state dict and neck equal MMDetection's (tests/configs, tests/models).
"""

_base_ = "retinanet_r50_fpg_crop640_50e_coco.py"
model = dict(neck=dict(out_channels=128, inter_channels=128), bbox_head=dict(in_channels=128))
